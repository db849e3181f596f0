"""Metrics of an episode beyond success, read from the simulator's state: no image is rendered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from etcvla.sims.environment import Environment


class EpisodeMetrics:
    """Progress, intention and first touch of one episode.

    Create it after the reset and call `update` after every step.

    Attributes:
      progress: the largest share of the subtasks that was complete at once; 1 on success.
      intention: whether the first object that the gripper touched is one of the goal's; None before
        any touch.
      first_touched: name of that object; one of the goal's if it touched several at once; "" before
        any touch.
    """

    def __init__(self, env: Environment):
        self._env = env
        self._goal_objects = np.array(env.goal_objects)
        self.progress = 0.0
        self.intention: bool | None = None
        self.first_touched = ""
        # bool[N]: objects that were out of touch at some step. Some touch the hand after a reset,
        # until it leaves.
        self._was_apart = ~env.touched()

    def update(self) -> None:
        """Update the metrics from the current state."""
        progress = 1.0 if self._env.success else self._env.progress()
        self.progress = max(self.progress, progress)
        touched = self._env.touched()
        newly_touched = touched & self._was_apart
        if self.intention is None:
            if newly_touched.any():
                self._note_touch(np.flatnonzero(newly_touched))
            elif self._env.success:  # some goals are reached without a touch
                self.intention = True
        self._was_apart |= ~touched

    def _note_touch(self, indices: np.ndarray) -> None:
        goals = np.intersect1d(indices, self._goal_objects)
        self.intention = len(goals) > 0
        first = goals[0] if self.intention else indices[0]
        self.first_touched = self._env.objects[first].name
