"""A server in a thread, for tests that connect to it."""

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
def running_server(answer, **options):
    """Run a server with this answer function; yields (port, server)."""
    server = Server(answer, {"robot": "none"}, **options)
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    listening = threading.Event()
    ports = []

    def on_listening(port):
        ports.append(port)
        listening.set()

    def run():
        loop.run_until_complete(server.run("127.0.0.1", 0, stop, on_listening))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert listening.wait(60)
    try:
        yield ports[0], server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        assert not thread.is_alive()
        loop.close()
