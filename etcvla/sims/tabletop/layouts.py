"""Layouts: which five objects are on the table and where, as a function of a seed.

`seed // 5` is the layout and `seed % 5` the object that the instruction names. Five consecutive
seeds share everything except the named object, so the image does not determine the target.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from etcvla.sims.seeds import EVAL_SEED_BASE
from etcvla.sims.tabletop.words import TIERS, left_out_pairs, parse_scene, tier_words

NUM_OBJECTS = 5
# Metres. Objects are placed in a rectangle around the origin.
HALF_AREA = np.array([0.15, 0.145])
MIN_DISTANCE = 0.095  # between the centres of two objects
HOME = np.array([0.0, 0.06, 0.19])  # where the hand starts
_HOME_SPREAD = np.array([0.05, 0.04, 0.02])
_LOW_SHARE = 0.35  # share of the demonstrations that start low and beside an object
_LOW_DISTANCE = (0.045, 0.065)  # metres from that object's centre
_LOW_HEIGHT = (0.05, 0.1)
_WORDS_STREAM = 1
_START_STREAM = 2
# Novelty of the objects of a tier, in their order.
_BY_TIER_WORDS = ("none", "color", "noun", "both", "none")
_NOVELTY = {
    "P": ("none", "none", "none", "pair", "none"),
    "B": _BY_TIER_WORDS,
    "C": _BY_TIER_WORDS,
    "N": _BY_TIER_WORDS,
}


@dataclasses.dataclass(frozen=True)
class TableObject:
    """One object of a layout."""

    noun: str
    color: str
    novelty: str  # words that demonstrations lack: "none", "noun", "color", "both" or "pair"

    @property
    def name(self) -> str:
        """Name as instructions use it, such as "red cube"."""
        return f"{self.color} {self.noun}"


@dataclasses.dataclass(frozen=True)
class Layout:
    """Five objects with two nouns and two colors in all combinations, and a fifth one."""

    number: int
    objects: tuple[TableObject, ...]
    positions: np.ndarray  # float[5, 2], x and y in metres
    yaws: np.ndarray  # float[5], radians
    hand: np.ndarray  # float[3], where the hand starts
    table: int  # random number that selects the table's color


def layout_number(seed: int) -> int:
    """Return the layout of a seed."""
    return seed // NUM_OBJECTS


def named_object(seed: int) -> int:
    """Return the index of the object that the instruction of a seed names."""
    return seed % NUM_OBJECTS


def is_evaluation(number: int) -> bool:
    """Return whether a layout belongs to the seeds of evaluations."""
    return number >= layout_number(EVAL_SEED_BASE)


def make_layout(scene: str, number: int) -> Layout:
    """Return layout `number` of a scene.

    Positions, yaws and the hand's start depend on the number alone, so scenes share them.
    """
    rng = np.random.default_rng(number)
    positions = sample_positions(rng, HALF_AREA, MIN_DISTANCE)
    yaws = rng.uniform(0, 2 * np.pi, NUM_OBJECTS)
    table = int(rng.integers(1 << 16))
    hand = _hand_start(number, positions)
    return Layout(number, _objects(scene, number), positions, yaws, hand, table)


def sample_positions(
    rng: np.random.Generator, half_area: np.ndarray, min_distance: float
) -> np.ndarray:
    """Draw five points, float[5, 2] metres, in a rectangle and at least `min_distance` apart."""
    while True:
        points = rng.uniform(-half_area, half_area, (64, NUM_OBJECTS, 2))
        gaps = np.linalg.norm(points[:, :, None] - points[:, None], axis=-1)
        gaps += np.eye(NUM_OBJECTS)  # an object's distance to itself does not count
        fits = gaps.min((1, 2)) > min_distance
        if fits.any():
            return points[fits][0]


def _hand_start(number: int, positions: np.ndarray) -> np.ndarray:
    """Draw the hand's start: near `HOME`, or in some demonstrations low and beside an object."""
    rng = np.random.default_rng([number, _START_STREAM])
    start = HOME + rng.uniform(-1, 1, 3) * _HOME_SPREAD
    if is_evaluation(number) or rng.uniform() > _LOW_SHARE:
        return start
    angle = rng.uniform(0, 2 * np.pi)
    offset = rng.uniform(*_LOW_DISTANCE) * np.array([np.cos(angle), np.sin(angle)])
    beside = positions[rng.integers(NUM_OBJECTS)] + offset
    clear = np.linalg.norm(positions - beside, axis=1).min() > _LOW_DISTANCE[0] - 1e-6
    return np.append(beside, rng.uniform(*_LOW_HEIGHT)) if clear else start


def _objects(scene: str, number: int) -> tuple[TableObject, ...]:
    """Draw the objects: noun 1 and 2 in color 1 and 2, and a fifth with words of its own."""
    tier, rotation = parse_scene(scene)
    rng = np.random.default_rng([number, _WORDS_STREAM, TIERS.index(tier), rotation])
    known = tier_words("A", rotation)
    left_out = left_out_pairs(rotation)
    while True:
        nouns = list(rng.permutation(known.nouns)[:3])
        colors = list(rng.permutation(known.colors)[:3])
        if tier in "BCN":
            words = tier_words(tier, rotation)
            nouns[1] = str(rng.choice(words.nouns))
            colors[1] = str(rng.choice(words.colors))
        elif tier == "P":
            pairs = sorted(left_out)
            pair = pairs[rng.integers(len(pairs))]
            nouns[1] = pair[0]
            colors[1] = pair[1]
        pairs = [*itertools.product(nouns[:2], colors[:2]), (nouns[2], colors[2])]
        has_pair = [pair in left_out for pair in pairs]
        expected = [False, False, False, tier == "P", False]
        if has_pair == expected and len(set(nouns)) == len(set(colors)) == 3:
            break
    novelty = _NOVELTY.get(tier, ("none",) * NUM_OBJECTS)
    return tuple(
        TableObject(str(noun), str(color), new)
        for (noun, color), new in zip(pairs, novelty, strict=True)
    )
