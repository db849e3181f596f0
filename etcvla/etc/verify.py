"""Is an item true? Questions and answers are read back as text and compared with the raw annotation.

Nothing here knows how an item was made: relations are recomputed from positions and pixels, so that a bug in a maker
shows up as items that fail.
"""

from __future__ import annotations

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
PATH_TOLERANCE = (
    0.03  # of the image, mean distance of the keypoints' polyline to the gripper's motion
)
MIN_CARRY = 0.045  # metres that a target moves at least to have a place where it goes
MAX_REGION = 0.3  # of the image: a larger region says nothing about where
Check = Callable[[Annotation, int, dict[str, str], str], str | None]


def check(item: Item, annotation: Annotation, t: int) -> str | None:
    """The reason why `item` is wrong at step `t`, None if it is right. Reasons are few and fixed, to be counted."""
    if item.question_type not in CHECKS:
        return "unknown question_type"
    if item.kind != QUESTION_TYPES[item.question_type].kind:
        return "form of another kind"
    slots = parse_question(item.question_type, item.question)
    if slots is None:
        return "question cannot be read"
    if slots.get("instruction", clean_instruction(annotation.instruction)) != clean_instruction(
        annotation.instruction
    ):
        return "another instruction"
    return CHECKS[item.question_type](annotation, t, slots, item.answer)


def _index(facts: Annotation, noun: str) -> int | None:
    return facts.objects.index(noun) if noun in facts.objects else None


def _one(text: str, group: int) -> np.ndarray | None:
    found = parse_loc(text, group)
    return found[0] if found is not None and len(found) == 1 else None


def _is(truth: str | None, answer: str) -> str | None:
    if truth is None:
        return "fact unknown"
    return None if answer == truth else "wrong answer"


def _near(truth: np.ndarray, point: np.ndarray | None) -> str | None:
    if point is None:
        return "answer cannot be read"
    # Written so that an unknown (NaN) truth fails.
    return None if np.abs(truth - point).max() <= POINT_TOLERANCE else "wrong point"


def _same_box(truth: np.ndarray, box: np.ndarray | None) -> str | None:
    if box is None:
        return "answer cannot be read"
    return None if iou(truth, box) > MIN_IOU else "wrong box"


def _relation(measure: Callable[[Annotation, int, str], float], more: str, less: str) -> Check:
    """A check of "is a `more` or `less` than b", where `measure` grows towards `more`."""

    def check_relation(facts: Annotation, t: int, slots: dict[str, str], answer: str) -> str | None:
        values = [measure(facts, t, slots[name]) for name in ("a", "b")]
        if not np.isfinite(values).all():
            return "fact unknown"
        return _is(more if values[0] > values[1] else less, answer)

    return check_relation


def _image_x(facts: Annotation, t: int, noun: str) -> float:
    if noun == "gripper":
        return float(facts.gripper_pixel[t, 0, 1])
    i = _index(facts, noun)
    return np.nan if i is None else float(facts.box[t, 0, i, 1] + facts.box[t, 0, i, 3]) / 2


def _position(facts: Annotation, t: int, noun: str) -> np.ndarray:
    if noun == "gripper":
        return facts.gripper_position[t]
    i = _index(facts, noun)
    return np.full(3, np.nan) if i is None else facts.position[t, i]


def _height(facts: Annotation, t: int, noun: str) -> float:
    return float(_position(facts, t, noun)[2])


def _depth(facts: Annotation, t: int, noun: str) -> float:
    row = facts.camera_matrix[t, 0, 2]
    return float(row[:3] @ _position(facts, t, noun) + row[3])


def _robot(direction: str) -> Callable[[Annotation, int, str], float]:
    def measure(facts: Annotation, t: int, noun: str) -> float:
        return float(_position(facts, t, noun) @ facts.direction_vector(direction))

    return measure


def _seen(facts: Annotation, t: int, camera: int, i: int) -> bool | None:
    """Does the camera show object i? None where that is unknown."""
    if np.isfinite(facts.box[t, camera, i]).all() and not facts.visible[t, camera, i] <= 0:
        return True
    return False if facts.visible[t, camera, i] == 0 else None


def _named_in(facts: Annotation, t: int, slots: dict[str, str]) -> tuple[int, int] | None:
    """The other camera, and the object whose box in the first the question gives."""
    box = _one(slots["box"], 4)
    if box is None or slots["view"] not in facts.cameras[1:]:
        return None
    overlaps = np.nan_to_num(iou(facts.box[t, 0], box))
    i = int(overlaps.argmax())
    return (facts.cameras.index(slots["view"]), i) if overlaps[i] > MIN_IOU else None


def _cross_seen(facts: Annotation, t: int, slots: dict[str, str], answer: str) -> str | None:
    found = _named_in(facts, t, slots)
    if found is None:
        return "question cannot be read"
    seen = _seen(facts, t, *found)
    return _is(None if seen is None else "yes" if seen else "no", answer)


