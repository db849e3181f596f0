"""Which subtask is in progress, told from where things are: the same rule for an expert, a policy or a person."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from etcvla.sims.task import Phase

# Just after a reset objects fall into place, and some touch the hand until it leaves. Steps.
_SETTLING = 12
_BESIDE = 0.1  # metres from the target's bounds: farther away, the gripper cannot be what moves it


@dataclasses.dataclass(frozen=True)
class Relation:
    """The gripper and the target at one step. Metres."""

    reach: float  # grasp centre to grasp point; NaN where that is unknown
    moved: float  # the target since the gripper is beside it
    contact: bool


PHASE_CONDITIONS = {
    "never": lambda now: False,
    "near": lambda now: now.reach < 0.05,
    # Contacts flicker between steps, so motion counts too; but only beside the gripper, for doors swing by themselves.
    "touch": lambda now: now.contact or now.reach < 0.02 or now.moved > 0.01,
    "moved": lambda now: now.moved > 0.02,
}


class PhaseTracker:
    """Walks through a task's phases; never goes back. Call `update` at every step."""

    def __init__(self, phases: Sequence[Phase]):
        self._conditions = [PHASE_CONDITIONS[phase.until] for phase in phases]
        self.reset()

    def reset(self) -> None:
        """Starts an episode."""
        self._phase, self._rest = 0, None

    def update(
        self,
        step: int,
        *,
        grasp_centre: np.ndarray,
        grasp_point: np.ndarray,
        bounds: tuple[np.ndarray, np.ndarray],
        contact: bool,
    ) -> int:
        """The index of the phase in progress.

        Args:
          step: control steps since the reset.
          grasp_centre: float[3] of the gripper. grasp_point, bounds: of the target, world-aligned (low, high).
        """
        centre = np.mean(bounds, axis=0)
        gap = np.linalg.norm(np.maximum(bounds[0] - grasp_centre, grasp_centre - bounds[1]).clip(0))
        if self._rest is None or step < _SETTLING or gap >= _BESIDE:
            self._rest = centre
        if step < _SETTLING:
            return self._phase
        now = Relation(
            reach=float(np.linalg.norm(grasp_centre - grasp_point)),
            contact=contact,
            moved=float(np.linalg.norm(centre - self._rest)),
        )
        while self._phase < len(self._conditions) - 1 and self._conditions[self._phase](now):
            self._phase += 1
        return self._phase
