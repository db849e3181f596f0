"""Per-frame facts of one camera, and the candidate items that are built from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from etcvla.etc.annotation import Annotation
from etcvla.etc.question_types import QUESTION_TYPES, QuestionType

MIN_VISIBLE = 0.2  # objects with a smaller visible fraction count neither as shown nor as absent
MIN_SIDE = 0.03  # of the image; rounding to location bins would distort smaller boxes


class Candidate(NamedTuple):
    """A possible item at step `t`. Its text is written only if the candidate is drawn.

    `value` is the fact that is asked for and `subject` identifies what it is a fact about, for
    instance "left" about object 2. All candidates with the same fact are drawn together as often
    as all candidates with another fact of the question type, so that frequent facts do not crowd
    out rare ones.
    """

    t: int
    question_type: str
    value: Hashable
    fields: Mapping[str, str | np.ndarray]  # of the question's template: words or coordinates
    answer: str | np.ndarray  # words or coordinates
    subject: Hashable = None
    swapped: bool = False  # for a relation of two nouns: the second noun is the question's subject

    @property
    def topic(self) -> Hashable:
        """What the question is about."""
        return self.question_type, self.subject

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


Candidates = Iterator[Candidate]


class FrameView:
    """The facts of one camera, with masks of the facts that are reliable enough for questions.

    Attributes (T steps, N objects):
      gripper: float32[T, 2] image points.
      gripper_in_image: bool[T].
      box: float32[T, N, 4].
      visible: float32[T, N].
      shown: bool[T, N], True for objects that are large and visible enough.
      center: float32[T, N, 2], centres of the boxes.
    """

    def __init__(self, annotation: Annotation, camera: int = 0):
        self.annotation = annotation
        self.name = annotation.cameras[camera]
        self.gripper = annotation.gripper_pixel[:, camera]
        self.gripper_in_image = in_image(self.gripper)
        self.box = annotation.box[:, camera]
        self.visible = annotation.visible[:, camera]
        low, high = np.split(self.box, 2, axis=-1)
        # Objects with a known box and an unknown (NaN) visible fraction count as visible.
        self.shown = (high - low >= MIN_SIDE).all(-1) & ~(self.visible < MIN_VISIBLE)
        self.center = (low + high) / 2
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


def select(
    dropped: Counter,
    question_type: str,
    conditions: Mapping[str, np.ndarray],
    among: np.ndarray | bool = True,
) -> np.ndarray:
    """Return a mask of the entries that meet all conditions, and count the others by reason.

    Args:
      dropped: counts by "question_type: reason".
      question_type: what the entries are asked about.
      conditions: masks by the reason why an entry is dropped that does not meet the condition. An
        entry is counted under the first condition that it does not meet.
      among: mask of the entries to consider.
    """
    selected = among
    for reason, condition in conditions.items():
        count = int(np.count_nonzero(selected & ~condition))
        if count:
            dropped[f"{question_type}: {reason}"] += count
        selected = selected & condition
    return selected
