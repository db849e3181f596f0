"""Statistics of paired seeds: tests, intervals, corrections, power and verdicts of contrasts.

The unit is the seed: two arms share a seed's layouts, held-out words and order of the data, and
their difference is one number for each seed. More layouts make that number more precise. They do
not replace seeds, because two trainings of one arm differ more than its layouts do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import scipy.optimize
import scipy.stats

ALPHA = 0.05  # probability of a false positive, of all tests in this module
POWER = 0.8  # probability that a difference of the size `detectable_difference` is found
_RESAMPLES = 4000
_MAX_ASSIGNMENTS = 2**16  # more than 16 seeds: a random sample of the assignments


def sign_flip(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of the sign flip test of a mean difference of zero.

    Without an effect each seed's difference could as well have the other sign. The p-value is the
    share of all 2^n assignments of signs whose mean is at least as extreme. It is exact for up to
    16 seeds and cannot be below 2^(1 - n), so 5 % need six seeds.

    Args:
      differences: a - b of each seed.

    Returns: the p-value; 1.0 for fewer than two seeds.
    """
    if len(differences) < 2:
        return 1.0
    test = scipy.stats.permutation_test(
        (np.asarray(differences, float),),
        np.mean,
        permutation_type="samples",
        n_resamples=_MAX_ASSIGNMENTS,
        rng=np.random.default_rng(0),
        vectorized=True,
    )
    return float(test.pvalue)


def two_level_interval(values: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean over seeds, each a mean over its layouts.

    Each resample draws seeds, and then layouts within each drawn seed. The percentiles are
    expanded (Hesterberg 2015, section 5.2), because plain percentiles of few seeds give an interval
    that is too narrow: by sqrt((n - 1) / n), and by the normal in place of Student's t quantile.

    Args:
      values: float[L] of each seed: the value of each of its layouts.

    Returns: the limits; (-inf, inf) for fewer than two seeds.
    """
    num_seeds = len(values)
    if num_seeds < 2:
        return -math.inf, math.inf
    rng = np.random.default_rng(0)
    means = np.zeros((_RESAMPLES, num_seeds))
    chosen_seeds = rng.integers(num_seeds, size=means.shape)
    for seed, layouts in enumerate(values):
        is_seed = chosen_seeds == seed
        size = (np.count_nonzero(is_seed), len(layouts))
        draws = rng.integers(len(layouts), size=size, dtype=np.int32)
        means[is_seed] = np.asarray(layouts)[draws].mean(axis=1)
    quantile = scipy.stats.t.ppf(1 - ALPHA / 2, num_seeds - 1)
    tail = scipy.stats.norm.cdf(-quantile * math.sqrt(num_seeds / (num_seeds - 1)))
    low, high = np.quantile(means.mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values of several tests adjusted by Holm's method (1979).

    All tests whose adjusted p-value is at most alpha are significant together at level alpha.
    """
    order = np.argsort(p_values, kind="stable")
    factors = len(order) - np.arange(len(order))
    adjusted = np.zeros(len(order))
    adjusted[order] = np.maximum.accumulate(factors * np.asarray(p_values)[order])
    return np.minimum(adjusted, 1).tolist()


def fixed_order(p_values: Sequence[float]) -> list[float]:
    """Return the p-values of tests in a fixed order, adjusted: the largest one up to each test.

    A test counts only if all before it are significant, so none needs another correction.
    """
    return np.maximum.accumulate(np.asarray(p_values, float)).tolist()


def detectable_difference(deviation: float, num_seeds: int) -> float:
    """Return the true mean difference that a two-sided t test of paired seeds detects.

    The t test approximates the sign flip test, which needs at least six seeds.

    Args:
      deviation: standard deviation of the seeds' differences, see `difference_deviation`.
      num_seeds: number of seeds, at least 2.

    Returns: the difference, in the unit of `deviation`.
    """
    degrees = num_seeds - 1
    critical = scipy.stats.t.ppf(1 - ALPHA / 2, degrees)

    def missing_power(shift: float) -> float:
        return POWER - scipy.stats.nct.sf(critical, degrees, shift)

    shift = scipy.optimize.brentq(missing_power, 0, 10 * critical)
    return float(deviation * shift / math.sqrt(num_seeds))


def difference_deviation(run_deviation: float, rate: float, trials: int) -> float:
    """Return the standard deviation of the difference of two arms with one seed.

    Args:
      run_deviation: standard deviation of an arm's rate between runs, without trial noise.
      rate: success rate of both arms in [0, 1].
      trials: trials of each arm.
    """
    return math.sqrt(2 * (run_deviation**2 + rate * (1 - rate) / trials))


def verdict(low: float, high: float, p_value: float, margin: float) -> str:
    """Return what a contrast shows: "supported", "excluded" or "inconclusive".

    Excluded: the whole interval is below the margin, the smallest difference that matters.
    Supported: not excluded, the whole interval is above zero, and the test is significant. A
    negative margin asks whether a is worse than b by less than it (non-inferiority): the interval
    must then be above the margin.

    Args:
      low, high: the 95 % interval of a - b.
      p_value: of the test against min(margin, 0), adjusted for the other tests.
      margin: in the unit of the interval.
    """
    if high < margin:
        return "excluded"
    if low > min(margin, 0) and p_value <= ALPHA:
        return "supported"
    return "inconclusive"
