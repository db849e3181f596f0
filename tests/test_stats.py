"""Confidence intervals agree with published values."""

import pytest

from etcvla.stats import Estimate, clustered, mean, rate, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_wilson_agrees_with_newcombe_1998(successes, trials, low, high):
    assert wilson(successes, trials) == pytest.approx((low, high), abs=1e-4)


def test_interval_without_trials_is_everything():
    assert wilson(0, 0) == (0.0, 1.0)
    assert rate(0, 0) is None


def test_correlated_answers_of_an_episode_widen_the_interval():
    # Six episodes of ten answers each; the answers of an episode are all right or all wrong.
    values = [i // 10 % 2 == 0 for i in range(60)]
    independent = clustered(values, range(60))
    grouped = clustered(values, [i // 10 for i in range(60)])
    assert (independent.low, independent.high) == pytest.approx(wilson(30, 60))
    assert (grouped.low, grouped.high) == pytest.approx(wilson(3, 6))
    assert grouped.count == 60


def test_interval_of_equal_values_has_their_number_of_trials():
    assert clustered([True] * 8, range(8)).low == pytest.approx(wilson(8, 8)[0])


def test_rate_has_the_wilson_interval():
    assert rate(0, 0) is None
    assert rate(3, 4) == Estimate(0.75, *wilson(3, 4), 4)


def test_mean_has_a_narrower_interval_than_its_estimates():
    one = Estimate(0.5, 0.3, 0.6, 10)
    assert mean([]) is None
    assert mean([one]) == pytest.approx(one)
    assert mean([one] * 4) == pytest.approx(Estimate(0.5, 0.4, 0.55, 40))