def _cross_place(facts: Annotation, t: int, slots: dict[str, str], answer: str) -> str | None:
    found = _named_in(facts, t, slots)
    if found is None:
        return "question cannot be read"
    return _is(_place(facts.box[t][found]) if _seen(facts, t, *found) else None, answer)


def _cross_box(facts: Annotation, t: int, slots: dict[str, str], answer: str) -> str | None:
    if slots["view"] not in facts.cameras[1:]:
        return "question cannot be read"
    camera = facts.cameras.index(slots["view"])
    there = [
        i
        for i in range(len(facts.objects))
        if np.isfinite(facts.box[t, camera, i]).all()
        and _place(facts.box[t, camera, i]) == slots["place"]
    ]
    return (
        _same_box(facts.box[t, 0, there[0]], _one(answer, 4)) if len(there) == 1 else "fact unknown"
    )


def _gripper_point(facts: Annotation, t: int, slots: dict[str, str], answer: str) -> str | None:
    return _near(facts.gripper_pixel[t, 0], _one(answer, 2))


def _identify(facts: Annotation, t: int, slots: dict[str, str], answer: str) -> str | None:
    i = _index(facts, answer)
    if i is None:
        return "wrong answer"
    box = _one(slots["box"], 4)
    if box is None:
        return "question cannot be read"
    overlaps = np.nan_to_num(iou(facts.box[t, 0], box))
    return None if overlaps[i] > MIN_IOU and overlaps.argmax() == i else "wrong answer"


def _locate_box(facts: Annotation, t: int, slots: dict[str, str], answer: str) -> str | None:
    i = _index(facts, slots["object"])
    return "unknown object" if i is None else _same_box(facts.box[t, 0, i], _one(answer, 4))


def _place(box: np.ndarray) -> str | None:
    """The ninth of the image in which a box has its centre, None if the box is unknown."""
    if not np.isfinite(box).all():
        return None
    ymin, xmin, ymax, xmax = box.tolist()
    rows, columns = ("top", "", "bottom"), ("left", "", "right")
    vertical, horizontal = (
        names[min(int(1.5 * (low + high)), 2)]
        for names, low, high in ((rows, ymin, ymax), (columns, xmin, xmax))
    )
    return f"{vertical} {horizontal}".strip() or "center"


def _describe(facts: Annotation, t: int, slots: dict[str, str], answer: str) -> str | None:
    i = _index(facts, slots["object"])
    where = None if i is None else _place(facts.box[t, 0, i])
    known = where and facts.colors[i]
    return _is(f"{facts.colors[i]} {slots['object']}, {where}" if known else None, answer)


def _describe_shape(facts: Annotation, t: int, slots: dict[str, str], answer: str) -> str | None:
    i = _index(facts, slots["object"])
    where = None if i is None else _place(facts.box[t, 0, i])
    known = where and facts.colors[i] and facts.shapes and facts.shapes[i]
    return _is(", ".join((facts.colors[i], facts.shapes[i], where)) if known else None, answer)


def _is_there(facts: Annotation, t: int, noun: str) -> bool | None:
    """Does the first camera show a thing of this name? A noun is unknown that shares a word with another object's."""
    i = _index(facts, noun)
    if i is not None:
        return True if _seen(facts, t, 0, i) else None
    words = {word for name in facts.objects for word in name.split()}
    return None if words & set(noun.split()) else False


def _present(facts: Annotation, t: int, slots: dict[str, str], answer: str) -> str | None:
    there = _is_there(facts, t, slots["object"])
    return _is(None if there is None else "yes" if there else "no", answer)


def _count(facts: Annotation, t: int, slots: dict[str, str], answer: str) -> str | None:
    nouns = slots["objects"].split(", ")
    there = [_is_there(facts, t, noun) for noun in nouns]
    return _is(None if None in there or len(set(nouns)) < len(nouns) else str(sum(there)), answer)


def _target_grasp(facts: Annotation, t: int, noun: str) -> np.ndarray | None:
    if facts.target < 0 or noun != facts.objects[facts.target]:
        return None
    return facts.grasp_pixel[t, 0, facts.target]


def _grasp_point(facts: Annotation, t: int, slots: dict[str, str], answer: str) -> str | None:
    grasp = _target_grasp(facts, t, slots["object"])
    return "unknown object" if grasp is None else _near(grasp, _one(answer, 2))


def _in_region(point: np.ndarray | None, slots: dict[str, str], answer: str) -> str | None:
    box = _one(slots["box"], 4)
    if point is None or not np.isfinite(point).all():
        return "fact unknown"
    if box is None:
        return "question cannot be read"
    good = (
        (box[:2] <= point).all()
        and (point <= box[2:]).all()
        and (box[2:] - box[:2] <= MAX_REGION).all()
    )
    return _is("yes" if good else "no", answer)


