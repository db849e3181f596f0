"""Intervals, so that ten trials are not read as a thousand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


def wilson(successes: float, trials: float, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a success rate (1927), 95 % by default; (0, 1) without trials."""
    if not trials:
        return 0.0, 1.0
    p, z2 = successes / trials, z * z
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = z / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


class Estimate(NamedTuple):
    """A share in [0, 1] with its 95 % interval, and from how many trials it is."""

    value: float
    low: float
    high: float
    count: int


def rate(successes: int, trials: int) -> Estimate | None:
    """A success rate with Wilson's interval; None without trials."""
    return Estimate(successes / trials, *wilson(successes, trials), trials) if trials else None


def clustered(values: Sequence[bool], clusters: Sequence[int]) -> Estimate:
    """The share of true ones among values that come in clusters, as questions do in episodes.

    Its interval is Wilson's of as many independent trials as these are worth: their number over Kish's design effect
    (1965), here the clustered variance of the mean over the independent one, at least 1.
    """
    values, p = np.asarray(values, float), float(np.mean(values))
    sums = np.bincount(np.unique(clusters, return_inverse=True)[1], weights=values - p)
    independent = len(values) * p * (1 - p)
    trials = (
        len(values) / max(1.0, float(np.square(sums).sum()) / independent)
        if independent
        else len(values)
    )
    return Estimate(p, *wilson(p * trials, trials), len(values))


def mean(parts: Sequence[Estimate]) -> Estimate | None:
    """The unweighted mean of independent shares; None without any.

    Its interval is MOVER's (Zou and Donner 2008): the squared distances to the parts' limits add up.
    """
    if not parts:
        return None
    value = sum(part.value for part in parts) / len(parts)
    below = math.hypot(*(part.value - part.low for part in parts)) / len(parts)
    above = math.hypot(*(part.high - part.value for part in parts)) / len(parts)
    return Estimate(value, value - below, value + above, sum(part.count for part in parts))
