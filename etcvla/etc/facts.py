"""Per-frame facts of one camera, and the candidate items that are built from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from typing import NamedTuple

import numpy as np

from etcvla.etc.annotation import Annotation
from etcvla.etc.question_types import QUESTION_TYPES, QuestionType

MIN_VISIBLE = 0.2  # objects with a smaller visible fraction count neither as shown nor as absent
MIN_SIDE = 0.03  # of the image; rounding to location bins would distort smaller boxes


class Candidate(NamedTuple):
    """A possible item at step `t`. Its text is written only if the candidate is drawn.

    `topic` identifies what the question is about and `value` is the fact about it, for instance
    ("gripper_side", object 2) and "left". All candidates with the same fact are drawn together as
    often as all candidates with another fact of the question type, so that frequent facts do not
    crowd out rare ones.
    """

    t: int
    question_type: str
    topic: Hashable
    value: Hashable
    fields: Mapping[str, str | np.ndarray]  # of the question's template: words or coordinates
    answer: str | np.ndarray  # words or coordinates
    swapped: bool = False  # for a relation of two nouns: the second noun is the question's subject

    @property
    def fact(self) -> Hashable:
        """The topic with its value."""
        return self.topic, self.value

    @property
    def question(self) -> Hashable:
        """The part of the topic that can be read from the question's words alone."""
        return self.topic, self.swapped

    @property
    def spec(self) -> QuestionType:
        """The question type."""
        return QUESTION_TYPES[self.question_type]


class FrameView:
    """The facts of one camera, with masks of the facts that are reliable enough for questions.

    Attributes (T steps, N objects):
      gripper: float32[T, 2] image points.
      gripper_in_image: bool[T].
      box: float32[T, N, 4].
      visible: float32[T, N].
      shown: bool[T, N], True for objects that are large and visible enough.
      center: float32[T, N, 2], centres of the boxes.
      width: float32[T, N], widths of the boxes.
    """

    def __init__(self, annotation: Annotation, camera: int = 0):
        self.annotation = annotation
        self.name = annotation.cameras[camera]
        self.gripper = annotation.gripper_pixel[:, camera]
        self.gripper_in_image = in_image(self.gripper)
        self.box = annotation.box[:, camera]
        self.visible = annotation.visible[:, camera]
        low = self.box[..., :2]
        high = self.box[..., 2:]
        # Objects with a known box and an unknown (NaN) visible fraction count as visible.
        self.shown = (high - low >= MIN_SIDE).all(-1) & ~(self.visible < MIN_VISIBLE)
        self.center = (low + high) / 2
        self.width = (high - low)[..., 1]
        self._depth_row = annotation.camera_matrix[:, camera, 2]

    def depth(self, points: np.ndarray) -> np.ndarray:
        """Compute the distance along the optical axis in metres, float[T, K].

        Args:
          points: base-frame points, float[T, K, 3].
        """
        direction = self._depth_row[:, :3]
        scaled = np.einsum("ti,tki->tk", direction, points) + self._depth_row[:, 3:]
        return scaled / np.linalg.norm(direction, axis=-1)[:, None]


def in_image(points: np.ndarray) -> np.ndarray:
    """Return a mask bool[...] of the points float[..., 2] that are known and inside the image."""
    return ((points >= 0) & (points <= 1)).all(-1)


def count_dropped(dropped: Counter, question_type: str, reason: str, mask: np.ndarray) -> None:
    """Add the number of true entries of `mask` to `dropped` under "question_type: reason"."""
    count = int(np.count_nonzero(mask))
    if count:
        dropped[f"{question_type}: {reason}"] += count
