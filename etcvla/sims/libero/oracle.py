"""LIBERO's part of the oracle: base frame, mirrored images, phases of pick-and-place."""

from __future__ import annotations

import dataclasses

import numpy as np

Facts = dict[str, np.ndarray]  # the step fields of an annotation, of one frame
LIFTED = 0.015  # metres above the start position
_STEADY_STEPS = 2  # steps in a row that a condition must hold, because contacts flicker
_DROPPED_STEPS = 5  # steps without the gripper after which an object counts as dropped
_OVER_PLACE = 0.05  # metres in the plane between the object and the centre of its place


def mirror(facts: Facts) -> Facts:
    """Return the facts of a frame for images with left and right exchanged."""
    matrix = facts["camera_matrix"].copy()
    matrix[:, 0] = matrix[:, 2] - matrix[:, 0]
    box = facts["box"].copy()
    box[..., 1] = 1 - facts["box"][..., 3]
    box[..., 3] = 1 - facts["box"][..., 1]
    return {
        **facts,
        "camera_matrix": matrix,
        "box": box,
        "gripper_pixel": _mirror_pixels(facts["gripper_pixel"]),
        "grasp_pixel": _mirror_pixels(facts["grasp_pixel"]),
    }


def _mirror_pixels(pixels: np.ndarray) -> np.ndarray:
    """Mirror image points (y, x) float[..., 2]."""
    return np.stack([pixels[..., 0], 1 - pixels[..., 1]], -1)


def to_base_frame(facts: Facts, rotation: np.ndarray, origin: np.ndarray) -> Facts:
    """Convert the facts of a frame from the world to the frame of the robot's base.

    Args:
      facts: in world coordinates.
      rotation: float[3, 3], its columns are the base's axes in the world.
      origin: of the base in the world, float[3] metres.
    """
    pose = np.eye(4)
    pose[:3, :3] = rotation
    pose[:3, 3] = origin
    return {
        **facts,
        "gripper_position": (facts["gripper_position"] - origin) @ rotation,
        "position": (facts["position"] - origin) @ rotation,
        "camera_matrix": (facts["camera_matrix"] @ pose).astype(np.float32),
    }


@dataclasses.dataclass(frozen=True)
class PickPlaceState:
    """The gripper, the object and its place at one step. World metres."""

    target: np.ndarray  # centre of the object, float[3]
    place: np.ndarray  # centre of where it goes, float[3]
    touched: bool  # the gripper touches the object
    within: bool  # the grasp centre is inside the object's bounding box


class PickPlaceTracker:
    """Follows the phases move, grasp, carry, place (`tasks.PICK_PLACE`).

    Call `update` at every step.

    If the object is dropped, the phase returns to the first one.
    """

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Start an episode."""
        self.phase = 0
        self._rest_position = None
        self._steps_held = 0  # steps in a row that the condition of the phase held
        self._steps_apart = 0

    def update(self, state: PickPlaceState) -> int:
        """Return the index of the phase in progress."""
        if self._rest_position is None:
            self._rest_position = state.target
        in_gripper = state.touched or state.within
        self._steps_apart = 0 if in_gripper else self._steps_apart + 1
        is_lifted = bool(state.target[2] - self._rest_position[2] > LIFTED)
        if self.phase in (1, 2) and self._steps_apart >= _DROPPED_STEPS and not is_lifted:
            self.phase = 0
            self._steps_held = 0
            self._rest_position = state.target
            return self.phase
        offset = (state.target - state.place)[:2]
        conditions = (
            in_gripper,
            state.touched and is_lifted,
            bool(np.linalg.norm(offset) < _OVER_PLACE),
            False,
        )
        self._steps_held = self._steps_held + 1 if conditions[self.phase] else 0
        if self._steps_held >= _STEADY_STEPS:
            self.phase += 1
            self._steps_held = 0
        return self.phase
