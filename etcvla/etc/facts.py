"""What a view knows at each frame, and the candidate items that are built from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import NamedTuple

import numpy as np

from etcvla.etc.annotation import Annotation

MIN_VISIBLE = 0.2  # visible share below which an object counts as neither seen nor absent
MIN_SIDE = 0.03  # box side in images below which rounding to location bins would distort the box


class Candidate(NamedTuple):
    """An item that could be asked at step `t`; words are written only if it is drawn.

    `what` is asked and `value` is the fact about it ("the gripper and the mug", "left"). Items of the same fact are the
    same thing to learn: all of them together are drawn as often as those of another fact of the question_type, so that a rare
    answer is not buried under a common one.
    """

    t: int
    question_type: str
    what: Hashable
    value: Hashable
    slots: dict[str, str | np.ndarray]  # words, or coordinates
    answer: str | np.ndarray  # words, or coordinates
    order: bool = False  # which of the two is the question's subject, where a relation may be asked either way

    @property
    def fact(self) -> Hashable:
        return self.what, self.value

    @property
    def question(self) -> Hashable:
        """What is asked in this order: as much as the question tells one who does not look."""
        return self.what, self.order


class FrameView:
    """One camera's facts of T steps and N objects, with masks of what is known well enough to ask about."""

    def __init__(self, annotation: Annotation, camera: int = 0):
        self.annotation, self.name, self._camera = annotation, annotation.cameras[camera], camera
        self.gripper = annotation.gripper_pixel[:, camera]  # [T, 2]
        self.gripper_seen = in_image(self.gripper)  # bool[T]
        self.box = annotation.box[:, camera]  # [T, N, 4]
        self.visible = annotation.visible[:, camera]  # [T, N]
        sides = self.box[..., 2:] - self.box[..., :2]
        # An unknown visible share does not speak against a box that is known.
        self.shown = (sides >= MIN_SIDE).all(-1) & ~(self.visible < MIN_VISIBLE)  # bool[T, N]
        self.center = (self.box[..., :2] + self.box[..., 2:]) / 2  # [T, N, 2]
        self.width = sides[..., 1]

    def depth(self, points: np.ndarray) -> np.ndarray:
        """Metres along the optical axis, float[T, K], of base-frame points float[T, K, 3]."""
        row = self.annotation.camera_matrix[:, self._camera, 2]
        return (np.einsum("ti,tki->tk", row[:, :3], points) + row[:, 3:]) / np.linalg.norm(
            row[:, :3], axis=-1
        )[:, None]


def in_image(points: np.ndarray) -> np.ndarray:
    """bool[...]: image points float[..., 2] that are known and on the image."""
    return ((points >= 0) & (points <= 1)).all(-1)


def count_dropped(dropped: Counter, question_type: str, reason: str, mask: np.ndarray) -> None:
    """Counts the true entries of `mask` as items of `question_type` that are not asked."""
    if count := int(np.count_nonzero(mask)):
        dropped[f"{question_type}: {reason}"] += count
