"""Metrics of an episode beyond success, read from the simulator's state: no image is rendered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from etcvla.sims.environment import Environment


class EpisodeMetrics:
    """Progress and intention of one episode.

    Create it after the reset and call `update` after every step.

    Attributes:
      progress: the largest share of the subtasks that was complete at once; 1 on success.
      intention: whether the first object that the gripper touched is one of the goal's; None before
        any touch.
    """

    def __init__(self, env: Environment):
        self._env = env
        self._goal_objects = np.array(env.goal_objects)
        self.progress = 0.0
        self.intention: bool | None = None
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
                self.intention = bool(newly_touched[self._goal_objects].any())
            elif self._env.success:  # some goals are reached without a touch
                self.intention = True
        self._was_apart |= ~touched
