"""How far an episode came, and whether the gripper went for the right thing: from the simulator's state, not drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # one simulator does without the other's packages
    from etcvla.sims.environment import Environment


class EpisodeMetrics:
    """Watches one episode: make it after the reset, and call `update` after every step."""

    def __init__(self, env: Environment):
        self._env, self._right = env, np.array(env.goal_objects)
        self.progress = 0.0  # the farthest share of the subtasks that was reached; 1 on success
        self.intention: bool | None = (
            None  # was what the gripper first touched a right thing? None: touched nothing
        )
        self._apart = ~env.touched()  # some things touch the hand at a reset, until it leaves

    def update(self) -> None:
        """AppearanceEditor at the present state."""
        self.progress = max(self.progress, 1.0 if self._env.success else self._env.progress())
        touched = self._env.touched()
        if self.intention is None and (touched & self._apart).any():
            self.intention = bool((touched & self._apart)[self._right].any())
        elif (
            self.intention is None and self._env.success
        ):  # some goals are near enough without a touch
            self.intention = True
        self._apart |= ~touched
