"""What LIBERO adds to the oracle: the base frame, mirrored images, and the subtasks of picking and placing."""

from __future__ import annotations

import dataclasses

import numpy as np

# Conditions must hold at this many steps in a row: contacts flicker.
_STEADY = 2
_DROPPED = 5  # steps without touch, the hand away, before a thing counts as dropped
LIFTED = 0.015  # metres above where it rested
_OVER = 0.05  # metres beside the place, seen from above


def mirror(facts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Facts of one frame for images with left and right exchanged."""
    flipped = dict(facts)
    matrix = facts["camera_matrix"].copy()
    matrix[:, 0] = matrix[:, 2] - matrix[:, 0]
    box = facts["box"].copy()
    box[..., [1, 3]] = 1 - box[..., [3, 1]]
    flipped.update(camera_matrix=matrix, box=box)
    for name in ("gripper_pixel", "grasp_pixel"):
        flipped[name] = np.stack([facts[name][..., 0], 1 - facts[name][..., 1]], -1)
    return flipped


def to_base_frame(
    facts: dict[str, np.ndarray], rotation: np.ndarray, origin: np.ndarray
) -> dict[str, np.ndarray]:
    """Facts in world coordinates as facts in the frame of the robot's base.

    Args:
      rotation: float[3, 3], its columns the base's axes in the world. origin: float[3] metres.
    """
    pose = np.vstack([np.column_stack([rotation, origin]), [0, 0, 0, 1]])
    moved = {name: (facts[name] - origin) @ rotation for name in ("gripper_position", "position")}
    return {**facts, **moved, "camera_matrix": (facts["camera_matrix"] @ pose).astype(np.float32)}


@dataclasses.dataclass(frozen=True)
class Moment:
    """The gripper, the thing and its place at one step. World metres."""

    thing: np.ndarray  # float[3], its centre
    place: np.ndarray  # float[3], the centre of where it goes
    touched: bool  # by the gripper
    within: bool  # the grasp centre is inside the thing's bounding box


class PickPlace:
    """Walks through move, grasp, carry, place (`libero_tasks.PICK_PLACE`); back to the start if the thing is dropped.

    Call `update` at every step.
    """

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Starts an episode."""
        self.phase, self._rest, self._steps, self._apart = 0, None, 0, 0

    def update(self, now: Moment) -> int:
        """The index of the phase in progress."""
        if self._rest is None:
            self._rest = now.thing
        self._apart = 0 if now.touched or now.within else self._apart + 1
        lifted = now.thing[2] - self._rest[2] > LIFTED
        if self.phase in (1, 2) and self._apart >= _DROPPED and not lifted:
            self.phase, self._steps, self._rest = 0, 0, now.thing
            return self.phase
        held = (
            now.touched or now.within,
            now.touched and lifted,
            bool(np.linalg.norm((now.thing - now.place)[:2]) < _OVER),
            False,
        )[self.phase]
        self._steps = self._steps + 1 if held else 0
        if self._steps >= _STEADY:
            self.phase, self._steps = self.phase + 1, 0
        return self.phase
