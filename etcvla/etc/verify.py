"""Verify items: parse question and answer from their text and compare them with the annotation.

This module shares no code with the modules that make items. Relations are recomputed from positions
and pixels, so that an error in the making of items shows up as items that fail.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from etcvla.etc.annotation import Annotation, project
from etcvla.etc.geometry import iou, path_distance
from etcvla.etc.items import NUM_LOC, Item, parse_loc
from etcvla.etc.question_types import (
    BOX,
    MAX_KEYPOINTS,
    PATH,
    POINT,
    QUESTION_TYPES,
    WORDS,
    clean_instruction,
    parse_question,
)

MIN_IOU = 0.9
POINT_TOLERANCE = 1.5 / NUM_LOC
PATH_TOLERANCE = 0.03  # of the image: mean distance of the answer's polyline from the motion
MIN_CARRY = 0.045  # metres by which a target must move to have a place where it ends up
MAX_REGION = 0.3  # of the image; the position of a larger region is meaningless
ROWS = ("top", "", "bottom")
COLUMNS = ("left", "", "right")
# Relation -> true answer if "a" has a larger coordinate than "b", and if it has a smaller one.
RELATIONS = {
    "side": ("right", "left"),
    "height": ("above", "below"),
    "depth": ("farther", "nearer"),
    "robot_side": ("left", "right"),
    "robot_front": ("front", "behind"),
}

# The true answer: words, float[2] for a point, float[4] for a box, or the gripper's motion
# float[n, 2] for a path. None if the annotation does not determine it.
Truth = str | np.ndarray | None


class QuestionError(Exception):
    """A question cannot be read or contradicts the annotation. The message is the reason."""


def check(item: Item, annotation: Annotation, t: int) -> str | None:
    """Return the reason why `item` is wrong at step `t`, None if it is correct.

    The reasons are a small set of fixed strings, so that they can be counted.
    """
    if item.question_type not in TRUTHS:
        return "unknown question_type"
    question_type = QUESTION_TYPES[item.question_type]
    if item.kind != question_type.kind:
        return "question type of another kind"
    fields = parse_question(item.question_type, item.question)
    if fields is None:
        return "question cannot be read"
    instruction = clean_instruction(annotation.instruction)
    if fields.get("instruction", instruction) != instruction:
        return "another instruction"
    try:
        truth = TRUTHS[item.question_type](QuestionFacts(annotation, t, fields))
    except QuestionError as error:
        return str(error)
    if truth is None:
        return "fact unknown"
    return _COMPARISONS[question_type.answer_type](item.answer, truth)


# --- comparisons of an answer with the truth -----------------------------------------------------


def _compare_words(answer: str, truth: str) -> str | None:
    return None if answer == truth else "wrong answer"


def _compare_point(answer: str, truth: np.ndarray) -> str | None:
    point = _parse_single(answer, 2)
    if point is None:
        return "answer cannot be read"
    # An unknown (NaN) truth fails this comparison.
    is_near = np.abs(truth - point).max() <= POINT_TOLERANCE
    return None if is_near else "wrong point"


def _compare_box(answer: str, truth: np.ndarray) -> str | None:
    box = _parse_single(answer, 4)
    if box is None:
        return "answer cannot be read"
    return None if iou(truth, box) > MIN_IOU else "wrong box"


def _compare_path(answer: str, motion: np.ndarray) -> str | None:
    """Compare a path with the gripper's motion. It must end where the motion leaves the image."""
    path = parse_loc(answer, 2)
    if path is None or not 2 <= len(path) <= MAX_KEYPOINTS:
        return "answer cannot be read"
    if not np.isfinite(motion).all():
        return "fact unknown"
    if np.abs(path[0] - motion[0]).max() > POINT_TOLERANCE:
        return "wrong start"
    end = path[-1]
    outside = np.flatnonzero((motion < 0).any(-1) | (motion > 1).any(-1))
    if len(outside):
        end_error = min(end.min(), 1 - end.max())
        motion = np.concatenate([motion[: outside[0]], path[-1:]])
    else:
        end_error = np.abs(end - motion[-1]).max()
    if end_error > POINT_TOLERANCE:
        return "wrong end"
    return None if path_distance(path, motion) <= PATH_TOLERANCE else "far from the motion"


def _parse_single(text: str, group: int) -> np.ndarray | None:
    """Parse exactly one point or box, float32[group]."""
    groups = parse_loc(text, group)
    return groups[0] if groups is not None and len(groups) == 1 else None


_COMPARISONS = {
    WORDS: _compare_words,
    POINT: _compare_point,
    BOX: _compare_box,
    PATH: _compare_path,
}


