"""Scene grounding: what any frame shows, whatever the robot was told.

A question names its frame: sides "in the image" are the picture's, sides and front "in the robot frame" the robot's
own; height is along its "up"; depth is distance along the camera's optical axis. What is nearly level is not asked.
Between two views, boxes are of the first and places in the other are said in words.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from etcvla.etc.facts import Candidate, FrameView, count_dropped
from etcvla.etc.geometry import iou

SIDE_MARGIN = 0.03  # of the image; wide objects need more, see `_side`
METRIC_MARGIN = 0.015  # metres
FRAME_MARGIN = 0.03  # metres, along the robot's directions: they are harder to see
NUM_COUNTED = 3  # nouns of a question that counts
PLACE_MARGIN = 0.02  # of the image, from the lines between two places
MAX_OVERLAP = 0.5  # IoU above which a box does not tell two objects apart
GRIPPER = "gripper"
PLACES = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)
# Names of what other scenes hold: to a model that has seen those, the name alone does not give the answer away.
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


def candidates(
    view: FrameView, rng: np.random.Generator, dropped: Counter, absent: Sequence[str]
) -> Iterator[Candidate]:
    """Candidates of both scene-grounding kinds over the whole episode.

    Args:
      absent: nouns that other scenes hold; those that share a word with one of this scene's objects are left out.
        Without any, presence is not asked at all.
    """
    yield from _gripper_point(view, dropped)
    yield from _gripper_relations(view, rng, dropped)
    yield from _object_relations(view, rng, dropped)
    for camera in range(1, len(view.annotation.cameras)):
        yield from _cross(view, FrameView(view.annotation, camera), dropped)
    yield from _named(view, dropped)
    yield from _describe(view, dropped)
    yield from _present(view, rng, dropped, absent)
    yield from _count(view, rng, dropped, absent)


def place(center: np.ndarray) -> tuple[str, bool]:
    """The name of the ninth of the image where a point (y, x) lies, and whether it is clear of the dividing lines."""
    row, column = (min(int(value * 3), 2) for value in center)
    clear = min(abs(value - line) for value in center for line in (1 / 3, 2 / 3)) >= PLACE_MARGIN
    return PLACES[row][column], clear


def share_word(noun: str, objects: Sequence[str]) -> bool:
    """Does a noun share a word with an object's name, so that its absence would be debatable?"""
    return not set(noun.split()).isdisjoint(
        itertools.chain.from_iterable(name.split() for name in objects)
    )


def _gripper_point(view: FrameView, dropped: Counter) -> Iterator[Candidate]:
    count_dropped(dropped, "gripper_point", "not in view", ~view.gripper_seen)
    for t in np.flatnonzero(view.gripper_seen).tolist():
        yield Candidate(t, "gripper_point", "gripper_point", None, {}, view.gripper[t])


def _gripper_relations(
    view: FrameView, rng: np.random.Generator, dropped: Counter
) -> Iterator[Candidate]:
    facts = view.annotation
    pairs = [(GRIPPER, name) for name in facts.objects]
    seen = view.shown & view.gripper_seen[:, None]
    sideways = view.gripper[:, None, 1] - view.center[..., 1]
    clear = np.maximum(SIDE_MARGIN, view.width / 4)
    yield from _relation(
        "gripper_side", ("right", "left"), pairs, sideways, clear, seen, rng, dropped
    )
    yield from _metric_relations(
        "gripper", view, pairs, facts.gripper_position[:, None], facts.position, seen, rng, dropped
    )


def _object_relations(
    view: FrameView, rng: np.random.Generator, dropped: Counter
) -> Iterator[Candidate]:
    names, position = view.annotation.objects, view.annotation.position
    indices = list(itertools.combinations(range(len(names)), 2))
    if not indices:
        return
    pairs = [(names[i], names[j]) for i, j in indices]
    first, second = np.array(indices).T
    away = view.center[:, first, 1] - view.center[:, second, 1]
    # A part stands on neither side of its whole: the wider of the two must not reach the other's centre.
    clear = np.maximum(SIDE_MARGIN, np.maximum(view.width[:, first], view.width[:, second]) / 2)
    seen = view.shown[:, first] & view.shown[:, second]
    yield from _relation("object_side", ("right", "left"), pairs, away, clear, seen, rng, dropped)
    part = (
        iou(view.box[:, first], view.box[:, second]) > 0
    )  # boxes that meet: one may be a part of the other
    yield from _metric_relations(
        "object", view, pairs, position[:, first], position[:, second], seen & ~part, rng, dropped
    )


