"""Verify items: parse question and answer from their text and compare them with the annotation.

This module shares no code with the modules that make items. Relations are recomputed from positions
and pixels, so that an error in the making of items shows up as items that fail.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from etcvla.etc.annotation import Annotation, project
from etcvla.etc.geometry import iou, path_distance
from etcvla.etc.items import NUM_LOC, Item, parse_loc
from etcvla.etc.question_types import (
    MAX_KEYPOINTS,
    QUESTION_TYPES,
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


@dataclasses.dataclass(frozen=True)
class Claim:
    """A question and its answer about step `t` of an annotation, with methods to access its facts.

    Attributes:
      fields: the fields of the question's template.
    """

    annotation: Annotation
    t: int
    fields: dict[str, str]
    answer: str

    def index(self, noun: str) -> int | None:
        """Return the index of the object with this name, None if there is none."""
        objects = self.annotation.objects
        return objects.index(noun) if noun in objects else None

    def position(self, noun: str) -> np.ndarray:
        """Return the position of the gripper or an object, float[3]; NaN if unknown."""
        if noun == "gripper":
            return self.annotation.gripper_position[self.t]
        i = self.index(noun)
        return np.full(3, np.nan) if i is None else self.annotation.position[self.t, i]

    def box(self, i: int, camera: int = 0) -> np.ndarray:
        """Return the box of object i in a camera, float[4]."""
        return self.annotation.box[self.t, camera, i]

    def is_shown(self, i: int, camera: int = 0) -> bool | None:
        """Return whether the camera shows object i, None if that is unknown."""
        visible = self.annotation.visible[self.t, camera, i]
        if np.isfinite(self.box(i, camera)).all() and not visible <= 0:
            return True
        return False if visible == 0 else None

    def overlaps(self, box: np.ndarray) -> np.ndarray:
        """Return the IoU of `box` with every object's box in the first camera, float[N]."""
        return np.nan_to_num(iou(self.annotation.box[self.t, 0], box))


Reason = str | None  # why a claim is wrong; None if it is correct
Check = Callable[[Claim], Reason]


def check(item: Item, annotation: Annotation, t: int) -> str | None:
    """Return the reason why `item` is wrong at step `t`, None if it is correct.

    The reasons are a small set of fixed strings, so that they can be counted.
    """
    if item.question_type not in CHECKS:
        return "unknown question_type"
    if item.kind != QUESTION_TYPES[item.question_type].kind:
        return "question type of another kind"
    fields = parse_question(item.question_type, item.question)
    if fields is None:
        return "question cannot be read"
    instruction = clean_instruction(annotation.instruction)
    if fields.get("instruction", instruction) != instruction:
        return "another instruction"
    return CHECKS[item.question_type](Claim(annotation, t, fields, item.answer))


# --- comparisons of an answer with the truth -----------------------------------------------------


def _compare_words(answer: str, truth: str | None) -> Reason:
    if truth is None:
        return "fact unknown"
    return None if answer == truth else "wrong answer"


def _compare_yes_no(answer: str, truth: bool | None) -> Reason:
    if truth is None:
        return "fact unknown"
    return _compare_words(answer, "yes" if truth else "no")


def _compare_point(answer: str, truth: np.ndarray) -> Reason:
    point = _parse_single(answer, 2)
    if point is None:
        return "answer cannot be read"
    # An unknown (NaN) truth fails this comparison.
    is_near = np.abs(truth - point).max() <= POINT_TOLERANCE
    return None if is_near else "wrong point"


def _compare_box(answer: str, truth: np.ndarray) -> Reason:
    box = _parse_single(answer, 4)
    if box is None:
        return "answer cannot be read"
    return None if iou(truth, box) > MIN_IOU else "wrong box"


def _compare_path(answer: str, motion: np.ndarray) -> Reason:
    """Compare a path with the gripper's motion float[n, 2].

    If the motion leaves the image, the path must end at the border.
    """
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


# --- scene grounding -----------------------------------------------------------------------------


def _relation(measure: Callable[[Claim, str], float], more: str, less: str) -> Check:
    """Return a check whether "a" has `more` or `less` of a measured quantity than "b"."""

    def _check_relation(claim: Claim) -> Reason:
        a = measure(claim, claim.fields["a"])
        b = measure(claim, claim.fields["b"])
        if not np.isfinite([a, b]).all():
            return "fact unknown"
        return _compare_words(claim.answer, more if a > b else less)

    return _check_relation


def _image_x(claim: Claim, noun: str) -> float:
    if noun == "gripper":
        return float(claim.annotation.gripper_pixel[claim.t, 0, 1])
    i = claim.index(noun)
    if i is None:
        return np.nan
    _, xmin, _, xmax = claim.box(i)
    return float(xmin + xmax) / 2


def _height(claim: Claim, noun: str) -> float:
    return float(claim.position(noun)[2])


def _depth(claim: Claim, noun: str) -> float:
    row = claim.annotation.camera_matrix[claim.t, 0, 2]
    return float(row[:3] @ claim.position(noun) + row[3])