# --- facts that a question refers to -------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class QuestionFacts:
    """The fields of a question's template, and the annotated facts to which they refer."""

    annotation: Annotation
    t: int
    fields: dict[str, str]

    def index(self, noun: str) -> int:
        """Return the index of the object with this name."""
        if noun not in self.annotation.objects:
            raise QuestionError("unknown object")
        return self.annotation.objects.index(noun)

    @property
    def object(self) -> int:
        """The index of the object that the question names."""
        return self.index(self.fields["object"])

    @property
    def target(self) -> int:
        """The index of the object that the question names, which must be the task's target."""
        if self.object != self.annotation.target:
            raise QuestionError("unknown object")
        return self.object

    @property
    def region(self) -> np.ndarray:
        """The box that the question gives, float32[4]."""
        box = _parse_single(self.fields["box"], 4)
        if box is None:
            raise QuestionError("question cannot be read")
        return box

    @property
    def object_in_region(self) -> int:
        """The index of the object whose box in the first camera the question gives."""
        overlaps = np.nan_to_num(iou(self.annotation.box[self.t, 0], self.region))
        i = int(overlaps.argmax())
        if overlaps[i] <= MIN_IOU:
            raise QuestionError("question cannot be read")
        return i

    @property
    def other_camera(self) -> int:
        """The index of the other camera that the question names."""
        cameras = self.annotation.cameras
        if self.fields["view"] not in cameras[1:]:
            raise QuestionError("question cannot be read")
        return cameras.index(self.fields["view"])

    @property
    def phase(self) -> int:
        """The index of the current subtask, -1 if it is unknown."""
        return self.annotation.phase[self.t]

    def box(self, i: int, camera: int = 0) -> np.ndarray:
        """Return the box of object i in a camera, float[4]."""
        return self.annotation.box[self.t, camera, i]

    def place(self, i: int, camera: int = 0) -> str | None:
        """Return the ninth of the image with the centre of object i's box, None if unknown."""
        box = self.box(i, camera)
        if not np.isfinite(box).all():
            return None
        ymin, xmin, ymax, xmax = box.tolist()
        row = ROWS[min(int(1.5 * (ymin + ymax)), 2)]
        column = COLUMNS[min(int(1.5 * (xmin + xmax)), 2)]
        return f"{row} {column}".strip() or "center"

    def is_shown(self, i: int, camera: int = 0) -> bool | None:
        """Return whether the camera shows object i, None if that is unknown."""
        visible = self.annotation.visible[self.t, camera, i]
        if np.isfinite(self.box(i, camera)).all() and not visible <= 0:
            return True
        return False if visible == 0 else None


def _yes_no(truth: bool | None) -> str | None:
    return {True: "yes", False: "no", None: None}[truth]


# --- scene grounding -----------------------------------------------------------------------------


def _relation(relation: str, question: QuestionFacts) -> Truth:
    a = _coordinate(relation, question, question.fields["a"])
    b = _coordinate(relation, question, question.fields["b"])
    if not np.isfinite([a, b]).all():
        return None
    larger, smaller = RELATIONS[relation]
    return larger if a > b else smaller


def _coordinate(relation: str, question: QuestionFacts, noun: str) -> float:
    """Return the coordinate of the gripper or an object that a relation compares."""
    annotation = question.annotation
    t = question.t
    if noun == "gripper":
        image_x = annotation.gripper_pixel[t, 0, 1]
        position = annotation.gripper_position[t]
    else:
        i = question.index(noun)
        _, xmin, _, xmax = question.box(i)
        image_x = (xmin + xmax) / 2
        position = annotation.position[t, i]
    # Only the differences of coordinates matter, so that depth needs no offset.
    directions = {
        "height": np.array([0, 0, 1]),
        "depth": annotation.camera_matrix[t, 0, 2, :3],
        "robot_side": annotation.direction_vector("left"),
        "robot_front": annotation.direction_vector("front"),
    }
    return image_x if relation == "side" else position @ directions[relation]


def _gripper_point(question: QuestionFacts) -> Truth:
    return question.annotation.gripper_pixel[question.t, 0]


def _cross_seen(question: QuestionFacts) -> Truth:
    return _yes_no(question.is_shown(question.object_in_region, question.other_camera))


def _cross_place(question: QuestionFacts) -> Truth:
    i = question.object_in_region
    camera = question.other_camera
    return question.place(i, camera) if question.is_shown(i, camera) else None


def _cross_box(question: QuestionFacts) -> Truth:
    camera = question.other_camera
    places = [question.place(i, camera) for i in range(len(question.annotation.objects))]
    if places.count(question.fields["place"]) != 1:
        return None
    return question.box(places.index(question.fields["place"]))


def _identify(question: QuestionFacts) -> Truth:
    return question.annotation.objects[question.object_in_region]


def _locate_box(question: QuestionFacts) -> Truth:
    return question.box(question.object)


def _describe(question: QuestionFacts) -> Truth:
    i = question.object
    color = question.annotation.colors[i]
    place = question.place(i)
    return f"{color} {question.fields['object']}, {place}" if color and place else None


def _describe_shape(question: QuestionFacts) -> Truth:
    i = question.object
    if not question.annotation.shapes:
        return None
    words = (question.annotation.colors[i], question.annotation.shapes[i], question.place(i))
    return ", ".join(words) if all(words) else None


