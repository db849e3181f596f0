"""Scene grounding: candidates about what a frame shows, independent of the instruction.

Each question names its reference frame. Sides "in the image" are those of the picture. Sides and
front "in the robot frame" are those of the robot. Height is measured along the robot's "up" and
depth along the camera's optical axis. Relations of nearly equal values are ambiguous and are
dropped. In questions about two views, boxes refer to the first view and places in the other view
are given in words.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.random import Generator

from etcvla.etc.annotation import Annotation
from etcvla.etc.facts import Candidate, Candidates, FrameView, select
from etcvla.etc.geometry import iou

SIDE_MARGIN = 0.03  # of the image; wide objects need a larger margin
METRIC_MARGIN = 0.015  # metres
ROBOT_MARGIN = 0.03  # metres, along the robot's directions, which are harder to see
NUM_COUNTED = 3  # number of nouns in a counting question
PLACE_MARGIN = 0.02  # of the image, from the lines between two places
MAX_OVERLAP = 0.5  # IoU above which a box does not distinguish two objects
GRIPPER = "gripper"
PLACES = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)
# Objects of other scenes. If the training data contain those scenes, the noun of a presence
# question alone does not reveal the answer.
ABSENT = (
    "goal marker",
    "puck",
    "door",
    "door handle",
    "safe",
    "drawer",
    "drawer handle",
    "cabinet",
    "button",
    "button box",
    "window",
    "window handle",
    "mug",
    "bowl",
)
# Relation -> answers for a positive and a negative difference.
RELATIONS = {
    "side": ("right", "left"),
    "height": ("above", "below"),
    "depth": ("farther", "nearer"),
    "robot_side": ("left", "right"),
    "robot_front": ("front", "behind"),
}


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """K pairs of nouns between which relations are asked."""

    prefix: str  # of the question types: "gripper" or "object"
    nouns: list[tuple[str, str]]  # K
    in_view: np.ndarray  # bool[T, K]: both are shown


def candidates(
    view: FrameView, rng: Generator, dropped: Counter, absent: Sequence[str]
) -> Candidates:
    """Yield candidates of both scene-grounding kinds for the whole episode.

    Args:
      view: the first camera's facts.
      rng: draws the subjects of relations and the objects of presence and counting questions.
      dropped: counts the questions that are not asked, by reason.
      absent: nouns of objects in other scenes. Nouns that may name an object of this scene are
        ignored. Without any noun, no presence questions are made.
    """
    in_view = select(dropped, "gripper_point", {"not in view": view.gripper_in_image})
    for t in np.flatnonzero(in_view).tolist():
        yield Candidate(t, "gripper_point", None, {}, view.gripper[t])
    yield from _relations(view, rng, dropped)
    for camera in range(1, len(view.annotation.cameras)):
        yield from _cross_view(view, FrameView(view.annotation, camera), dropped)
    yield from _names(view, dropped)
    yield from _descriptions(view, dropped)
    absent = _certainly_absent(view.annotation, absent)
    if absent:
        yield from _presence(view, rng, dropped, absent)
    if len(absent) >= NUM_COUNTED:
        yield from _counts(view, rng, absent)


def _certainly_absent(annotation: Annotation, nouns: Sequence[str]) -> list[str]:
    """Return the nouns that name no object of the scene.

    The absence of a noun that shares a word with an object's name is debatable ("drawer" beside a
    "drawer handle"), unless names consist of a color and a shape.
    """
    if annotation.has_exact_names:
        return [noun for noun in nouns if noun not in annotation.objects]
    words = set(" ".join(annotation.objects).split())
    return [noun for noun in nouns if words.isdisjoint(noun.split())]


def place(center: Sequence[float]) -> tuple[str, bool]:
    """Return the ninth of the image that contains a point, and whether the point is clearly in it.

    Args:
      center: image point (y, x).

    Returns:
      The name of the ninth ("top left"), and False if the point is near a dividing line.
    """
    row, column = (min(int(value * 3), 2) for value in center)
    clear = all(min(abs(v - 1 / 3), abs(v - 2 / 3)) >= PLACE_MARGIN for v in center)
    return PLACES[row][column], clear


def _relations(view: FrameView, rng: Generator, dropped: Counter) -> Candidates:
    """Yield candidates that relate the gripper to the objects, and the objects to each other."""
    annotation = view.annotation
    num_objects = len(annotation.objects)
    # The gripper is treated as one more object, with an empty box.
    names = (*annotation.objects, GRIPPER)
    shown = np.column_stack([view.shown, view.gripper_in_image])
    gripper_box = np.tile(view.gripper, 2)
    box = np.concatenate([view.box, gripper_box[:, None]], axis=1)
    center_x = (box[..., 1] + box[..., 3]) / 2
    width = box[..., 3] - box[..., 1]
    position = np.concatenate([annotation.position, annotation.gripper_position[:, None]], axis=1)
    depth = view.depth(position)
    up = annotation.direction_vector("up")
    if np.isnan(up).any():
        up = np.array([0, 0, 1])  # z points up in every base frame that we know of
    left = annotation.direction_vector("left")
    front = annotation.direction_vector("front")

    every_object = np.arange(num_objects)
    gripper_pairs = (np.full_like(every_object, num_objects), every_object)
    object_pairs = np.triu_indices(num_objects, k=1)
    # Prefix of the question types -> indices of both nouns, and minimal distance in the image as
    # a share of the width. A part is on neither side of its whole: neither of two objects may
    # reach the centre of the other.
    groups = {"gripper": (*gripper_pairs, 1 / 4), "object": (*object_pairs, 1 / 2)}
    for prefix, (first, second, share) in groups.items():
        nouns = [(names[i], names[j]) for i, j in zip(first, second, strict=True)]
        pairs = _Pairs(prefix, nouns, shown[:, first] & shown[:, second])
        margin = np.maximum(width[:, first], width[:, second]) * share
        side = center_x[:, first] - center_x[:, second]
        yield from _relation(pairs, "side", side, np.maximum(SIDE_MARGIN, margin), rng, dropped)
        # If the boxes overlap, one object may be a part of the other.
        overlapping = iou(box[:, first], box[:, second]) > 0
        pairs = dataclasses.replace(pairs, in_view=pairs.in_view & ~overlapping)
        offset = position[:, first] - position[:, second]
        metric = {
            "height": (offset @ up, METRIC_MARGIN),
            "depth": (depth[:, first] - depth[:, second], METRIC_MARGIN),
            "robot_side": (offset @ left, ROBOT_MARGIN),
            "robot_front": (offset @ front, ROBOT_MARGIN),
        }
        for relation, (difference, margin) in metric.items():
            yield from _relation(pairs, relation, difference, margin, rng, dropped)


def _relation(
    pairs: _Pairs,
    relation: str,
    difference: np.ndarray,
    margin: np.ndarray | float,
    rng: Generator,
    dropped: Counter,
) -> Candidates:
    """Yield candidates of a two-way relation of K pairs.

    The subject of each question is drawn at random, so that both answers are equally frequent in
    every scene.

    Args:
      pairs: the nouns.
      relation: a name of `RELATIONS`.
      difference: float[T, K], first noun minus second.
      margin: broadcasts to [T, K]; smaller differences are ambiguous.
      rng: draws the subjects.
      dropped: counts what is dropped.
    """
    question_type = f"{pairs.prefix}_{relation}"
    conditions = {
        "not in view": pairs.in_view,
        "unknown": np.isfinite(difference),
        "ambiguous": np.abs(difference) >= margin,
    }
    clear = select(dropped, question_type, conditions)
    swap = (rng.random(difference.shape) < 0.5).tolist()
    negative = (difference < 0).tolist()
    if_positive, if_negative = RELATIONS[relation]
    for t, k in np.argwhere(clear).tolist():
        is_negative = negative[t][k]
        swapped = swap[t][k]
        first, second = pairs.nouns[k]
        fields = {"a": second, "b": first} if swapped else {"a": first, "b": second}
        answer = if_positive if is_negative == swapped else if_negative
        yield Candidate(t, question_type, is_negative, fields, answer, k, swapped)


def _cross_view(view: FrameView, other: FrameView, dropped: Counter) -> Candidates:
    """Yield candidates that relate the first view to another view."""
    absent = other.visible == 0
    distinct = ~_confused(view) & view.shown
    known = select(dropped, "cross_seen", {"unknown": other.shown | absent}, distinct)
    # An object that is always, or never, in the other view has only one answer.
    changing = (known & other.shown).any(0) & (known & absent).any(0)
    select(dropped, "cross_seen", {"never changes": changing}, known)
    for t in range(len(known)):
        places = {}  # of the objects with a known box in the other view
        for i in np.flatnonzero(np.isfinite(other.center[t]).all(-1)).tolist():
            places[i] = place(other.center[t, i].tolist())
        counts = Counter(name for name, _ in places.values())
        for i in np.flatnonzero(known[t]).tolist():
            fields = {"box": view.box[t, i], "view": other.name}
            subject = other.name, i
            shown = bool(other.shown[t, i])
            if changing[i]:
                answer = "yes" if shown else "no"
                yield Candidate(t, "cross_seen", shown, fields, answer, subject)
            if not shown:
                continue
            name, clear = places[i]
            if not clear:
                continue
            yield Candidate(t, "cross_place", name, fields, name, subject)
            if counts[name] == 1:
                fields = {"place": name, "view": other.name}
                yield Candidate(t, "cross_box", i, fields, view.box[t, i], other.name)
            else:
                dropped["cross_box: ambiguous"] += 1


def _confused(view: FrameView) -> np.ndarray:
    """Return a mask bool[T, N] of the objects whose box is nearly the box of another object."""
    overlap = iou(view.box[:, :, None], view.box[:, None]) > MAX_OVERLAP
    return (overlap & view.shown[:, None]).sum(-1) > 1


def _names(view: FrameView, dropped: Counter) -> Candidates:
    """Yield candidates that ask for the box of a noun or for the noun of a box."""
    distinct = select(dropped, "identify", {"ambiguous": ~_confused(view)}, view.shown)
    select(dropped, "identify", {"not in view": view.shown})
    select(dropped, "locate_box", {"not in view": view.shown})
    for t, i in np.argwhere(view.shown).tolist():
        name = view.annotation.objects[i]
        box = view.box[t, i]
        yield Candidate(t, "locate_box", i, {"object": name}, box)
        if distinct[t, i]:
            yield Candidate(t, "identify", i, {"box": box}, name)


def _descriptions(view: FrameView, dropped: Counter) -> Candidates:
    objects = view.annotation.objects
    colors = view.annotation.colors
    shapes = view.annotation.shapes or [""] * len(objects)
    nouns = zip(objects, colors, strict=True)
    conditions = {
        "color unknown": np.array([color != "" for color in colors], bool),
        "color in the name": np.array([color not in name.split() for name, color in nouns], bool),
    }
    selected = select(dropped, "describe", conditions, view.shown)
    for t, i in np.argwhere(selected).tolist():
        where, clear = place(view.center[t, i].tolist())
        if not clear:
            dropped["describe: ambiguous"] += 1
            continue
        fields = {"object": objects[i]}
        answer = f"{colors[i]} {objects[i]}, {where}"
        yield Candidate(t, "describe", where, fields, answer, i)
        if shapes[i]:
            answer = f"{colors[i]}, {shapes[i]}, {where}"
            yield Candidate(t, "describe_shape", where, fields, answer, i)


def _shown_names(view: FrameView, t: int) -> list[str]:
    return list(itertools.compress(view.annotation.objects, view.shown[t]))


def _presence(
    view: FrameView, rng: Generator, dropped: Counter, absent: Sequence[str]
) -> Candidates:
    for t, (coin, choice) in enumerate(rng.random((len(view.shown), 2)).tolist()):
        # The answer is drawn first. If no noun has it, the question is dropped: the opposite answer
        # would unbalance the answers.
        answer = "yes" if coin < 0.5 else "no"
        nouns = _shown_names(view, t) if answer == "yes" else absent
        if nouns:
            fields = {"object": nouns[int(choice * len(nouns))]}
            yield Candidate(t, "present", answer, fields, answer)
        else:
            dropped["present: not in view"] += 1


def _counts(view: FrameView, rng: Generator, absent: Sequence[str]) -> Candidates:
    """Yield candidates that ask how many of `NUM_COUNTED` nouns are shown.

    The number is drawn before the nouns, so that all numbers are equally frequent.
    """
    for t in range(len(view.shown)):
        shown = _shown_names(view, t)
        count = int(rng.integers(min(NUM_COUNTED, len(shown)) + 1))
        chosen = rng.permutation(shown)[:count].tolist()
        chosen += rng.permutation(absent)[: NUM_COUNTED - count].tolist()
        fields = {"objects": ", ".join(rng.permutation(chosen))}
        yield Candidate(t, "count", count, fields, str(count))
