"""The tabletop's layouts: the image does not determine which object the instruction names."""

from collections import Counter

import numpy as np
import pytest

from etcvla.sims.seeds import demo_seed, eval_seed
from etcvla.sims.tabletop.layouts import (
    HALF_AREA,
    HOME,
    MIN_DISTANCE,
    NUM_OBJECTS,
    is_evaluation,
    layout_number,
    make_layout,
    named_object,
)
from etcvla.sims.tabletop.words import left_out_pairs, tier_words

NUM_LAYOUTS = 400


def _layouts(scene, count=NUM_LAYOUTS):
    return [make_layout(scene, number) for number in range(count)]


def _sharers(layout):
    """Return for each object how many others share its noun, and how many its color."""
    nouns = Counter(shown.noun for shown in layout.objects)
    colors = Counter(shown.color for shown in layout.objects)
    return [(nouns[shown.noun] - 1, colors[shown.color] - 1) for shown in layout.objects]


def test_five_consecutive_seeds_name_each_object_of_one_layout():
    for first in (demo_seed(35), eval_seed(40)):
        seeds = range(first, first + NUM_OBJECTS)
        assert len({layout_number(seed) for seed in seeds}) == 1
        assert [named_object(seed) for seed in seeds] == list(range(NUM_OBJECTS))
    assert not is_evaluation(layout_number(demo_seed(10**6 - 1, 900)))
    assert is_evaluation(layout_number(eval_seed(0)))


@pytest.mark.parametrize("scene", ["A0", "A3", "P1", "B2", "C5", "N0"])
def test_two_nouns_and_two_colors_in_all_combinations_and_a_fifth_object(scene):
    for layout in _layouts(scene, 100):
        assert len({shown.name for shown in layout.objects}) == NUM_OBJECTS
        assert _sharers(layout) == [(1, 1)] * 4 + [(0, 0)]


@pytest.mark.parametrize("tier", ["B", "C", "N"])
def test_words_of_a_tier_are_the_second_noun_and_color(tier):
    known = tier_words("A", 4)
    new = tier_words(tier, 4)
    for layout in _layouts(f"{tier}4", 50):
        for shown in layout.objects:
            is_new = (shown.noun in new.nouns, shown.color in new.colors)
            expected = {
                (False, False): "none",
                (True, False): "noun",
                (False, True): "color",
                (True, True): "both",
            }
            assert shown.novelty == expected[is_new]
            assert is_new[0] or shown.noun in known.nouns
            assert is_new[1] or shown.color in known.colors
        novelties = sorted(shown.novelty for shown in layout.objects)
        assert novelties == ["both", "color", "none", "none", "noun"]


@pytest.mark.parametrize("scene", ["A1", "B1", "C1", "N1"])
def test_left_out_pairs_are_in_tier_p_alone(scene):
    left_out = left_out_pairs(1)
    seen = set()
    for layout in _layouts(scene):
        seen.update((shown.noun, shown.color) for shown in layout.objects)
    assert not seen & left_out


def test_every_layout_of_tier_p_has_one_left_out_pair():
    left_out = left_out_pairs(1)
    seen = set()
    for layout in _layouts("P1"):
        pairs = [(shown.noun, shown.color) for shown in layout.objects]
        (novel,) = set(pairs) & left_out
        assert [shown.novelty for shown in layout.objects].count("pair") == 1
        assert layout.objects[pairs.index(novel)].novelty == "pair"
        seen.add(novel)
    assert seen == left_out


def test_all_words_of_tier_a_are_about_equally_frequent():
    layouts = _layouts("A0")
    words = tier_words("A", 0)
    nouns = Counter(shown.noun for layout in layouts for shown in layout.objects)
    colors = Counter(shown.color for layout in layouts for shown in layout.objects)
    for counts, expected in ((nouns, words.nouns), (colors, words.colors)):
        share = len(layouts) * NUM_OBJECTS / len(expected)
        assert set(counts) == set(expected)
        for count in counts.values():
            assert 0.6 * share < count < 1.5 * share


def test_positions_do_not_determine_the_named_object():
    """Each object is nearest to the hand, to the centre, or alone in a corner equally often."""
    layouts = _layouts("A0")
    positions = np.array([layout.positions for layout in layouts])
    hands = np.array([layout.hand[:2] for layout in layouts])
    gaps = np.linalg.norm(positions[:, :, None] - positions[:, None], axis=-1)
    guesses = {
        "nearest to the hand": np.linalg.norm(positions - hands[:, None], axis=-1).argmin(1),
        "nearest to the centre": np.linalg.norm(positions, axis=-1).argmin(1),
        "nearest to the others": gaps.sum(-1).argmin(1),
        "leftmost": positions[..., 0].argmin(1),
        "nearest to the camera": positions[..., 1].argmin(1),
    }
    for guess in guesses.values():
        # Each object is named once in every layout, so the guess is right in a fifth of the trials
        # exactly. It must not prefer an object either, whose words would be learned instead.
        counts = np.bincount(guess, minlength=NUM_OBJECTS)
        error = counts / len(layouts) - 1 / NUM_OBJECTS
        assert np.abs(error).max() < 4 * np.sqrt(0.2 * 0.8 / len(layouts))


def test_layouts_have_room_and_share_positions_between_scenes():
    for number in range(50):
        layout = make_layout("A0", number)
        gaps = np.linalg.norm(layout.positions[:, None] - layout.positions, axis=-1)
        assert gaps[np.triu_indices(NUM_OBJECTS, 1)].min() > MIN_DISTANCE
        assert (np.abs(layout.positions) <= HALF_AREA).all()
        other = make_layout("C7", number)
        np.testing.assert_array_equal(layout.positions, other.positions)
        np.testing.assert_array_equal(layout.hand, other.hand)
        assert layout.objects != other.objects


def test_some_demonstrations_start_low_and_no_evaluation_does():
    heights = np.array([layout.hand[2] for layout in _layouts("A0")])
    assert 0.15 < (heights < 0.11).mean() < 0.45
    first = layout_number(eval_seed(0))
    for number in range(first, first + 100):
        assert make_layout("A0", number).hand[2] > HOME[2] - 0.03
