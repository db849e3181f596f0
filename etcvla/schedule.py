"""A schedule: a value as a piecewise linear function of a stage's progress.

Mixture weights, loss weights, learning rates, freezing and insulation are schedules. A schedule is
a sequence of points (progress, value). Progress increases from 0 (start of the stage) to 1 (end).
The value is constant before the first
point and after the last one: ((0, 0.5), (1, 0.8)) is a ramp, ((0, 1),) is constant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax.numpy as jnp

from etcvla.errors import UserError

Schedule = Sequence[Sequence[float]]


def check_schedule(
    points: Schedule, name: str, most: float = math.inf
) -> tuple[tuple[float, float], ...]:
    """Return the points as tuples of floats.

    Args:
      points: the schedule.
      name: config field, for the error message.
      most: largest value that the field allows.

    Raises: UserError if `points` is not a schedule, progress does not increase in [0, 1], or a
      value is outside [0, most].
    """
    try:
        checked = tuple((float(progress), float(value)) for progress, value in points)
    except (TypeError, ValueError):
        raise UserError(f"{name}: expected ((progress, value), ...), got {points!r}") from None
    times = [progress for progress, _ in checked]
    values = [value for _, value in checked]
    if not times or times != sorted(set(times)) or times[0] < 0 or times[-1] > 1:
        raise UserError(f"{name}: progress must increase within [0, 1], got {times}")
    if min(values) < 0:
        raise UserError(f"{name}: negative value in {points!r}")
    if max(values) > most:
        raise UserError(f"{name}: value above {most} in {points!r}")
    return checked


def value_at(points: Schedule, progress: Any, xp: ModuleType = jnp) -> Any:
    """Return the value at `progress` in [0, 1], by jnp inside a jitted step or np on the host."""
    times, values = zip(*points, strict=True)
    return xp.interp(progress, xp.asarray(times, xp.float32), xp.asarray(values, xp.float32))


def is_nonzero(points: Schedule) -> bool:
    """Return whether the value is above zero anywhere."""
    return any(value > 0 for _, value in points)
