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
from collections.abc import Iterator, Sequence

import numpy as np

from etcvla.etc.facts import Candidate, FrameView, count_dropped
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
    nouns: Sequence[tuple[str, str]]  # K
    in_view: np.ndarray  # bool[T, K]: both are shown


def candidates(
    view: FrameView, rng: np.random.Generator, dropped: Counter, absent: Sequence[str]
) -> Iterator[Candidate]:
    """Yield candidates of both scene-grounding kinds for the whole episode.

    Args:
      view: the first camera's facts.
      rng: draws the subjects of relations and the objects of presence and counting questions.
      dropped: counts the questions that are not asked, by reason.
      absent: nouns of objects in other scenes. Nouns that share a word with an object of this
        scene are ignored. Without any noun, no presence questions are made.
    """
    yield from _gripper_point(view, dropped)
    yield from _gripper_relations(view, rng, dropped)
    yield from _object_relations(view, rng, dropped)
    for camera in range(1, len(view.annotation.cameras)):
        yield from _cross_view(view, FrameView(view.annotation, camera), dropped)
    yield from _names(view, dropped)
    yield from _descriptions(view, dropped)
    absent = _clearly_absent(absent, view.annotation.objects)
    if absent:
        yield from _presence(view, rng, dropped, absent)
    if len(absent) >= NUM_COUNTED:
        yield from _counts(view, rng, absent)


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


def _clearly_absent(nouns: Sequence[str], objects: Sequence[str]) -> list[str]:
    """Return the nouns without a word of an object's name. The absence of others is debatable."""
    words = set(" ".join(objects).split())
    return [noun for noun in nouns if words.isdisjoint(noun.split())]


def _gripper_point(view: FrameView, dropped: Counter) -> Iterator[Candidate]:
    count_dropped(dropped, "gripper_point", "not in view", ~view.gripper_in_image)
    for t in np.flatnonzero(view.gripper_in_image).tolist():
        yield Candidate(t, "gripper_point", "gripper_point", None, {}, view.gripper[t])


def _gripper_relations(
    view: FrameView, rng: np.random.Generator, dropped: Counter
) -> Iterator[Candidate]:
    annotation = view.annotation
    nouns = [(GRIPPER, name) for name in annotation.objects]
    pairs = _Pairs("gripper", nouns, view.shown & view.gripper_in_image[:, None])
    difference = view.gripper[:, None, 1] - view.center[..., 1]
    margin = np.maximum(SIDE_MARGIN, view.width / 4)
    yield from _relation(pairs, "side", difference, margin, rng, dropped)
    first = annotation.gripper_position[:, None]
    yield from _metric_relations(pairs, view, first, annotation.position, rng, dropped)


def _object_relations(
    view: FrameView, rng: np.random.Generator, dropped: Counter
) -> Iterator[Candidate]:
    names = view.annotation.objects
    nouns = list(itertools.combinations(names, 2))
    if not nouns:
        return
    first, second = np.triu_indices(len(names), k=1)
    pairs = _Pairs("object", nouns, view.shown[:, first] & view.shown[:, second])
    difference = view.center[:, first, 1] - view.center[:, second, 1]
    # A part is on neither side of its whole: neither object may reach the centre of the other.
    width = np.maximum(view.width[:, first], view.width[:, second])
    margin = np.maximum(SIDE_MARGIN, width / 2)
    yield from _relation(pairs, "side", difference, margin, rng, dropped)
    # If the boxes overlap, one object may be a part of the other.
    overlapping = iou(view.box[:, first], view.box[:, second]) > 0
    pairs = dataclasses.replace(pairs, in_view=pairs.in_view & ~overlapping)
    position = view.annotation.position
    yield from _metric_relations(pairs, view, position[:, first], position[:, second], rng, dropped)


