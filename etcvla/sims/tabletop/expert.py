"""The scripted expert: functions of the current state alone, so that it recovers from any state.

Positions are float[3] metres in the world frame.
"""

from __future__ import annotations

import numpy as np

_CRUISE = 0.045  # metres above the goal at which the hand moves sideways
_FUNNEL = 0.02  # metres from the goal in the plane within which the hand descends
_MIN_CRUISE = 0.085  # metres above the table: clear of every object


def approach(hand: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Return the displacement from the hand to its next waypoint on the way to `goal` from above.

    Far from the goal, the hand rises before it moves sideways.
    """
    offset = goal - hand
    distance = np.linalg.norm(offset[:2])
    if distance < _FUNNEL:
        return offset
    cruise = max(_MIN_CRUISE, goal[2] + _CRUISE)
    if hand[2] < _MIN_CRUISE - 0.01:
        return np.array([0, 0, cruise - hand[2]])
    return np.append(offset[:2], cruise - hand[2])


def limit(displacement: np.ndarray, step: float) -> np.ndarray:
    """Return a displacement as an action float32[3] in [-1, 1] of `step` metres each.

    The direction in the plane is kept.
    """
    action = displacement / step
    action[:2] /= max(1.0, np.abs(action[:2]).max())
    return np.clip(action, -1, 1).astype(np.float32)
