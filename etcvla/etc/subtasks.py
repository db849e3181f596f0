"""Label subtasks from a trajectory alone: the fingers, the speed and, if known, the contact.

The labels are for robots without a simulator. Signals are thresholded with hysteresis, because a
plain threshold switches repeatedly while a signal is near it. Axes: T steps.
"""

from __future__ import annotations

import numpy as np

NAMES = ("approach", "grasp", "carry", "release")
APPROACH, GRASP, CARRY, RELEASE = range(4)
CLOSED = (0.35, 0.65)  # of the fingers' range in the episode: closed below, open above
MOVING = (0.02, 0.05)  # metres per second: still below, moving above
MIN_RANGE = 0.15  # of the opening; a smaller range of the fingers is not informative
HOLD_SECONDS = 0.025  # contacts and gaps that are shorter are removed


def switch(signal: np.ndarray, low: float, high: float) -> np.ndarray:
    """Threshold a signal float[T] with hysteresis, bool[T].

    The state becomes True above `high` and False below `low`. NaN does not change it. The initial
    state is True if the first known value is nearer to `high`.
    """
    known = signal[np.isfinite(signal)]
    state = bool(len(known) and known[0] > (low + high) / 2)
    states = []
    for value in signal.tolist():
        if value > high:
            state = True
        elif value < low:
            state = False
        states.append(state)
    return np.array(states, bool)


def steady(touching: np.ndarray, steps: int) -> np.ndarray:
    """Remove the runs of bool[T] that are shorter than `steps`: gaps first, then contacts.

    Gaps at the start and the end of the episode are kept.
    """
    result = touching.copy()
    for value in (False, True):
        padded = np.concatenate([[not value], result, [not value]])
        edges = np.flatnonzero(np.diff(padded == value))
        for start, stop in edges.reshape(-1, 2).tolist():
            is_inside = start > 0 and stop < len(result)
            if stop - start < steps and (value or is_inside):
                result[start:stop] = not value
    return result


def label_subtasks(
    gripper_position: np.ndarray,
    gripper_open: np.ndarray,
    rate: float,
    contact: np.ndarray | None = None,
) -> np.ndarray:
    """Label each step with a subtask.

    Args:
      gripper_position: float[T, 3] metres.
      gripper_open: float[T], 0 closed .. 1 open.
      rate: steps per second.
      contact: float[T], 1 if the gripper touches an object, NaN unknown. Without it, fingers that
        close are assumed to hold an object, provided that they move by `MIN_RANGE`. This is
        correct for grasped objects and wrong for objects that closed fingers push.

    Returns:
      int32[T], indices into `NAMES`; -1 if nothing is known about contact.
    """
    touching = _touching(gripper_open, rate, contact)
    if touching is None:
        return np.full(len(gripper_open), -1, np.int32)
    speed = np.zeros(len(gripper_open))
    if len(gripper_open) > 1:
        speed = np.linalg.norm(np.gradient(gripper_position, axis=0), axis=-1) * rate
    moving = switch(speed, *MOVING)
    has_touched = np.maximum.accumulate(touching)
    labels = np.where(has_touched, RELEASE, APPROACH).astype(np.int32)
    labels[touching] = GRASP
    # Motion is a carry only if the gripper has paused since the current contact began.
    has_paused = False
    for t in range(len(labels)):
        contact_begins = t > 0 and touching[t] and not touching[t - 1]
        if contact_begins:
            has_paused = False
        if not moving[t]:
            has_paused = True
        was_carrying = t > 0 and labels[t - 1] == CARRY
        if touching[t] and moving[t] and (has_paused or was_carrying):
            labels[t] = CARRY
    return labels


def agreement(phase: np.ndarray, contact: np.ndarray, rate: float) -> float:
    """Compute the fraction of steps at which phases and contact agree; NaN if none is known.

    They agree if the plan is past its first subtask exactly when the target has been touched.

    Args:
      phase: int[T], 0 until the first subtask ends.
      contact: float[T] with the target; NaN steps are ignored.
      rate: steps per second.
    """
    known = np.isfinite(contact) & (phase >= 0)
    if not known.any():
        return float("nan")
    touched = np.maximum.accumulate(steady(contact[known] == 1, _hold_steps(rate)))
    return float(((phase[known] > 0) == touched).mean())


def _touching(
    gripper_open: np.ndarray, rate: float, contact: np.ndarray | None
) -> np.ndarray | None:
    if contact is not None and np.isfinite(contact).any():
        return steady(contact == 1, _hold_steps(rate))
    low = np.nanmin(gripper_open)
    high = np.nanmax(gripper_open)
    if not high - low >= MIN_RANGE:
        return None
    closed, opened = (low + share * (high - low) for share in CLOSED)
    return ~switch(gripper_open, closed, opened)


def _hold_steps(rate: float) -> int:
    return max(2, round(HOLD_SECONDS * rate)) if np.isfinite(rate) else 2
