"""A websocket server with openpi's protocol, safe to expose to untrusted clients.

The server sends its metadata first. Then it answers each message of the client (an observation)
with actions and their timing. An error is answered with one text message, and the connection is
closed with code 1011, as in openpi's websocket_policy_server.py. In addition to openpi's server
there are `Limits` and an API key, and web pages cannot connect.

GET /healthz returns OK (503 while the server stops); GET /metrics returns counters in the text
format of Prometheus.
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

from etcvla.errors import UserError
from etcvla.serve import wire

Answer = Callable[[dict[str, Any]], dict[str, Any]]
CLOSE_ERROR = 1011  # close code of openpi's server for every error
CLOSE_BUSY = 1013  # "try again later"
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits for clients. Times in seconds."""

    message: int = 16 * 2**20  # bytes; enough for three cameras of 640 x 480 as floats
    connections: int = 16
    rate: float = 100.0  # messages per second and connection; faster messages wait
    idle: float = 600.0  # maximum time without a message
    answer: float = 60.0  # maximum time to answer a message, earlier messages included
    send: float = 20.0  # maximum time until a client has received its answer
    stop: float = 10.0  # maximum time for pending answers when the server stops

    def __post_init__(self):
        if not all(value > 0 for value in dataclasses.astuple(self)):
            raise UserError(f"limits must be positive, got {self}")