def _robot_left(claim: Claim, noun: str) -> float:
    return float(claim.position(noun) @ claim.annotation.direction_vector("left"))


def _robot_front(claim: Claim, noun: str) -> float:
    return float(claim.position(noun) @ claim.annotation.direction_vector("front"))


def _gripper_point(claim: Claim) -> Reason:
    return _compare_point(claim.answer, claim.annotation.gripper_pixel[claim.t, 0])


def _other_camera(claim: Claim) -> int | None:
    """Return the index of the other camera that the question names."""
    cameras = claim.annotation.cameras
    view = claim.fields["view"]
    return cameras.index(view) if view in cameras[1:] else None


def _object_at_box(claim: Claim) -> int | None:
    """Return the index of the object whose box in the first camera the question gives."""
    box = _parse_single(claim.fields["box"], 4)
    if box is None:
        return None
    overlaps = claim.overlaps(box)
    i = int(overlaps.argmax())
    return i if overlaps[i] > MIN_IOU else None


def _cross_seen(claim: Claim) -> Reason:
    camera = _other_camera(claim)
    i = _object_at_box(claim)
    if camera is None or i is None:
        return "question cannot be read"
    return _compare_yes_no(claim.answer, claim.is_shown(i, camera))


def _cross_place(claim: Claim) -> Reason:
    camera = _other_camera(claim)
    i = _object_at_box(claim)
    if camera is None or i is None:
        return "question cannot be read"
    truth = _place(claim.box(i, camera)) if claim.is_shown(i, camera) else None
    return _compare_words(claim.answer, truth)


def _cross_box(claim: Claim) -> Reason:
    camera = _other_camera(claim)
    if camera is None:
        return "question cannot be read"
    places = [_place(box) for box in claim.annotation.box[claim.t, camera]]
    if places.count(claim.fields["place"]) != 1:
        return "fact unknown"
    i = places.index(claim.fields["place"])
    return _compare_box(claim.answer, claim.box(i))


def _place(box: np.ndarray) -> str | None:
    """Return the ninth of the image that contains the centre of a box, None if it is unknown."""
    if not np.isfinite(box).all():
        return None
    ymin, xmin, ymax, xmax = box.tolist()
    row = ROWS[min(int(1.5 * (ymin + ymax)), 2)]
    column = COLUMNS[min(int(1.5 * (xmin + xmax)), 2)]
    return f"{row} {column}".strip() or "center"


def _identify(claim: Claim) -> Reason:
    i = claim.index(claim.answer)
    if i is None:
        return "wrong answer"
    box = _parse_single(claim.fields["box"], 4)
    if box is None:
        return "question cannot be read"
    overlaps = claim.overlaps(box)
    is_best = overlaps[i] > MIN_IOU and overlaps.argmax() == i
    return None if is_best else "wrong answer"


def _locate_box(claim: Claim) -> Reason:
    i = claim.index(claim.fields["object"])
    return "unknown object" if i is None else _compare_box(claim.answer, claim.box(i))


def _describe(claim: Claim) -> Reason:
    noun = claim.fields["object"]
    i = claim.index(noun)
    if i is None:
        return "fact unknown"
    place = _place(claim.box(i))
    color = claim.annotation.colors[i]
    known = place and color
    return _compare_words(claim.answer, f"{color} {noun}, {place}" if known else None)


def _describe_shape(claim: Claim) -> Reason:
    i = claim.index(claim.fields["object"])
    if i is None or not claim.annotation.shapes:
        return "fact unknown"
    place = _place(claim.box(i))
    color = claim.annotation.colors[i]
    shape = claim.annotation.shapes[i]
    known = place and color and shape
    return _compare_words(claim.answer, f"{color}, {shape}, {place}" if known else None)


def _is_present(claim: Claim, noun: str) -> bool | None:
    """Return whether the first camera shows an object of this name, None if that is unknown.

    It is unknown if the noun is no object's name but shares a word with one.
    """
    i = claim.index(noun)
    if i is not None:
        return True if claim.is_shown(i) else None
    words = set(" ".join(claim.annotation.objects).split())
    return None if words & set(noun.split()) else False


def _present(claim: Claim) -> Reason:
    return _compare_yes_no(claim.answer, _is_present(claim, claim.fields["object"]))


def _count(claim: Claim) -> Reason:
    nouns = claim.fields["objects"].split(", ")
    present = [_is_present(claim, noun) for noun in nouns]
    if None in present or len(set(nouns)) < len(nouns):
        return "fact unknown"
    return _compare_words(claim.answer, str(sum(present)))


# --- affordance ----------------------------------------------------------------------------------


def _names_target(claim: Claim) -> bool:
    target = claim.annotation.target
    return target >= 0 and claim.fields["object"] == claim.annotation.objects[target]


def _grasp(claim: Claim) -> np.ndarray | None:
    """Return the image point where to grasp the named object, None if it is not the target."""
    if not _names_target(claim):
        return None
    return claim.annotation.grasp_pixel[claim.t, 0, claim.annotation.target]