def _metric_relations(
    subject: str,
    view: FrameView,
    pairs: Sequence[tuple[str, str]],
    first: np.ndarray,
    second: np.ndarray,
    seen: np.ndarray,
    rng: np.random.Generator,
    dropped: Counter,
) -> Iterator[Candidate]:
    """Height, depth and the robot's own directions, of positions float[T, 1 or K, 3] and float[T, K, 3]."""
    up, left, front = (view.annotation.direction_vector(name) for name in ("up", "left", "front"))
    up = (
        np.array([0, 0, 1]) if np.isnan(up).any() else up
    )  # z is up in every base frame that we know of
    for question_type, words, more in (
        ("height", ("above", "below"), (first - second) @ up),
        ("depth", ("farther", "nearer"), view.depth(first) - view.depth(second)),
        ("robot_side", ("left", "right"), (first - second) @ left),
        ("robot_front", ("front", "behind"), (first - second) @ front),
    ):
        margin = FRAME_MARGIN if question_type.startswith("robot") else METRIC_MARGIN
        yield from _relation(
            f"{subject}_{question_type}", words, pairs, more, margin, seen, rng, dropped
        )


def _relation(
    question_type: str,
    words: tuple[str, str],
    pairs: Sequence[tuple[str, str]],
    difference: np.ndarray,
    margin: np.ndarray | float,
    seen: np.ndarray,
    rng: np.random.Generator,
    dropped: Counter,
) -> Iterator[Candidate]:
    """Two-way relations of K pairs: `words` are the answers for a positive and a negative `difference[t, k]`.

    The subject of the question is drawn, so that both answers are equally frequent whatever the scene prefers.
    """
    known = seen & np.isfinite(difference)
    clear = known & (np.abs(difference) >= margin)
    count_dropped(dropped, question_type, "not in view", ~seen)
    count_dropped(dropped, question_type, "unknown", seen & ~known)
    count_dropped(dropped, question_type, "ambiguous", known & ~clear)
    swap = rng.random(difference.shape) < 0.5
    negative, swap = (difference < 0).tolist(), swap.tolist()
    for t, k in np.argwhere(clear).tolist():
        less, swapped = negative[t][k], swap[t][k]
        a, b = pairs[k][::-1] if swapped else pairs[k]
        yield Candidate(
            t,
            question_type,
            (question_type, k),
            less,
            {"a": a, "b": b},
            words[less != swapped],
            swapped,
        )


def _cross(view: FrameView, other: FrameView, dropped: Counter) -> Iterator[Candidate]:
    """Which of what the first view shows the other shows, and where."""
    absent = other.visible == 0
    distinct = ~_confused(view) & view.shown
    known = distinct & (other.shown | absent)
    count_dropped(dropped, "cross_seen", "unknown", distinct & ~known)
    # What is always in the other view, or never, cannot be balanced.
    changing = (known & other.shown).any(0) & (known & absent).any(0)
    count_dropped(dropped, "cross_seen", "never changes", known & ~changing)
    boxed = np.isfinite(other.center).all(-1)
    places = [
        [
            place(center) if known else ("", False)
            for center, known in zip(centers, row, strict=True)
        ]
        for centers, row in zip(other.center.tolist(), boxed.tolist(), strict=True)
    ]
    for t, i in np.argwhere(known).tolist():
        slots = {"box": view.box[t, i], "view": other.name}
        seen = bool(other.shown[t, i])
        if changing[i]:
            yield Candidate(
                t, "cross_seen", ("cross_seen", other.name, i), seen, slots, "yes" if seen else "no"
            )
        where, clear = places[t][i] if seen else ("", False)
        if not clear:
            continue
        yield Candidate(t, "cross_place", ("cross_place", other.name, i), where, slots, where)
        if sum(name == where for name, _ in places[t]) == 1:
            yield Candidate(
                t,
                "cross_box",
                ("cross_box", other.name),
                i,
                {"place": where, "view": other.name},
                view.box[t, i],
            )
        else:
            dropped["cross_box: ambiguous"] += 1


