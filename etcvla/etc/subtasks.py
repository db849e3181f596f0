"""Subtasks from a trajectory alone: what the fingers, the speed and, where it is known, contact say.

For robots without a simulator. Every signal is switched with hysteresis, for near a threshold it would chatter.
Axes: T steps.
"""

from __future__ import annotations

import numpy as np

APPROACH, GRASP, CARRY, RELEASE = range(4)
NAMES = ("approach", "grasp", "carry", "release")
CLOSED = (0.35, 0.65)  # of the fingers' range in the episode: closed below, open above
MOVING = (0.02, 0.05)  # metres a second: at rest below, on its way above
MIN_RANGE = 0.15  # of the opening: fingers that move less say nothing
HOLD_SECONDS = 0.025  # contact that comes or goes for less is flicker


def switch(signal: np.ndarray, low: float, high: float) -> np.ndarray:
    """bool[T]: on from where `signal` float[T] exceeds `high` until it falls below `low`; NaN changes nothing.

    Starts on where the first known value is nearer to `high`.
    """
    known = signal[np.isfinite(signal)]
    on = bool(len(known)) and bool(known[0] > (low + high) / 2)
    states = []
    for value in signal.tolist():
        on = value > high or (on and not value < low)
        states.append(on)
    return np.array(states, bool)


def steady(touching: np.ndarray, steps: int) -> np.ndarray:
    """bool[T]: `touching` bool[T] without runs, of either value, that are shorter than `steps`."""
    out = touching.copy()
    for value in (False, True):  # gaps in a contact first, then contacts that were too short
        edges = np.flatnonzero(np.diff(np.concatenate([[not value], out, [not value]]) == value))
        for start, stop in edges.reshape(-1, 2).tolist():
            if stop - start < steps and (value or (start > 0 and stop < len(out))):
                out[start:stop] = not value
    return out


def label_subtasks(
    gripper_position: np.ndarray,
    gripper_open: np.ndarray,
    rate: float,
    contact: np.ndarray | None = None,
) -> np.ndarray:
    """int32[T], indices into `NAMES`; -1 where nothing is known about touching.

    Args:
      gripper_position: float[T, 3] metres. gripper_open: float[T], 0 closed .. 1 open. rate: steps a second.
      contact: float[T], 1 the gripper touches something, NaN unknown. Without it fingers that close are taken to hold,
        if they move by `MIN_RANGE` at all. That is right for what is grasped and wrong where closed fingers push.
    """
    touching = _touching(gripper_open, rate, contact)
    if touching is None:
        return np.full(len(gripper_open), -1, np.int32)
    speed = (
        np.linalg.norm(np.gradient(gripper_position, axis=0), axis=-1) * rate
        if len(gripper_open) > 1
        else np.zeros(len(gripper_open))
    )
    moving = switch(speed, *MOVING)
    held_before = np.maximum.accumulate(touching)
    begun = np.concatenate([[False], touching[1:] & ~touching[:-1]])
    out = np.where(touching, GRASP, np.where(held_before, RELEASE, APPROACH)).astype(np.int32)
    resting = False  # since the last touch began, has it rested: only then is motion a carry
    for t in range(len(out)):
        resting = (resting and not begun[t]) or not moving[t]
        if touching[t] and moving[t] and (resting or (t and out[t - 1] == CARRY)):
            out[t] = CARRY
    return out


def agreement(phase: np.ndarray, contact: np.ndarray, rate: float) -> float:
    """Share of the steps at which the plan is past its first subtask exactly where the target has been touched.

    Args:
      phase: int[T], 0 until the first subtask ends. contact: float[T] with the target; NaN steps are left out.
    """
    known = np.isfinite(contact) & (phase >= 0)
    if not known.any():
        return float("nan")
    touched = np.maximum.accumulate(steady(contact[known] == 1, _hold(rate)))
    return float(((phase[known] > 0) == touched).mean())


def _touching(
    gripper_open: np.ndarray, rate: float, contact: np.ndarray | None
) -> np.ndarray | None:
    if contact is not None and np.isfinite(contact).any():
        return steady(contact == 1, _hold(rate))
    low, high = np.nanmin(gripper_open), np.nanmax(gripper_open)
    if not high - low >= MIN_RANGE:
        return None
    return ~switch(gripper_open, *(low + share * (high - low) for share in CLOSED))


def _hold(rate: float) -> int:
    return max(2, round(HOLD_SECONDS * rate)) if np.isfinite(rate) else 2
