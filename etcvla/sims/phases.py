"""Which subtask is in progress, computed from positions and contacts.

The same rule applies to a scripted expert, a policy and a teleoperator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from etcvla.sims.task import Phase

# Metres from the target's bounds. Farther away, the gripper cannot be the cause of its motion.
_BESIDE = 0.1


@dataclasses.dataclass(frozen=True)
class Relation:
    """How the gripper and the target relate at one step. Metres."""

    reach: float  # from the grasp centre to the grasp point; NaN where that is unknown
    moved: float  # distance that the target moved since the gripper came beside it
    contact: bool


PHASE_CONDITIONS = {
    "never": lambda relation: False,
    "near": lambda relation: relation.reach < 0.05,
    # Contacts flicker between steps, so motion counts as touch. `moved` only counts motion beside
    # the gripper, because doors swing by themselves.
    "touch": lambda relation: relation.contact or relation.reach < 0.02 or relation.moved > 0.01,
    "moved": lambda relation: relation.moved > 0.02,
}


class PhaseTracker:
    """Follows a task's phases in order and never goes back. Call `update` at every step.

    Args:
      phases: the task's phases.
      settling_steps: control steps after a reset in which no phase ends, because objects settle
        then and may touch the hand until it leaves.
    """

    def __init__(self, phases: Sequence[Phase], settling_steps: int = 12):
        self._settling_steps = settling_steps
        self._conditions = [PHASE_CONDITIONS[phase.until] for phase in phases]
        self.reset()

    def reset(self) -> None:
        """Start an episode."""
        self._phase = 0
        self._rest_position = None

    def update(
        self,
        step: int,
        *,
        grasp_centre: np.ndarray,
        grasp_point: np.ndarray,
        bounds: tuple[np.ndarray, np.ndarray],
        contact: bool,
    ) -> int:
        """Return the index of the phase in progress.

        Args:
          step: control steps since the reset.
          grasp_centre: float[3], of the gripper.
          grasp_point: float[3], of the target.
          bounds: world-aligned corners (low, high) of the target, float[3] each.
          contact: whether the gripper touches the target.
        """
        low, high = bounds
        centre = np.mean(bounds, axis=0)
        outside = np.maximum(low - grasp_centre, grasp_centre - high).clip(0)
        is_beside = np.linalg.norm(outside) < _BESIDE
        if self._rest_position is None or step < self._settling_steps or not is_beside:
            self._rest_position = centre
        if step < self._settling_steps:
            return self._phase
        relation = Relation(
            reach=float(np.linalg.norm(grasp_centre - grasp_point)),
            contact=contact,
            moved=float(np.linalg.norm(centre - self._rest_position)),
        )
        last = len(self._conditions) - 1
        while self._phase < last and self._conditions[self._phase](relation):
            self._phase += 1
        return self._phase