def _metric_relations(
    pairs: _Pairs,
    view: FrameView,
    first: np.ndarray,
    second: np.ndarray,
    rng: np.random.Generator,
    dropped: Counter,
) -> Iterator[Candidate]:
    """Yield candidates of height, depth and the robot's directions.

    Args:
      pairs: the nouns.
      view: the first camera's facts.
      first: positions of the first nouns, float[T, 1 or K, 3].
      second: positions of the second nouns, float[T, K, 3].
      rng: draws the subjects.
      dropped: counts what is dropped.
    """
    up = view.annotation.direction_vector("up")
    left = view.annotation.direction_vector("left")
    front = view.annotation.direction_vector("front")
    if np.isnan(up).any():
        up = np.array([0, 0, 1])  # z points up in every base frame that we know of
    offset = first - second
    depth = view.depth(first) - view.depth(second)
    yield from _relation(pairs, "height", offset @ up, METRIC_MARGIN, rng, dropped)
    yield from _relation(pairs, "depth", depth, METRIC_MARGIN, rng, dropped)
    yield from _relation(pairs, "robot_side", offset @ left, ROBOT_MARGIN, rng, dropped)
    yield from _relation(pairs, "robot_front", offset @ front, ROBOT_MARGIN, rng, dropped)


def _relation(
    pairs: _Pairs,
    relation: str,
    difference: np.ndarray,
    margin: np.ndarray | float,
    rng: np.random.Generator,
    dropped: Counter,
) -> Iterator[Candidate]:
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
    known = pairs.in_view & np.isfinite(difference)
    clear = known & (np.abs(difference) >= margin)
    count_dropped(dropped, question_type, "not in view", ~pairs.in_view)
    count_dropped(dropped, question_type, "unknown", pairs.in_view & ~known)
    count_dropped(dropped, question_type, "ambiguous", known & ~clear)
    swap = (rng.random(difference.shape) < 0.5).tolist()
    negative = (difference < 0).tolist()
    if_positive, if_negative = RELATIONS[relation]
    for t, k in np.argwhere(clear).tolist():
        is_negative = negative[t][k]
        swapped = swap[t][k]
        first, second = pairs.nouns[k]
        fields = {"a": second, "b": first} if swapped else {"a": first, "b": second}
        answer = if_positive if is_negative == swapped else if_negative
        topic = (question_type, k)
        yield Candidate(t, question_type, topic, is_negative, fields, answer, swapped)


def _cross_view(view: FrameView, other: FrameView, dropped: Counter) -> Iterator[Candidate]:
    """Yield candidates that relate the first view to another view."""
    absent = other.visible == 0
    distinct = ~_confused(view) & view.shown
    known = distinct & (other.shown | absent)
    count_dropped(dropped, "cross_seen", "unknown", distinct & ~known)
    # An object that is always, or never, in the other view has only one answer.
    changing = (known & other.shown).any(0) & (known & absent).any(0)
    count_dropped(dropped, "cross_seen", "never changes", known & ~changing)
    places = _places(other)
    for t, i in np.argwhere(known).tolist():
        fields = {"box": view.box[t, i], "view": other.name}
        shown = bool(other.shown[t, i])
        if changing[i]:
            answer = "yes" if shown else "no"
            topic = ("cross_seen", other.name, i)
            yield Candidate(t, "cross_seen", topic, shown, fields, answer)
        name, clear = places[t][i]
        if not (shown and clear):
            continue
        topic = ("cross_place", other.name, i)
        yield Candidate(t, "cross_place", topic, name, fields, name)
        if [other_name for other_name, _ in places[t]].count(name) == 1:
            fields = {"place": name, "view": other.name}
            topic = ("cross_box", other.name)
            yield Candidate(t, "cross_box", topic, i, fields, view.box[t, i])
        else:
            dropped["cross_box: ambiguous"] += 1


def _places(view: FrameView) -> list[list[tuple[str, bool]]]:
    """Return `place` of every object at every step; ("", False) if its box is unknown."""
    known = np.isfinite(view.center).all(-1)
    places = [[("", False)] * known.shape[1] for _ in known]
    for t, i in np.argwhere(known).tolist():
        places[t][i] = place(view.center[t, i].tolist())
    return places


