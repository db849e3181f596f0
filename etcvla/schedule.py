"""Schedule: a value as a piecewise linear function of a stage's progress. Mixture and loss weights, learning
rates, what is frozen and what is insulated are written so.

A schedule is a tuple of (progress, value) with progress rising from 0 to 1; before the first knot and after the last
the value is constant. ((0, .5), (1, .8)) ramps; ((0, 1),) is constant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp

Schedule = Sequence[Sequence[float]]


def check_schedule(
    points: Schedule, name: str, most: float = math.inf
) -> tuple[tuple[float, float], ...]:
    """The points as tuples.

    Raises ValueError naming the config field whose progress does not rise in [0, 1] or whose values leave [0, most].
    """
    try:
        points = tuple((float(t), float(v)) for t, v in points)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected ((progress, value), ...), got {points!r}") from error
    times, values = [t for t, _ in points], [v for _, v in points]
    if not times or times != sorted(set(times)) or times[0] < 0 or times[-1] > 1:
        raise ValueError(f"{name}: progress must rise inside [0, 1], got {times}")
    if min(values) < 0:
        raise ValueError(f"{name}: negative value in {points!r}")
    if max(values) > most:
        raise ValueError(f"{name}: value above {most} in {points!r}")
    return points


def value_at(points: Schedule, progress, xp=jnp):
    """The value at `progress` in [0, 1]; `xp` is jnp inside a step, np on the host."""
    times, values = zip(*points, strict=True)
    return xp.interp(progress, xp.asarray(times, xp.float32), xp.asarray(values, xp.float32))
