"""A server in a thread, for tests that talk to it."""

import asyncio
import contextlib
import threading

import numpy as np

from etcvla.serve.server import Server

MESSAGE = {
    "observation/image": np.full((8, 8, 3), 7, np.uint8),
    "observation/wrist_image": np.zeros((8, 8, 3), np.uint8),
    "observation/state": np.arange(8.0),
    "prompt": "open the drawer",
}


@contextlib.contextmanager
def running(answer, **options):
    """(port, server) of a server that answers so."""
    server, opened = Server(answer, {"robot": "none"}, **options), threading.Event()
    port, loop, stop = [], asyncio.new_event_loop(), None

    async def main():
        nonlocal stop
        stop = asyncio.Event()
        await server.run("127.0.0.1", 0, stop, lambda number: (port.append(number), opened.set()))

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True)
    thread.start()
    assert opened.wait(60)
    try:
        yield port[0], server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        assert not thread.is_alive()
        loop.close()