def _confused(view: FrameView) -> np.ndarray:
    """bool[T, N]: the object's box is nearly another's too."""
    overlap = iou(view.box[:, :, None], view.box[:, None]) > MAX_OVERLAP
    return (overlap & view.shown[:, None]).sum(-1) > 1


def _named(view: FrameView, dropped: Counter) -> Iterator[Candidate]:
    """Name to box and box to name."""
    confused = _confused(view)
    count_dropped(dropped, "identify", "ambiguous", confused & view.shown)
    for question_type in ("identify", "locate_box"):
        count_dropped(dropped, question_type, "not in view", ~view.shown)
    for t, i in np.argwhere(view.shown).tolist():
        name, box = view.annotation.objects[i], view.box[t, i]
        yield Candidate(t, "locate_box", "locate_box", i, {"object": name}, box)
        if not confused[t, i]:
            yield Candidate(t, "identify", "identify", i, {"box": box}, name)


def _describe(view: FrameView, dropped: Counter) -> Iterator[Candidate]:
    facts = view.annotation
    colored = np.array([bool(color) for color in facts.colors], bool)
    count_dropped(dropped, "describe", "color unknown", view.shown & ~colored)
    told = np.array(
        [color in name.split() for name, color in zip(facts.objects, facts.colors, strict=True)],
        bool,
    )
    count_dropped(dropped, "describe", "color in the name", view.shown & told)
    colored &= ~told
    centers = view.center.tolist()
    for t, i in np.argwhere(view.shown & colored).tolist():
        where, clear = place(centers[t][i])
        if not clear:
            dropped["describe: ambiguous"] += 1
            continue
        name, color, slots = facts.objects[i], facts.colors[i], {"object": facts.objects[i]}
        yield Candidate(t, "describe", ("describe", i), where, slots, f"{color} {name}, {where}")
        if facts.shapes and facts.shapes[i]:
            yield Candidate(
                t,
                "describe_shape",
                ("describe_shape", i),
                where,
                slots,
                f"{color}, {facts.shapes[i]}, {where}",
            )


def _present(
    view: FrameView, rng: np.random.Generator, dropped: Counter, absent: Sequence[str]
) -> Iterator[Candidate]:
    objects = view.annotation.objects
    absent = [noun for noun in absent if not share_word(noun, objects)]
    if not absent:
        return
    for t, (yes, choice) in enumerate(rng.random((len(view.shown), 2)).tolist()):
        # The answer is drawn first and given up if it cannot be had: taking the other one would unbalance them.
        nouns = (
            [name for name, shown in zip(objects, view.shown[t].tolist(), strict=True) if shown]
            if yes < 0.5
            else absent
        )
        if nouns:
            answer = "yes" if yes < 0.5 else "no"
            yield Candidate(
                t, "present", "present", answer, {"object": nouns[int(choice * len(nouns))]}, answer
            )
        else:
            dropped["present: not in view"] += 1


def _count(
    view: FrameView, rng: np.random.Generator, dropped: Counter, absent: Sequence[str]
) -> Iterator[Candidate]:
    """How many of three nouns are there; the number is drawn before the nouns."""
    objects = view.annotation.objects
    absent = [noun for noun in absent if not share_word(noun, objects)]
    if len(absent) < NUM_COUNTED:
        return
    for t, shown in enumerate(view.shown.tolist()):
        nouns = [name for name, seen in zip(objects, shown, strict=True) if seen]
        count = int(rng.integers(min(NUM_COUNTED, len(nouns)) + 1))
        asked = [*rng.permutation(nouns)[:count], *rng.permutation(absent)[: NUM_COUNTED - count]]
        yield Candidate(
            t, "count", "count", count, {"objects": ", ".join(rng.permutation(asked))}, str(count)
        )
