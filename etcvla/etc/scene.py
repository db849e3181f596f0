"""Scene grounding: what any frame shows, whatever the robot was told.

Sides are those of the image; height is z of the robot's base frame; depth is distance along the camera's optical axis,
which needs no word about where the robot stands. What is nearly level is not asked.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from etcvla.etc.facts import Candidate, View, drop
from etcvla.etc.geometry import iou

SIDE_MARGIN = 0.03  # of the image; wide objects need more, see `_side`
METRIC_MARGIN = 0.015  # metres
PLACE_MARGIN = 0.02  # of the image, from the lines between two places
MAX_OVERLAP = 0.5  # IoU above which a box does not tell two objects apart
GRIPPER = "gripper"
PLACES = (("top left", "top", "top right"), ("left", "center", "right"), ("bottom left", "bottom", "bottom right"))
# Names of what other scenes hold: to a model that has seen those, the name alone does not give the answer away.
ABSENT = ("goal marker", "puck", "door", "door handle", "safe", "drawer", "drawer handle", "cabinet", "button",
          "button box", "window", "window handle", "mug", "bowl")


def candidates(view: View, rng: np.random.Generator, dropped: Counter, absent: Sequence[str]) -> Iterator[Candidate]:
    """Candidates of both scene-grounding kinds over the whole episode.

    Args:
      absent: nouns that other scenes hold; those that share a word with one of this scene's objects are left out.
        Without any, presence is not asked at all.
    """
    yield from _gripper_point(view, dropped)
    yield from _gripper_relations(view, rng, dropped)
    yield from _object_side(view, rng, dropped)
    yield from _named(view, dropped)
    yield from _describe(view, dropped)
    yield from _present(view, rng, dropped, absent)


def place(center: np.ndarray) -> tuple[str, bool]:
    """The name of the ninth of the image where a point (y, x) lies, and whether it is clear of the dividing lines."""
    row, column = (min(int(value * 3), 2) for value in center)
    clear = min(abs(value - line) for value in center for line in (1 / 3, 2 / 3)) >= PLACE_MARGIN
    return PLACES[row][column], clear


def share_word(noun: str, objects: Sequence[str]) -> bool:
    """Does a noun share a word with an object's name, so that its absence would be debatable?"""
    return not set(noun.split()).isdisjoint(itertools.chain.from_iterable(name.split() for name in objects))


def _gripper_point(view: View, dropped: Counter) -> Iterator[Candidate]:
    drop(dropped, "gripper_point", "not in view", ~view.gripper_seen)
    for t in np.flatnonzero(view.gripper_seen).tolist():
        yield Candidate(t, "gripper_point", "gripper_point", {}, view.gripper[t])


def _gripper_relations(view: View, rng: np.random.Generator, dropped: Counter) -> Iterator[Candidate]:
    facts = view.annotation
    pairs = [(GRIPPER, name) for name in facts.objects]
    seen = view.shown & view.gripper_seen[:, None]
    gripper = facts.gripper_position[:, None]
    sideways = view.gripper[:, None, 1] - view.center[..., 1]
    upward = gripper[..., 2] - facts.position[..., 2]
    away = view.depth(gripper) - view.depth(facts.position)
    clear = np.maximum(SIDE_MARGIN, view.width / 4)
    yield from _relation("gripper_side", ("right", "left"), pairs, sideways, clear, seen, rng, dropped)
    yield from _relation("gripper_height", ("above", "below"), pairs, upward, METRIC_MARGIN, seen, rng, dropped)
    yield from _relation("gripper_depth", ("farther", "nearer"), pairs, away, METRIC_MARGIN, seen, rng, dropped)


def _object_side(view: View, rng: np.random.Generator, dropped: Counter) -> Iterator[Candidate]:
    names = view.annotation.objects
    pairs = list(itertools.combinations(range(len(names)), 2))
    if not pairs:
        return
    first, second = np.array(pairs).T
    away = view.center[:, first, 1] - view.center[:, second, 1]
    # A part stands on neither side of its whole: the wider of the two must not reach the other's centre.
    clear = np.maximum(SIDE_MARGIN, np.maximum(view.width[:, first], view.width[:, second]) / 2)
    yield from _relation("object_side", ("right", "left"), [(names[i], names[j]) for i, j in pairs], away, clear,
                         view.shown[:, first] & view.shown[:, second], rng, dropped)


def _relation(form: str, words: tuple[str, str], pairs: Sequence[tuple[str, str]], difference: np.ndarray,
              margin: np.ndarray | float, seen: np.ndarray, rng: np.random.Generator,
              dropped: Counter) -> Iterator[Candidate]:
    """Two-way relations of K pairs: `words` are the answers for a positive and a negative `difference[t, k]`.

    The subject of the question is drawn, so that both answers are equally frequent whatever the scene prefers.
    """
    known = seen & np.isfinite(difference)
    clear = known & (np.abs(difference) >= margin)
    drop(dropped, form, "not in view", ~seen)
    drop(dropped, form, "unknown", seen & ~known)
    drop(dropped, form, "ambiguous", known & ~clear)
    swap = rng.random(difference.shape) < 0.5
    negative, swap = (difference < 0).tolist(), swap.tolist()
    for t, k in np.argwhere(clear).tolist():
        less, swapped = negative[t][k], swap[t][k]
        a, b = pairs[k][::-1] if swapped else pairs[k]
        yield Candidate(t, form, (form, k, less), {"a": a, "b": b}, words[less != swapped])


def _named(view: View, dropped: Counter) -> Iterator[Candidate]:
    """Name to box and box to name."""
    overlap = iou(view.box[:, :, None], view.box[:, None]) > MAX_OVERLAP
    confused = (overlap & view.shown[:, None]).sum(-1) > 1
    drop(dropped, "identify", "ambiguous", confused & view.shown)
    for form in ("identify", "locate_box"):
        drop(dropped, form, "not in view", ~view.shown)
    for t, i in np.argwhere(view.shown).tolist():
        name, box = view.annotation.objects[i], view.box[t, i]
        yield Candidate(t, "locate_box", ("locate_box", i), {"object": name}, box)
        if not confused[t, i]:
            yield Candidate(t, "identify", ("identify", i), {"box": box}, name)


def _describe(view: View, dropped: Counter) -> Iterator[Candidate]:
    colored = np.array([bool(color) for color in view.annotation.colors], bool)
    drop(dropped, "describe", "color unknown", view.shown & ~colored)
    centers = view.center.tolist()
    for t, i in np.argwhere(view.shown & colored).tolist():
        where, clear = place(centers[t][i])
        if clear:
            name = view.annotation.objects[i]
            yield Candidate(t, "describe", ("describe", i, where), {"object": name},
                            f"{view.annotation.colors[i]} {name}, {where}")
        else:
            dropped["describe: ambiguous"] += 1


def _present(view: View, rng: np.random.Generator, dropped: Counter, absent: Sequence[str]) -> Iterator[Candidate]:
    objects = view.annotation.objects
    absent = [noun for noun in absent if not share_word(noun, objects)]
    if not absent:
        return
    for t, (yes, choice) in enumerate(rng.random((len(view.shown), 2)).tolist()):
        # The answer is drawn first and given up if it cannot be had: taking the other one would unbalance them.
        nouns = [name for name, shown in zip(objects, view.shown[t].tolist(), strict=True) if shown] \
            if yes < 0.5 else absent
        if nouns:
            answer = "yes" if yes < 0.5 else "no"
            yield Candidate(t, "present", ("present", answer), {"object": nouns[int(choice * len(nouns))]}, answer)
        else:
            dropped["present: not in view"] += 1
