"""95 % confidence intervals of success rates and accuracies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

Z = float(scipy.stats.norm.ppf(0.975))  # 1.95996: 95 % of a normal distribution is within +-Z


class Estimate(NamedTuple):
    """A rate in [0, 1] with its 95 % interval and the number of trials."""

    value: float
    low: float
    high: float
    count: int


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return Wilson's score interval (1927) of a success rate; (0, 1) without trials."""
    if not trials:
        return 0.0, 1.0
    interval = scipy.stats.binomtest(successes, trials).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def rate(successes: int, trials: int) -> Estimate | None:
    """Return a success rate with Wilson's interval; None without trials."""
    if not trials:
        return None
    low, high = wilson(successes, trials)
    return Estimate(successes / trials, low, high, trials)


def clustered(values: Sequence[bool], clusters: Sequence[int]) -> Estimate:
    """Return the rate of True among values that are correlated within clusters.

    An example are answers about frames of one episode. The interval is Wilson's for an effective
    number of independent trials: the number of values over Kish's design effect (1965), which is
    the clustered variance of the mean over its independent variance, at least 1.

    Args:
      clusters: the cluster of each value.
    """
    values = np.asarray(values, float)
    mean_value = float(values.mean())
    cluster_index = np.unique(clusters, return_inverse=True)[1]
    cluster_sums = np.bincount(cluster_index, weights=values - mean_value)
    independent_variance = len(values) * mean_value * (1 - mean_value)
    design_effect = 1.0
    if independent_variance:
        design_effect = max(1.0, float(np.square(cluster_sums).sum()) / independent_variance)
    low, high = _wilson_of_rate(mean_value, len(values) / design_effect)
    return Estimate(mean_value, low, high, len(values))


def _wilson_of_rate(value: float, trials: float) -> tuple[float, float]:
    """Return Wilson's interval of a rate for a number of trials that need not be an integer."""
    shrink = 1 + Z**2 / trials
    centre = (value + Z**2 / (2 * trials)) / shrink
    half_width = Z / shrink * math.sqrt(value * (1 - value) / trials + Z**2 / (4 * trials**2))
    return max(0.0, centre - half_width), min(1.0, centre + half_width)


def mean(estimates: Sequence[Estimate]) -> Estimate | None:
    """Return the unweighted mean of independent rates; None for no rates.

    The interval is MOVER (Zou and Donner 2008): squared distances to the limits add up.
    """
    if not estimates:
        return None
    size = len(estimates)
    value = sum(estimate.value for estimate in estimates) / size
    below = math.hypot(*(estimate.value - estimate.low for estimate in estimates)) / size
    above = math.hypot(*(estimate.high - estimate.value for estimate in estimates)) / size
    count = sum(estimate.count for estimate in estimates)
    return Estimate(value, value - below, value + above, count)
