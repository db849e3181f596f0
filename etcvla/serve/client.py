"""Our client of a policy server, and a controller that acts while the policy computes.

`Client` uses openpi's protocol, so it also works with openpi's server, and openpi's client works
with ours. `RealTimeController` implements real-time chunking (arXiv 2506.07339): the robot never
waits for the policy, and a new chunk continues the actions that are being executed. This module
needs neither JAX nor a checkpoint.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from websockets.sync.client import connect

from etcvla.chunks import RealTimeChunks
from etcvla.errors import UserError
from etcvla.serve import wire
from etcvla.serve.client_formats import check_protocol

# An observation to {"actions": float32[P, A], ...}.
Infer = Callable[[dict[str, Any]], Mapping[str, Any]]


class Client:
    """A connection to a policy server.

    Args:
      address: such as ws://localhost:8000.
      key: API key of the server; "" if it has none.
      timeout: seconds to wait for an answer.

    Raises OSError if no server listens, UserError for a server of another protocol version, and
    websockets.exceptions.InvalidStatus if the server refuses the connection.
    """

    def __init__(self, address: str, *, key: str = "", timeout: float = 60.0):
        self.timeout = timeout
        self._connection = connect(
            address,
            compression=None,
            max_size=None,
            additional_headers={"Authorization": f"Api-Key {key}"} if key else None,
        )
        self.metadata = wire.unpack(self._connection.recv(timeout))
        try:
            check_protocol(address, self.metadata)
        except UserError:
            self.close()
            raise

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """Return the server's answer: `actions` float32[P, A] and timing.

        Raises RuntimeError with the server's error message, TimeoutError without an answer.
        """
        self._connection.send(wire.pack(observation))
        answer = self._connection.recv(self.timeout)
        if isinstance(answer, str):
            raise RuntimeError(f"the server answered with an error: {answer}")
        return wire.unpack(answer)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class RealTimeController:
    """Acts at every control step, also while the policy computes the next chunk.

    Args:
      infer: `Client.infer`, that of openpi's client, or any function that answers observations.
        A thread calls it.
      execute: see `RealTimeChunks`.
      delay: see `RealTimeChunks`.
      guided: see `RealTimeChunks`. openpi's servers do not support guidance; use False there.
    """

    def __init__(self, infer: Infer, *, execute: int, delay: int = 0, guided: bool = True):
        self._chunks = RealTimeChunks(execute, delay=delay, guided=guided)
        self._infer = infer
        self._pending: concurrent.futures.Future | None = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "infer")

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the action float32[A] of this control step; wait only if no action is left.

        Raises the exceptions of `infer`; the next call queries the policy again.
        """
        if self._pending and self._pending.done():
            self._receive()
        fields = self._chunks.request_fields()
        if fields is not None:
            self._pending = self._thread.submit(self._infer, dict(observation) | fields)
        if self._chunks.empty:
            self._receive()
        return self._chunks.next()

    def _receive(self) -> None:
        pending = self._pending
        self._pending = None
        try:
            chunk = np.asarray(pending.result()["actions"])
        except Exception:
            self._chunks.cancel_request()
            raise
        self._chunks.add(chunk)

    def close(self) -> None:
        """Stop the thread after its present answer."""
        self._thread.shutdown(cancel_futures=True)
