"""Knots: a value as a piecewise linear function of a stage's progress. Mixture and loss weights are written so.

A schedule is a tuple of (progress, value) with progress rising from 0 to 1; before the first knot and after the last
the value is constant. ((0, .5), (1, .8)) ramps; ((0, 1),) is constant.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

Knots = Sequence[Sequence[float]]


def check_knots(knots: Knots, name: str) -> None:
    """Raises ValueError naming the config field whose knots are not increasing in [0, 1] or have a negative value."""
    try:
        times, values = [float(t) for t, _ in knots], [float(v) for _, v in knots]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected ((progress, value), ...), got {knots!r}") from error
    if not times or times != sorted(set(times)) or times[0] < 0 or times[-1] > 1:
        raise ValueError(f"{name}: progress must rise inside [0, 1], got {times}")
    if min(values) < 0:
        raise ValueError(f"{name}: negative value in {knots!r}")


def at(knots: Knots, progress, xp=jnp):
    """The value at `progress` in [0, 1]; `xp` is jnp inside a step, np on the host."""
    times, values = zip(*knots, strict=True)
    return xp.interp(progress, xp.asarray(times, xp.float32), xp.asarray(values, xp.float32))
