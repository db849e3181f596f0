"""How chunks become actions: open loop, receding horizon, temporal ensembling.

Axes: P steps of a chunk, A action width.
"""

from __future__ import annotations

import numpy as np


class Chunks:
    """The actions of one episode. While `needs_query`, `add` a chunk that was just predicted; then take `next`.

    Args:
      replan_steps: control steps between two looks (receding horizon); 0 is every chunk to its end (open loop).
      ensemble: None acts on the newest chunk. A number m averages what all chunks say of the step, with weights
        exp(-m i), i = 0 for the oldest: ACT's temporal ensembling (arXiv 2304.13705), where m is 0.01 and replan_steps is 1.

    Raises ValueError for a negative number.
    """

    def __init__(self, replan_steps: int, ensemble: float | None = None):
        if replan_steps < 0 or (ensemble is not None and ensemble < 0):
            raise ValueError(
                f"replan_steps {replan_steps} and ensemble {ensemble} must not be negative"
            )
        self._replan_steps, self._ensemble = replan_steps, ensemble
        self._chunks: list[
            tuple[int, np.ndarray]
        ] = []  # the step that each begins at, oldest first
        self._step = self._look = 0

    @property
    def needs_query(self) -> bool:
        """Is it time for another look?"""
        return self._step >= self._look

    def add(self, chunk: np.ndarray) -> None:
        """float[P, A] from the present step on. Raises ValueError if it is shorter than `replan_steps`."""
        if len(chunk) < max(self._replan_steps, 1):
            raise ValueError(
                f"a chunk of {len(chunk)} actions, but the next look is after replan_steps = {self._replan_steps}"
            )
        if self._ensemble is None:
            self._chunks.clear()
        self._chunks.append((self._step, np.asarray(chunk)))
        self._look = self._step + (self._replan_steps or len(chunk))

    def next(self) -> np.ndarray:
        """float[A], the action of the present step, which is over then."""
        self._chunks = [
            (first, chunk) for first, chunk in self._chunks if self._step < first + len(chunk)
        ]
        said = np.stack([chunk[self._step - first] for first, chunk in self._chunks])
        self._step += 1
        weights = np.exp(-(self._ensemble or 0.0) * np.arange(len(said)))
        return (said * (weights / weights.sum())[:, None]).sum(0) if len(said) > 1 else said[0]
