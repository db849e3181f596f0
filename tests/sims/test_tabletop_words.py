"""The tabletop's words, tiers and rotations."""

import pytest

from etcvla.errors import UserError
from etcvla.sims.tabletop.words import (
    COLORS,
    NOUNS,
    NUM_ROTATIONS,
    UNKNOWN_COLORS,
    UNKNOWN_NOUNS,
    left_out_pairs,
    parse_scene,
    tier_words,
)


@pytest.mark.parametrize("rotation", range(NUM_ROTATIONS))
def test_tiers_share_no_word_and_cover_all_of_them(rotation):
    nouns = []
    colors = []
    for tier in "ABC":
        words = tier_words(tier, rotation)
        nouns += words.nouns
        colors += words.colors
    assert sorted(nouns) == sorted(NOUNS)
    assert sorted(colors) == sorted(COLORS)
    unknown = tier_words("N", rotation)
    assert not {*unknown.nouns, *unknown.colors} & {*NOUNS, *COLORS}
    assert unknown.nouns == UNKNOWN_NOUNS
    assert unknown.colors == UNKNOWN_COLORS


@pytest.mark.parametrize("tier", ["B", "C"])
def test_rotations_bring_every_word_to_every_tier(tier):
    nouns = set()
    colors = set()
    for rotation in range(8):
        words = tier_words(tier, rotation)
        nouns.update(words.nouns)
        colors.update(words.colors)
    assert nouns == set(NOUNS)
    assert colors == set(COLORS)


def test_left_out_pairs_are_few_and_of_a_words():
    for rotation in range(NUM_ROTATIONS):
        known = tier_words("A", rotation)
        pairs = left_out_pairs(rotation)
        assert len(pairs) == 3
        for noun, color in pairs:
            assert noun in known.nouns
            assert color in known.colors


@pytest.mark.parametrize("scene", ["", "D0", "A", "Ax", "A24", "a0", "A-1"])
def test_unknown_scene_names_the_tiers(scene):
    with pytest.raises(UserError, match=r"a tier \(A, P, B, C, N\) and a rotation \(0 to 23\)"):
        parse_scene(scene)


def test_unknown_tier_and_rotation_are_user_errors():
    with pytest.raises(UserError, match="unknown tier 'Q'; known: A, P, B, C, N"):
        tier_words("Q", 0)
    with pytest.raises(UserError, match="rotations 0 to 23"):
        tier_words("A", 24)