def _is_present(question: QuestionFacts, noun: str) -> bool | None:
    """Return whether the first camera shows an object of this name, None if that is unknown.

    It is unknown if the noun is no object's name but shares a word with one, unless names consist
    of a color and a shape.
    """
    objects = question.annotation.objects
    if noun in objects:
        return True if question.is_shown(objects.index(noun)) else None
    if question.annotation.has_exact_names:
        return False
    words = set(" ".join(objects).split())
    return False if words.isdisjoint(noun.split()) else None


def _present(question: QuestionFacts) -> Truth:
    return _yes_no(_is_present(question, question.fields["object"]))


def _count(question: QuestionFacts) -> Truth:
    nouns = question.fields["objects"].split(", ")
    present = [_is_present(question, noun) for noun in nouns]
    if None in present or len(set(nouns)) < len(nouns):
        return None
    return str(sum(present))


# --- affordance ----------------------------------------------------------------------------------


def _grasp(question: QuestionFacts) -> Truth:
    return question.annotation.grasp_pixel[question.t, 0, question.target]


def _destination(question: QuestionFacts) -> Truth:
    """Return the image point where the target ends up, None if it is not moved."""
    annotation = question.annotation
    start, end = annotation.position[[0, -1], question.target]
    if not annotation.success or not np.linalg.norm(end - start) > MIN_CARRY:
        return None
    return project(annotation.camera_matrix[question.t, 0], end)


def _is_region_around(question: QuestionFacts, point: Truth) -> Truth:
    """Return whether the question's box is a good region around `point`."""
    if point is None or not np.isfinite(point).all():
        return None
    low, high = question.region.reshape(2, 2)
    contains = (low <= point).all() and (point <= high).all()
    return _yes_no(contains and (high - low <= MAX_REGION).all())


def _stable_grasp(question: QuestionFacts) -> Truth:
    return _is_region_around(question, _grasp(question))


def _stable_place(question: QuestionFacts) -> Truth:
    return _is_region_around(question, _destination(question))


# --- task planning -------------------------------------------------------------------------------


def _decompose(question: QuestionFacts) -> Truth:
    return "; ".join(question.annotation.phases) or None


def _current(question: QuestionFacts) -> Truth:
    return question.annotation.phases[question.phase] if question.phase >= 0 else None


def _next(question: QuestionFacts) -> Truth:
    annotation = question.annotation
    if question.phase < 0:
        return None
    later = annotation.phase[question.t :]
    later = later[later != question.phase]
    if len(later):
        return annotation.phases[later[0]]
    return "done" if annotation.success else None


def _is_done(question: QuestionFacts) -> bool | None:
    """Return whether the task is done, None if that is debatable."""
    annotation = question.annotation
    if annotation.success and question.t >= len(annotation) - 2:
        return True
    is_last = annotation.phase == len(annotation.phases) - 1
    if len(annotation.phases) > 1 and is_last.any():
        surely_not_done = not is_last[: question.t + 1].any()
    else:
        surely_not_done = question.t < len(annotation) // 2
    return False if surely_not_done else None


def _done(question: QuestionFacts) -> Truth:
    return _yes_no(_is_done(question))


def _outcome(question: QuestionFacts) -> Truth:
    """Stopping is a success if the task is done and a failure if it is surely not done."""
    done = _is_done(question) if question.annotation.success else False
    return {True: "success", False: "failure", None: None}[done]


# --- trajectory ----------------------------------------------------------------------------------


def _path_subtask(question: QuestionFacts) -> Truth:
    annotation = question.annotation
    if _current(question) != question.fields["phase"]:
        raise QuestionError("another subtask")
    motion = _path_task(question)
    changes = np.flatnonzero(annotation.phase[question.t :] != question.phase)
    return motion[: changes[0]] if len(changes) else motion


def _path_task(question: QuestionFacts) -> Truth:
    return question.annotation.gripper_pixel[question.t :, 0]


_RELATION_TRUTHS = {name: functools.partial(_relation, name) for name in RELATIONS}
# Question type -> function of a `QuestionFacts` that returns its true answer.
TRUTHS = {
    **{f"gripper_{name}": truth for name, truth in _RELATION_TRUTHS.items()},
    **{f"object_{name}": truth for name, truth in _RELATION_TRUTHS.items()},
    "gripper_point": _gripper_point,
    "cross_seen": _cross_seen,
    "cross_place": _cross_place,
    "cross_box": _cross_box,
    "identify": _identify,
    "locate_box": _locate_box,
    "describe": _describe,
    "describe_shape": _describe_shape,
    "count": _count,
    "present": _present,
    "grasp_point": _grasp,
    "stable_grasp": _stable_grasp,
    "place_point": _destination,
    "stable_place": _stable_place,
    "decompose": _decompose,
    "current": _current,
    "next": _next,
    "done": _done,
    "outcome": _outcome,
    "path_subtask": _path_subtask,
    "path_task": _path_task,
}
