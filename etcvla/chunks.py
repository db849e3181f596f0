"""Turn action chunks into one action a control step.

`ActionChunks` executes chunks open loop, in a receding horizon or with temporal ensembling.
`RealTimeChunks` also executes a chunk while the next one is being computed. Both are bookkeeping
without threads or clocks, and neither needs JAX.

Axes: P action horizon, A action width.
"""

from __future__ import annotations

import collections
from typing import Any

import numpy as np

from etcvla.errors import UserError


class ActionChunks:
    """The action chunks of one episode.

    If `needs_query`, query the policy and `add` its chunk; then execute the action of `next`.

    Args:
      replan_steps: control steps between two queries (receding horizon). 0 executes every chunk
        to its end (open loop).
      ensemble: None executes the newest chunk. A number m averages the actions that all chunks
        predict for the step, with weights exp(-m i), i = 0 for the oldest chunk: the temporal
        ensembling of ACT (arXiv 2304.13705), which uses m = 0.01 and replan_steps = 1.
    """

    def __init__(self, replan_steps: int, ensemble: float | None = None):
        self._replan_steps = replan_steps
        self._ensemble = ensemble
        self._chunks: list[tuple[int, np.ndarray]] = []  # (first step, actions), oldest first
        self._step = 0
        self._query_step = 0  # the next query is due at this step
        self._request_step: int | None = None  # the step of the query that is not answered yet

    @property
    def empty(self) -> bool:
        """Whether there is no action for the present step."""
        return len(self.remaining) == 0

    @property
    def remaining(self) -> np.ndarray:
        """Actions float[n, A] of the newest chunk from the present step on."""
        if not self._chunks:
            return np.zeros((0, 0), np.float32)
        first_step, chunk = self._chunks[-1]
        return chunk[self._step - first_step :]

    @property
    def needs_query(self) -> bool:
        """Whether to query the policy now."""
        if self._request_step is not None:
            return False
        return self._step >= self._query_step or self.empty

    def cancel_request(self) -> None:
        """Note that the requested chunk will not arrive."""
        self._request_step = None

    def add(self, chunk: np.ndarray) -> None:
        """Add a chunk float[P, A] that starts at the requested step, else at the present one."""
        first_step = self._step if self._request_step is None else self._request_step
        self._request_step = None
        if self._ensemble is None:
            self._chunks.clear()
        self._chunks.append((first_step, np.asarray(chunk)))
        self._query_step = first_step + (self._replan_steps or len(chunk))

    def next(self) -> np.ndarray:
        """Return the action float[A] of the present step, and go to the next step."""
        self._chunks = [
            (first_step, chunk)
            for first_step, chunk in self._chunks
            if self._step < first_step + len(chunk)
        ]
        actions = [chunk[self._step - first_step] for first_step, chunk in self._chunks]
        self._step += 1
        if len(actions) == 1:
            return actions[0]
        weights = np.exp(-self._ensemble * np.arange(len(actions)))
        weights = weights / weights.sum()
        return (np.stack(actions) * weights[:, None]).sum(axis=0)


class RealTimeChunks(ActionChunks):
    """Action chunks of a robot that does not wait for the policy (arXiv 2506.07339).

    In every control step: send an observation if `request_fields` returns fields, `add` the chunk
    when it arrives, and execute the action of `next`.

    Args:
      execute: control steps of a chunk that are executed before the next query, at least.
      delay: first estimate of the control steps that the policy needs.
      guided: whether a new chunk must continue the old one. Without guidance, the robot jumps
        from one chunk to the next.
      memory: the delay that is sent to the policy is the largest of this many last delays.
    """

    def __init__(self, execute: int, *, delay: int = 0, guided: bool = True, memory: int = 10):
        if execute < 1 or delay < 0:
            raise UserError(f"execute {execute} must be 1 or more, delay {delay} 0 or more")
        super().__init__(execute)
        self._guided = guided
        self._delays = collections.deque([delay], memory)

    def request_fields(self) -> dict[str, Any] | None:
        """Return the fields to add to the observation that is sent now; None if none is due.

        The fields are those of real-time chunking: the remaining actions and the delay.
        """
        if not self.needs_query:
            return None
        self._request_step = self._step
        if self.empty or not self._guided:
            return {}
        return {"rtc": {"prefix": self.remaining, "delay": max(self._delays)}}

    def add(self, chunk: np.ndarray) -> None:
        """Add the requested chunk float32[P, A]; its first steps are in the past by now."""
        self._delays.append(self._step - self._request_step)
        super().add(chunk)
