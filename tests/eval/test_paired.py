"""Statistics of paired seeds, against scipy, enumeration and published numbers."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from etcvla.eval import paired

DIFFERENCES = [0.12, 0.05, -0.02, 0.09, 0.14, 0.03]


def enumerated_p(differences, is_extreme):
    """Return the share of all assignments of signs whose mean is extreme."""
    means = []
    for signs in itertools.product((-1, 1), repeat=len(differences)):
        means.append(np.mean(np.multiply(signs, differences)))
    return np.mean([is_extreme(mean) for mean in means])


def test_the_sign_flip_test_counts_all_assignments():
    observed = np.mean(DIFFERENCES) - 1e-12
    two_sided = enumerated_p(DIFFERENCES, lambda mean: abs(mean) >= observed)
    assert paired.sign_flip(DIFFERENCES) == pytest.approx(two_sided)


@pytest.mark.parametrize("seeds", [2, 3, 6, 8])
def test_the_smallest_p_value_follows_from_the_number_of_seeds(seeds):
    differences = np.linspace(0.1, 0.2, seeds)
    assert paired.sign_flip(differences) == pytest.approx(2.0 ** (1 - seeds))


def test_without_two_seeds_or_differences_nothing_is_significant():
    assert paired.sign_flip([]) == paired.sign_flip([0.4]) == 1
    assert paired.sign_flip([0.0] * 6) == 1


def test_the_interval_of_many_seeds_is_the_percentile_bootstrap():
    values = np.random.default_rng(1).normal(0.1, 0.05, 100)
    low, high = paired.two_level_interval(values[:, None])
    expected = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert low == pytest.approx(expected.low, abs=1e-3)
    assert high == pytest.approx(expected.high, abs=1e-3)


def test_the_interval_includes_the_layouts():
    seeds = [np.array([0.0, 0.2] * 5), np.array([0.05, 0.15] * 5)]
    low, high = paired.two_level_interval(seeds)
    assert low < 0.1 < high  # both seeds have the mean 0.1: only layouts vary
    assert paired.two_level_interval([np.full(4, 0.1)] * 3) == pytest.approx((0.1, 0.1))


def test_the_interval_of_six_seeds_covers_the_truth(monkeypatch):
    monkeypatch.setattr(paired, "_RESAMPLES", 1000)
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        seeds = rng.normal(0.1, 0.06, 6)
        low, high = paired.two_level_interval([rng.normal(seed, 0.3, 20) for seed in seeds])
        covered += low <= 0.1 <= high
    assert covered >= 92


def test_one_seed_has_no_interval():
    assert paired.two_level_interval([np.ones(9)]) == (-math.inf, math.inf)


def test_holm_adjusts_as_published():
    # The example of R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm").
    assert paired.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert paired.holm([0.7, 0.6]) == [1, 1]
    assert paired.holm([]) == []


def test_a_test_in_fixed_order_waits_for_those_before_it():
    assert paired.fixed_order([0.01, 0.2, 0.001]) == [0.01, 0.2, 0.2]


@pytest.mark.parametrize(("seeds", "points"), [(3, 32), (6, 13.5), (8, 11)])
def test_detectable_difference_of_a_pilot(seeds, points):
    deviation = 100 * paired.difference_deviation(0.06, rate=0.7, trials=200)
    assert paired.detectable_difference(deviation, seeds) == pytest.approx(points, abs=0.6)


def test_a_detectable_difference_is_detected():
    shift = paired.detectable_difference(1.0, 8)
    samples = np.random.default_rng(0).normal(shift, 1.0, (4000, 8))
    p_values = scipy.stats.ttest_1samp(samples, 0, axis=1).pvalue
    assert np.mean(p_values <= 0.05) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(
    ("low", "high", "p_value", "margin", "expected"),
    [
        (3, 20, 0.03, 8, "supported"),
        (3, 20, 0.06, 8, "inconclusive"),
        (-1, 20, 0.03, 8, "inconclusive"),
        (1, 7, 0.03, 8, "excluded"),
        (-4, 3, 0.03, -5, "supported"),
        (-9, -6, 0.03, -5, "excluded"),
        (-math.inf, math.inf, 1.0, 8, "inconclusive"),
    ],
)
def test_verdicts(low, high, p_value, margin, expected):
    assert paired.verdict(low, high, p_value, margin) == expected