class Server:
    """Answers messages one at a time, in the order in which they arrive from all clients.

    Args:
      answer: maps a message to its answer; runs in a thread of its own. The client gets the
        message of its UserError. Of any other exception the client gets only that there was one,
        and the log gets the traceback.
      metadata: the first message to every client.
      key: API key that clients must send as `Authorization: Api-Key ...` (openpi's `api_key`),
        also for the metrics; "" for none.
    """

    def __init__(
        self,
        answer: Answer,
        metadata: dict[str, Any],
        *,
        key: str = "",
        limits: Limits | None = None,
    ):
        self.limits = limits or Limits()
        self.metrics = collections.Counter()
        self._answer = answer
        self._metadata_message = wire.pack(metadata)
        self._key = key
        self._connections = 0
        self._pending_answers = 0
        self._answer_seconds: collections.deque[float] = collections.deque(maxlen=1000)
        self._stopping = False
        self._answer_thread = concurrent.futures.ThreadPoolExecutor(1, "answer")

    async def run(
        self, host: str, port: int, stop: asyncio.Event, on_listening: Callable[[int], None]
    ) -> None:
        """Listen until `stop` is set, then finish the pending answers and close.

        Args:
          port: 0 takes a free port.
          on_listening: called with the port once the server listens.
        """
        async with ws.serve(
            self._handle_connection,
            host,
            port,
            compression=None,
            max_size=self.limits.message,
            max_queue=1,
            # A client that only sends does not read the closing handshake either.
            close_timeout=1,
            origins=[None],  # browsers send an origin, so they are refused
            process_request=self._handle_request,
            server_header=None,
        ) as server:
            on_listening(server.sockets[0].getsockname()[1])
            await stop.wait()
            self._stopping = True
            deadline = time.monotonic() + self.limits.stop
            while self._pending_answers and time.monotonic() < deadline:
                await asyncio.sleep(0.02)
        self._answer_thread.shutdown(wait=False, cancel_futures=True)

    def describe_metrics(self) -> str:
        """Return the metrics in the text format of Prometheus."""
        lines = [f"etcvla_connections {self._connections}"]
        lines += [f"etcvla_{name} {value}" for name, value in sorted(self.metrics.items())]
        if self._answer_seconds:
            for quantile in (0.5, 0.99):
                seconds = np.quantile(self._answer_seconds, quantile)
                lines.append(f'etcvla_answer_seconds{{quantile="{quantile}"}} {seconds:.6f}')
        return "\n".join(lines) + "\n"

    def _handle_request(
        self, connection: ws.ServerConnection, request: ws.Request
    ) -> ws.Response | None:
        """Answer plain HTTP requests and refuse clients; None accepts a websocket."""
        if request.path == "/healthz":
            if self._stopping:
                return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "stopping\n")
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if not self._has_key(request):
            self.metrics["refused_total"] += 1
            return connection.respond(
                http.HTTPStatus.UNAUTHORIZED, "this server needs `Authorization: Api-Key KEY`\n"
            )
        if request.path == "/metrics":
            return connection.respond(http.HTTPStatus.OK, self.describe_metrics())
        if self._connections >= self.limits.connections or self._stopping:
            self.metrics["refused_total"] += 1
            return connection.respond(
                http.HTTPStatus.SERVICE_UNAVAILABLE,
                f"no more than {self.limits.connections} connections\n",
            )
        return None

    def _has_key(self, request: ws.Request) -> bool:
        if not self._key:
            return True
        authorization = " ".join(request.headers.get_all("Authorization"))
        expected = f"Api-Key {self._key}"
        return hmac.compare_digest(authorization.encode(), expected.encode())

    async def _handle_connection(self, connection: ws.ServerConnection) -> None:
        self._connections += 1
        self.metrics["connections_total"] += 1
        address = connection.remote_address
        log.info("%s: connected", address)
        try:
            await self._answer_messages(connection)
        except (websockets.ConnectionClosed, TimeoutError):
            pass
        finally:
            self._connections -= 1
            log.info("%s: disconnected", address)

    async def _answer_messages(self, connection: ws.ServerConnection) -> None:
        await self._send(connection, self._metadata_message)
        previous_seconds = None  # of the client's previous message, from receipt to answer
        next_start = 0.0  # the rate limit allows the next message at this time
        while not self._stopping:
            async with asyncio.timeout(self.limits.idle):
                message = await connection.recv()
            received = time.monotonic()
            if received < next_start:
                await asyncio.sleep(next_start - received)
            next_start = max(received, next_start) + 1 / self.limits.rate
            self._pending_answers += 1
            try:
                reply = await self._reply(message, previous_seconds)
                await self._send(connection, reply if isinstance(reply, bytes) else str(reply))
            finally:
                self._pending_answers -= 1
            if isinstance(reply, Exception):
                log.warning("%s: %s", connection.remote_address, reply)
                code = CLOSE_BUSY if isinstance(reply, TimeoutError) else CLOSE_ERROR
                await connection.close(code, "the last text message has the reason")
                return
            previous_seconds = time.monotonic() - received

    async def _reply(
        self, message: str | bytes, previous_seconds: float | None
    ) -> bytes | Exception:
        """Return the packed answer, or an exception whose text the client gets."""
        self.metrics["messages_total"] += 1
        loop = asyncio.get_running_loop()
        job = loop.run_in_executor(self._answer_thread, self._compute, message, previous_seconds)
        try:
            async with asyncio.timeout(self.limits.answer):
                return await job
        except UserError as error:
            self.metrics["bad_messages_total"] += 1
            return error
        except TimeoutError:
            self.metrics["timeouts_total"] += 1
            return TimeoutError(f"no answer within {self.limits.answer:g} s: the server is busy")
        except Exception:
            self.metrics["errors_total"] += 1
            log.exception("an answer failed")
            return RuntimeError("the server failed on this message; its log has the reason")

    def _compute(self, message: str | bytes, previous_seconds: float | None) -> bytes:
        if isinstance(message, str):
            raise UserError("a text message, expected bytes of msgpack")
        observation = wire.unpack(message)
        start = time.monotonic()
        answer = self._answer(observation)
        seconds = time.monotonic() - start
        self._answer_seconds.append(seconds)
        timing = {"infer_ms": 1000 * seconds}
        if previous_seconds is not None:
            timing["prev_total_ms"] = 1000 * previous_seconds
        return wire.pack(answer | {"server_timing": timing})

    async def _send(self, connection: ws.ServerConnection, message: bytes | str) -> None:
        async with asyncio.timeout(self.limits.send):
            await connection.send(message)
