"""The robot's end: a client of the server, and acting while the next chunk is still being made.

`Client` speaks openpi's protocol, so it also talks to openpi's server, as openpi's client does to ours. `RealTime` runs
it in a thread, after the algorithm of real-time chunking (arXiv 2506.07339): the robot never stands still, and a new
chunk goes on from the one that is being executed. Needs neither JAX nor a checkpoint.
"""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from websockets.sync.client import connect

from etcvla.serve import wire
from etcvla.serve.client_formats import PROTOCOL

Infer = Callable[
    [dict[str, Any]], Mapping[str, Any]
]  # an observation to {"actions": float32[P, A], ..}


class Client:
    """A connection to a policy server.

    Args:
      address: as ws://localhost:8000. key: what the server wants, if anything.
      timeout: seconds that an answer may take.

    Raises OSError if nobody is there, ValueError for a server of another protocol, and
    websockets.exceptions.InvalidStatus if it turns us away.
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
        if self.metadata.get("protocol", PROTOCOL) != PROTOCOL:
            self.close()
            raise ValueError(
                f"{address} speaks protocol {self.metadata['protocol']!r}, this client {PROTOCOL}; update "
                "the older of the two"
            )

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """The server's answer: `actions` float32[P, A], and timing.

        Raises RuntimeError with what the server says is wrong, TimeoutError if it says nothing.
        """
        self._connection.send(wire.pack(observation))
        answer = self._connection.recv(self.timeout)
        if isinstance(answer, str):
            raise RuntimeError(f"the server refuses: {answer}")
        return wire.unpack(answer)

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()


class RealTimeChunks:
    """Which action is next while another chunk is on its way: the bookkeeping, without threads or clocks.

    A turn is a control step: `look` says whether to ask for a chunk now, `arrive` takes it, `next` gives the action.

    Args:
      execute: steps of a chunk that are executed before the next is asked for, at least.
      delays: steps that the next chunk is thought to take are the most of these: those that the last ones took.
      guided: whether a chunk has to go on from the one before; without, the robot jumps from one to the other.
    """

    def __init__(self, execute: int, *, delay: int = 0, guided: bool = True, memory: int = 10):
        if execute < 1 or delay < 0:
            raise ValueError(f"execute {execute} must be 1 or more, delay {delay} 0 or more")
        self.execute, self.guided = execute, guided
        self._delays = collections.deque([delay], memory)
        self._chunk, self._at = np.zeros((0, 0), np.float32), 0
        self._since: int | None = None  # steps since the look, while a chunk is on its way

    @property
    def empty(self) -> bool:
        """Nothing is left to execute: the robot has to wait."""
        return self._at >= len(self._chunk)

    def look(self) -> dict[str, Any] | None:
        """What to add to the observation that is sent now, or None where none is to be sent."""
        if self._since is not None or (self._at < self.execute and not self.empty):
            return None
        self._since = 0
        if self.empty or not self.guided:
            return {}
        return {"rtc": {"prefix": self._chunk[self._at :], "delay": max(self._delays)}}

    def arrive(self, chunk: np.ndarray) -> None:
        """The chunk float32[P, A] that was asked for is there. Its first steps are past by now."""
        self._delays.append(self._since)
        self._chunk, self._at, self._since = chunk, self._since, None

    def lost(self) -> None:
        """The chunk that was asked for will not come."""
        self._since = None

    def next(self) -> np.ndarray:
        """The action float32[A] of this step."""
        action = self._chunk[self._at]
        self._at += 1
        if self._since is not None:
            self._since += 1
        return action


class RealTime:
    """Acts at every control step, whether or not the policy has answered by then.

    Args:
      infer: `Client.infer`, openpi's, or what else answers observations; it is called from a thread.
      execute, delay, guided: as of `RealTimeChunks`. openpi's servers know no guidance: take guided=False there.
    """

    def __init__(self, infer: Infer, *, execute: int, delay: int = 0, guided: bool = True):
        self.chunks = RealTimeChunks(execute, delay=delay, guided=guided)
        self._infer, self._pending = infer, None
        self._worker = concurrent.futures.ThreadPoolExecutor(1, "infer")

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """The action float32[A] for this control step. Waits only where no action is left.

        Raises what `infer` raised; the next call looks again.
        """
        if self._pending and self._pending.done():
            self._take()
        if (extra := self.chunks.look()) is not None:
            self._pending = self._worker.submit(self._infer, dict(observation) | extra)
        if self.chunks.empty:
            self._take()
        return self.chunks.next()

    def _take(self) -> None:
        pending, self._pending = self._pending, None
        try:
            chunk = np.asarray(pending.result()["actions"])
        except Exception:
            self.chunks.lost()
            raise
        self.chunks.arrive(chunk)

    def close(self) -> None:
        """Ends the thread, after the answer under way."""
        self._worker.shutdown(cancel_futures=True)
