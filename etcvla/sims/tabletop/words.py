"""The words of the tabletop: nouns, colors, and which of them each tier of a scene uses.

A *tier* says what robot data know about the words of a scene. A *rotation* permutes the words of
the tiers A, B and C, so that results do not depend on single words. A *scene* is a tier and a
rotation, such as "C2". This module imports no simulator.
"""

from __future__ import annotations

import dataclasses
import functools

from etcvla.errors import UserError

NOUNS = ("cube", "ball", "can", "cone", "ring", "cross")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
# Words that no base data have.
UNKNOWN_NOUNS = ("star", "arch")
UNKNOWN_COLORS = ("pink", "teal")
ALL_NOUNS = NOUNS + UNKNOWN_NOUNS
ALL_COLORS = COLORS + UNKNOWN_COLORS
# A: words of demonstrations. P: a pair of A words that demonstrations leave out.
# B: a noun and a color that ETC of robot scenes has and demonstrations do not have.
# C: a noun and a color that only the base model's data have.
# N: a noun and a color that the base model's data do not have either.
TIERS = ("A", "P", "B", "C", "N")
NUM_ROTATIONS = 24  # after these, nouns and colors meet in the same tiers again
_COLOR_STRIDE = 3  # no divisor of the number of colors, so every color comes to every tier
_NUM_LEFT_OUT = 3  # pairs of A words that demonstrations leave out


@dataclasses.dataclass(frozen=True)
class TierWords:
    """The words of a tier in a rotation."""

    nouns: tuple[str, ...]
    colors: tuple[str, ...]


def tier_words(tier: str, rotation: int) -> TierWords:
    """Return the nouns and colors of a tier.

    Tier A has 4 nouns and 5 colors, B 1 and 1, C 1 and 2; P has those of A, and N the unknown ones.
    Raises UserError for an unknown tier or rotation.
    """
    if tier not in TIERS:
        raise UserError(f"unknown tier {tier!r}; known: {', '.join(TIERS)}")
    if not 0 <= rotation < NUM_ROTATIONS:
        raise UserError(f"rotation {rotation}: the tabletop has rotations 0 to {NUM_ROTATIONS - 1}")
    if tier == "N":
        return TierWords(UNKNOWN_NOUNS, UNKNOWN_COLORS)
    nouns = _rotated(NOUNS, rotation)
    colors = _rotated(COLORS, _COLOR_STRIDE * rotation)
    if tier == "B":
        return TierWords(nouns[4:5], colors[5:6])
    if tier == "C":
        return TierWords(nouns[5:], colors[6:])
    return TierWords(nouns[:4], colors[:5])


def left_out_pairs(rotation: int) -> frozenset[tuple[str, str]]:
    """Return the P pairs (noun, color): both are A words, but no demonstration shows the pair."""
    words = tier_words("A", rotation)
    pairs = zip(words.nouns, words.colors, strict=False)
    return frozenset(list(pairs)[:_NUM_LEFT_OUT])


@functools.cache
def parse_scene(scene: str) -> tuple[str, int]:
    """Return the tier and the rotation of a scene such as "C2".

    Raises UserError for an unknown scene.
    """
    tier = scene[:1]
    rotation = scene[1:]
    if tier not in TIERS or not rotation.isdecimal() or int(rotation) >= NUM_ROTATIONS:
        raise UserError(
            f"unknown scene {scene!r} of the tabletop: a scene is a tier ({', '.join(TIERS)}) and "
            f"a rotation (0 to {NUM_ROTATIONS - 1}), such as 'C2'"
        )
    return tier, int(rotation)


def _rotated(words: tuple[str, ...], shift: int) -> tuple[str, ...]:
    shift %= len(words)
    return words[shift:] + words[:shift]
