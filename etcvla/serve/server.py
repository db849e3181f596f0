"""The websocket server: openpi's protocol, for strangers.

A client is sent the metadata first. Then each of its messages, an observation, is answered by actions with their
timing; an error by one text, and the connection is closed with code 1011. So does openpi's websocket_policy_server.py.
The rest is what a server needs that does not trust its clients: `Limits`, a key, and no page of a browser may connect.

GET /healthz says OK (503 while it stops), GET /metrics has counters in Prometheus' text format.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import dataclasses
import hmac
import http
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import websockets
from websockets.asyncio import server as ws

from etcvla.serve import wire

Answer = Callable[[dict[str, Any]], dict[str, Any]]
REFUSED, BUSY = 1011, 1013  # close codes: openpi's for every error, and "try again later"
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a client may ask for. Times in seconds."""

    message: int = 16 * 2**20  # bytes: three cameras of 640 x 480, even as floats
    connections: int = 16
    rate: float = 100.0  # messages a second and connection; those that come faster wait
    idle: float = 600.0  # without a message
    answer: float = 60.0  # until a message is answered, others' before it
    send: float = 20.0  # until a client has taken its answer
    stop: float = 10.0  # for answers under way when the server stops

    def __post_init__(self):
        if not all(value > 0 for value in dataclasses.astuple(self)):
            raise ValueError(f"limits must be positive, got {self}")


class Server:
    """Serves `answer`, one message at a time, whoever sent it.

    Args:
      answer: of a message; runs in a thread of its own. Its ValueError is told to the client; of any other error the
        client hears no more than that it was one, and the log has the rest.
      metadata: what a client is told first.
      key: which clients must give as `Authorization: Api-Key ...` (openpi's `api_key`), also for the metrics; "": none.
    """

    def __init__(
        self, answer: Answer, metadata: dict[str, Any], *, key: str = "", limits: Limits = Limits()
    ):
        self.limits, self.metrics = limits, collections.Counter()
        self._answer, self._hello, self._key = answer, wire.pack(metadata), key
        self._open = self._busy = 0
        self._seconds: collections.deque[float] = collections.deque(maxlen=1000)
        self._stopping = False
        self._worker = concurrent.futures.ThreadPoolExecutor(1, "answer")

    async def run(
        self, host: str, port: int, stop: asyncio.Event, opened: Callable[[int], None]
    ) -> None:
        """Listens until `stop` is set, then answers what it has begun and closes. `opened` is told the port."""
        # One that sends on without reading is not read from, its farewell neither: that is not waited for long.
        async with ws.serve(
            self._talk,
            host,
            port,
            compression=None,
            max_size=self.limits.message,
            max_queue=1,
            close_timeout=1,
            origins=[None],
            process_request=self._admit,
            server_header=None,
        ) as server:
            opened(server.sockets[0].getsockname()[1])
            await stop.wait()
            self._stopping, deadline = True, time.monotonic() + self.limits.stop
            while self._busy and time.monotonic() < deadline:
                await asyncio.sleep(0.02)
        self._worker.shutdown(wait=False, cancel_futures=True)

    def describe(self) -> str:
        """The metrics, in Prometheus' text format."""
        lines = [f"etcvla_{name} {value}" for name, value in sorted(self.metrics.items())]
        if self._seconds:
            lines += [
                f'etcvla_answer_seconds{{quantile="{q}"}} {np.quantile(self._seconds, q):.6f}'
                for q in (0.5, 0.99)
            ]
        return "\n".join([f"etcvla_connections {self._open}", *lines, ""])

    def _admit(self, connection: ws.ServerConnection, request: ws.Request) -> ws.Response | None:
        """Answers plain HTTP, and turns away who may not enter."""
        if request.path == "/healthz":
            status = http.HTTPStatus.SERVICE_UNAVAILABLE if self._stopping else http.HTTPStatus.OK
            return connection.respond(status, "stopping\n" if self._stopping else "OK\n")
        given = " ".join(request.headers.get_all("Authorization"))
        if self._key and not hmac.compare_digest(given.encode(), f"Api-Key {self._key}".encode()):
            self.metrics["refused_total"] += 1
            return connection.respond(
                http.HTTPStatus.UNAUTHORIZED, "this server wants `Authorization: Api-Key KEY`\n"
            )
        if request.path == "/metrics":
            return connection.respond(http.HTTPStatus.OK, self.describe())
        if self._open >= self.limits.connections or self._stopping:
            self.metrics["refused_total"] += 1
            return connection.respond(
                http.HTTPStatus.SERVICE_UNAVAILABLE,
                f"no more than {self.limits.connections} connections\n",
            )
        return None

    async def _talk(self, connection: ws.ServerConnection) -> None:
        self._open += 1
        self.metrics["connections_total"] += 1
        who = connection.remote_address
        log.info("%s: connected", who)
        try:
            await self._converse(connection)
        except (websockets.ConnectionClosed, TimeoutError):
            pass
        finally:
            self._open -= 1
            log.info("%s: gone", who)

    async def _converse(self, connection: ws.ServerConnection) -> None:
        await self._send(connection, self._hello)
        took, free = None, 0.0
        while not self._stopping:
            async with asyncio.timeout(self.limits.idle):
                message = await connection.recv()
            began = time.monotonic()
            if began < free:
                await asyncio.sleep(free - began)
            free = max(began, free) + 1 / self.limits.rate
            self._busy += 1
            try:
                reply = await self._reply(message, took)
                await self._send(connection, reply if isinstance(reply, bytes) else str(reply))
            finally:
                self._busy -= 1
            if isinstance(reply, Exception):
                log.warning("%s: %s", connection.remote_address, reply)
                await connection.close(
                    BUSY if isinstance(reply, TimeoutError) else REFUSED, "the text before says why"
                )
                return
            took = time.monotonic() - began

    async def _reply(self, message: str | bytes, took: float | None) -> bytes | Exception:
        """The packed answer, or what to say instead."""
        self.metrics["messages_total"] += 1
        job = asyncio.get_running_loop().run_in_executor(self._worker, self._compute, message, took)
        try:
            async with asyncio.timeout(self.limits.answer):
                return await job
        except ValueError as error:
            self.metrics["bad_messages_total"] += 1
            return error
        except TimeoutError:
            self.metrics["timeouts_total"] += 1
            return TimeoutError(f"no answer within {self.limits.answer:g} s: the server is busy")
        except Exception:
            self.metrics["errors_total"] += 1
            log.exception("an answer failed")
            return RuntimeError("the server failed on this message; its log says why")

    def _compute(self, message: str | bytes, took: float | None) -> bytes:
        if isinstance(message, str):
            raise ValueError("a text message, expected bytes of msgpack")
        observation = wire.unpack(message)
        began = time.monotonic()
        answer = self._answer(observation)
        seconds = time.monotonic() - began
        self._seconds.append(seconds)
        timing = {"infer_ms": 1000 * seconds} | (
            {} if took is None else {"prev_total_ms": 1000 * took}
        )
        return wire.pack(answer | {"server_timing": timing})

    async def _send(self, connection: ws.ServerConnection, message: bytes | str) -> None:
        async with asyncio.timeout(self.limits.send):
            await connection.send(message)