def _stable_grasp(facts: Annotation, t: int, slots: dict[str, str], answer: str) -> str | None:
    return _in_region(_target_grasp(facts, t, slots["object"]), slots, answer)


def _target_end(facts: Annotation, t: int, noun: str) -> np.ndarray | None:
    if facts.target < 0 or noun != facts.objects[facts.target] or not facts.success:
        return None
    start, end = facts.position[[0, -1], facts.target]
    return (
        project(facts.camera_matrix[t, 0], end) if np.linalg.norm(end - start) > MIN_CARRY else None
    )


def _place_point(facts: Annotation, t: int, slots: dict[str, str], answer: str) -> str | None:
    end = _target_end(facts, t, slots["object"])
    return "fact unknown" if end is None else _near(end, _one(answer, 2))


def _stable_place(facts: Annotation, t: int, slots: dict[str, str], answer: str) -> str | None:
    return _in_region(_target_end(facts, t, slots["object"]), slots, answer)


def _decompose(facts: Annotation, t: int, slots: dict[str, str], answer: str) -> str | None:
    return (
        None
        if facts.phases and tuple(answer.split("; ")) == tuple(facts.phases)
        else "wrong answer"
    )


def _current(facts: Annotation, t: int, slots: dict[str, str], answer: str) -> str | None:
    return _is(facts.phases[facts.phase[t]] if facts.phase[t] >= 0 else None, answer)


def _next(facts: Annotation, t: int, slots: dict[str, str], answer: str) -> str | None:
    now = facts.phase[t]
    later = [phase for phase in facts.phase[t:].tolist() if phase != now]
    if now < 0 or not (later or facts.success):
        return "fact unknown"
    return _is(facts.phases[later[0]] if later else "done", answer)


def _done(facts: Annotation, t: int, slots: dict[str, str], answer: str) -> str | None:
    if facts.success and t >= len(facts) - 2:
        return _is("yes", answer)
    last = len(facts.phases) - 1
    surely_not = (
        not (facts.phase[: t + 1] == last).any()
        if last > 0 and (facts.phase == last).any()
        else t < len(facts) // 2
    )
    return _is("no" if surely_not else None, answer)


def _outcome(facts: Annotation, t: int, slots: dict[str, str], answer: str) -> str | None:
    """A robot that stops has succeeded where the task is done and failed where it surely is not."""
    if not facts.success:
        return _is("failure", answer)
    return _done(facts, t, slots, {"success": "yes", "failure": "no"}.get(answer, answer))


def _path_subtask(facts: Annotation, t: int, slots: dict[str, str], answer: str) -> str | None:
    now = facts.phase[t]
    if now < 0 or facts.phases[now] != slots["phase"]:
        return "another subtask"
    changes = np.flatnonzero(facts.phase[t:] != now)
    end = t + int(changes[0]) if len(changes) else len(facts)
    return _same_path(facts.gripper_pixel[t:end, 0], answer)


def _path_task(facts: Annotation, t: int, slots: dict[str, str], answer: str) -> str | None:
    return _same_path(facts.gripper_pixel[t:, 0], answer)


def _same_path(motion: np.ndarray, answer: str) -> str | None:
    """`motion` float[n, 2] is where the gripper goes; a path that leaves the image must stop at its border."""
    path = parse_loc(answer, 2)
    if path is None or not 2 <= len(path) <= MAX_KEYPOINTS:
        return "answer cannot be read"
    if not np.isfinite(motion).all():
        return "fact unknown"
    if np.abs(path[0] - motion[0]).max() > POINT_TOLERANCE:
        return "wrong start"
    off = np.flatnonzero((motion < 0).any(-1) | (motion > 1).any(-1))
    if not len(off):
        end_is_right = np.abs(path[-1] - motion[-1]).max() <= POINT_TOLERANCE
    else:
        end_is_right = min(path[-1].min(), 1 - path[-1].max()) <= POINT_TOLERANCE
        motion = np.concatenate([motion[: off[0]], path[-1:]])
    if not end_is_right:
        return "wrong end"
    return None if path_distance(path, motion) <= PATH_TOLERANCE else "far from the motion"


CHECKS: dict[str, Check] = {
    **{
        f"{subject}_{question_type}": relation
        for subject in ("gripper", "object")
        for question_type, relation in {
            "side": _relation(_image_x, "right", "left"),
            "height": _relation(_height, "above", "below"),
            "depth": _relation(_depth, "farther", "nearer"),
            "robot_side": _relation(_robot("left"), "left", "right"),
            "robot_front": _relation(_robot("front"), "front", "behind"),
        }.items()
    },
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