def _destination(claim: Claim) -> np.ndarray | None:
    """Return the image point where the named object ends up, None if it is not moved."""
    annotation = claim.annotation
    if not _names_target(claim) or not annotation.success:
        return None
    start, end = annotation.position[[0, -1], annotation.target]
    if not np.linalg.norm(end - start) > MIN_CARRY:
        return None
    return project(annotation.camera_matrix[claim.t, 0], end)


def _grasp_point(claim: Claim) -> Reason:
    grasp = _grasp(claim)
    return "unknown object" if grasp is None else _compare_point(claim.answer, grasp)


def _place_point(claim: Claim) -> Reason:
    end = _destination(claim)
    return "fact unknown" if end is None else _compare_point(claim.answer, end)


def _is_in_region(claim: Claim, point: np.ndarray | None) -> Reason:
    """Check the answer whether the question's box is a good region around `point`."""
    if point is None or not np.isfinite(point).all():
        return "fact unknown"
    box = _parse_single(claim.fields["box"], 4)
    if box is None:
        return "question cannot be read"
    low = box[:2]
    high = box[2:]
    contains = (low <= point).all() and (point <= high).all()
    return _compare_yes_no(claim.answer, contains and (high - low <= MAX_REGION).all())


def _stable_grasp(claim: Claim) -> Reason:
    return _is_in_region(claim, _grasp(claim))


def _stable_place(claim: Claim) -> Reason:
    return _is_in_region(claim, _destination(claim))


# --- task planning -------------------------------------------------------------------------------


def _decompose(claim: Claim) -> Reason:
    phases = claim.annotation.phases
    is_plan = phases and claim.answer.split("; ") == list(phases)
    return None if is_plan else "wrong answer"


def _current(claim: Claim) -> Reason:
    phase = claim.annotation.phase[claim.t]
    return _compare_words(claim.answer, claim.annotation.phases[phase] if phase >= 0 else None)


def _next(claim: Claim) -> Reason:
    annotation = claim.annotation
    current = annotation.phase[claim.t]
    later = annotation.phase[claim.t :]
    later = later[later != current]
    if current < 0 or not (len(later) or annotation.success):
        return "fact unknown"
    return _compare_words(claim.answer, annotation.phases[later[0]] if len(later) else "done")


def _is_done(claim: Claim) -> bool | None:
    """Return whether the task is done, None if that is debatable."""
    annotation = claim.annotation
    if annotation.success and claim.t >= len(annotation) - 2:
        return True
    is_last = annotation.phase == len(annotation.phases) - 1
    if len(annotation.phases) > 1 and is_last.any():
        surely_not_done = not is_last[: claim.t + 1].any()
    else:
        surely_not_done = claim.t < len(annotation) // 2
    return False if surely_not_done else None


def _done(claim: Claim) -> Reason:
    return _compare_yes_no(claim.answer, _is_done(claim))


def _outcome(claim: Claim) -> Reason:
    """Stopping is a success if the task is done and a failure if it is surely not done."""
    done = _is_done(claim) if claim.annotation.success else False
    if done is None:
        return "fact unknown"
    return _compare_words(claim.answer, "success" if done else "failure")


# --- trajectory ----------------------------------------------------------------------------------


def _path_subtask(claim: Claim) -> Reason:
    annotation = claim.annotation
    current = annotation.phase[claim.t]
    if current < 0 or annotation.phases[current] != claim.fields["phase"]:
        return "another subtask"
    changes = np.flatnonzero(annotation.phase[claim.t :] != current)
    end = claim.t + int(changes[0]) if len(changes) else len(annotation)
    return _compare_path(claim.answer, annotation.gripper_pixel[claim.t : end, 0])


def _path_task(claim: Claim) -> Reason:
    return _compare_path(claim.answer, claim.annotation.gripper_pixel[claim.t :, 0])


_RELATIONS: dict[str, Check] = {
    "side": _relation(_image_x, "right", "left"),
    "height": _relation(_height, "above", "below"),
    "depth": _relation(_depth, "farther", "nearer"),
    "robot_side": _relation(_robot_left, "left", "right"),
    "robot_front": _relation(_robot_front, "front", "behind"),
}
CHECKS: dict[str, Check] = {
    **{f"gripper_{name}": relation for name, relation in _RELATIONS.items()},
    **{f"object_{name}": relation for name, relation in _RELATIONS.items()},
    "cross_seen": _cross_seen,
    "cross_place": _cross_place,
    "cross_box": _cross_box,
    "describe_shape": _describe_shape,
    "count": _count,
    "place_point": _place_point,
    "stable_place": _stable_place,
    "outcome": _outcome,
    "gripper_point": _gripper_point,
    "identify": _identify,
    "locate_box": _locate_box,
    "describe": _describe,
    "present": _present,
    "grasp_point": _grasp_point,
    "stable_grasp": _stable_grasp,
    "decompose": _decompose,
    "current": _current,
    "next": _next,
    "done": _done,
    "path_subtask": _path_subtask,
    "path_task": _path_task,
}