def _confused(view: FrameView) -> np.ndarray:
    """Return a mask bool[T, N] of the objects whose box is nearly the box of another object."""
    overlap = iou(view.box[:, :, None], view.box[:, None]) > MAX_OVERLAP
    return (overlap & view.shown[:, None]).sum(-1) > 1


def _names(view: FrameView, dropped: Counter) -> Iterator[Candidate]:
    """Yield candidates that ask for the box of a noun or for the noun of a box."""
    confused = _confused(view)
    count_dropped(dropped, "identify", "ambiguous", confused & view.shown)
    count_dropped(dropped, "identify", "not in view", ~view.shown)
    count_dropped(dropped, "locate_box", "not in view", ~view.shown)
    for t, i in np.argwhere(view.shown).tolist():
        name = view.annotation.objects[i]
        box = view.box[t, i]
        yield Candidate(t, "locate_box", "locate_box", i, {"object": name}, box)
        if not confused[t, i]:
            yield Candidate(t, "identify", "identify", i, {"box": box}, name)


def _descriptions(view: FrameView, dropped: Counter) -> Iterator[Candidate]:
    annotation = view.annotation
    nouns = zip(annotation.objects, annotation.colors, strict=True)
    colored = np.array([bool(color) for color in annotation.colors], bool)
    in_name = np.array([color in name.split() for name, color in nouns], bool)
    count_dropped(dropped, "describe", "color unknown", view.shown & ~colored)
    count_dropped(dropped, "describe", "color in the name", view.shown & in_name)
    centers = view.center.tolist()
    for t, i in np.argwhere(view.shown & colored & ~in_name).tolist():
        where, clear = place(centers[t][i])
        if not clear:
            dropped["describe: ambiguous"] += 1
            continue
        name = annotation.objects[i]
        color = annotation.colors[i]
        fields = {"object": name}
        answer = f"{color} {name}, {where}"
        yield Candidate(t, "describe", ("describe", i), where, fields, answer)
        if annotation.shapes and annotation.shapes[i]:
            answer = f"{color}, {annotation.shapes[i]}, {where}"
            yield Candidate(t, "describe_shape", ("describe_shape", i), where, fields, answer)


def _shown_names(view: FrameView, t: int) -> list[str]:
    return list(itertools.compress(view.annotation.objects, view.shown[t].tolist()))


def _presence(
    view: FrameView, rng: np.random.Generator, dropped: Counter, absent: Sequence[str]
) -> Iterator[Candidate]:
    for t, (coin, choice) in enumerate(rng.random((len(view.shown), 2)).tolist()):
        # The answer is drawn first. If no noun has it, the question is dropped: the opposite answer
        # would unbalance the answers.
        answer = "yes" if coin < 0.5 else "no"
        nouns = _shown_names(view, t) if answer == "yes" else absent
        if nouns:
            fields = {"object": nouns[int(choice * len(nouns))]}
            yield Candidate(t, "present", "present", answer, fields, answer)
        else:
            dropped["present: not in view"] += 1


def _counts(
    view: FrameView, rng: np.random.Generator, absent: Sequence[str]
) -> Iterator[Candidate]:
    """Yield candidates that ask how many of `NUM_COUNTED` nouns are shown.

    The number is drawn before the nouns, so that all numbers are equally frequent.
    """
    for t in range(len(view.shown)):
        shown = _shown_names(view, t)
        count = int(rng.integers(min(NUM_COUNTED, len(shown)) + 1))
        chosen = rng.permutation(shown)[:count].tolist()
        chosen += rng.permutation(absent)[: NUM_COUNTED - count].tolist()
        fields = {"objects": ", ".join(rng.permutation(chosen))}
        yield Candidate(t, "count", "count", count, fields, str(count))
