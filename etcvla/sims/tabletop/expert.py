"""The scripted expert: functions of the current state alone, so that it recovers from any state.

Positions are float[3] metres in the world frame. Bounds are float[2, 3], corners (low, high).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from etcvla.sims.tabletop.layouts import HALF_AREA

TIP_RADIUS = 0.009
_CRUISE = 0.045  # metres above the goal at which the hand moves sideways
_FUNNEL = 0.02  # metres from the goal in the plane within which the hand descends
_MIN_CRUISE = 0.085  # metres above the table: clear of every object
_PUSH_HEIGHT = 0.014
_PUSH_GAP = 0.012  # metres between the tip and the object before a push
_PRESS = 0.003  # metres below an object's top to which the hand descends to touch it
_RELEASE = 0.006  # metres from the goal within which the cup releases the object
_SIDE_DISTANCE = 0.085  # metres between the centres of an object and what it is put beside
_SIDE_ANGLES = np.arange(16) * np.pi / 8


@dataclasses.dataclass(frozen=True)
class View:
    """What the expert acts on."""

    hand: np.ndarray  # float[3], the tip
    held: int  # number of the object that the cup holds; -1 for none
    bounds: np.ndarray  # float[N, 2, 3]
    target: int

    @property
    def centres(self) -> np.ndarray:
        """The centres of the objects, float[N, 3]."""
        return self.bounds.mean(1)

    @property
    def contact_point(self) -> np.ndarray:
        """Where the tip touches the middle of the target's top, float[3]."""
        height = self.bounds[self.target, 1, 2] - _PRESS
        return np.append(self.centres[self.target, :2], height)

    @property
    def is_touching(self) -> bool:
        """Whether the tip has reached the target from above."""
        offset = self.contact_point - self.hand
        return bool(np.hypot(offset[0], offset[1]) < TIP_RADIUS and offset[2] > -_PRESS)


def approach(hand: np.ndarray, goal: np.ndarray, load: float = 0.0) -> np.ndarray:
    """Return the displacement from the hand to its next waypoint on the way to `goal` from above.

    Far from the goal, the hand rises before it moves sideways.

    Args:
      hand: the tip.
      goal: where the tip has to be.
      load: height in metres of what hangs below the tip.
    """
    offset = goal - hand
    if np.linalg.norm(offset[:2]) < _FUNNEL:
        return offset
    clear = _MIN_CRUISE + load
    cruise = max(clear, goal[2] + _CRUISE)
    if hand[2] < clear - 0.01:
        return np.array([0, 0, cruise - hand[2]])
    return np.append(offset[:2], cruise - hand[2])


def touch(view: View) -> tuple[np.ndarray, bool]:
    """Return the next displacement of a touch, and whether the suction is on."""
    return approach(view.hand, view.contact_point), False


def push(view: View, direction: float) -> tuple[np.ndarray, bool]:
    """Return the next displacement of a push along x, and whether the suction is on."""
    centre = view.centres[view.target]
    half_width = (view.bounds[view.target, 1, 0] - view.bounds[view.target, 0, 0]) / 2
    gap = half_width + TIP_RADIUS + _PUSH_GAP
    start = np.array([centre[0] - direction * gap, centre[1], _PUSH_HEIGHT])
    behind = direction * (centre[0] - view.hand[0])
    is_in_lane = abs(view.hand[1] - centre[1]) < 0.012 and view.hand[2] < 0.03
    if is_in_lane and 0 < behind < gap + _FUNNEL:
        correction = start - view.hand
        return np.array([direction, correction[1], correction[2]]), False
    return approach(view.hand, start), False


def put(view: View, goal: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return the next displacement of a pick and place, and whether the suction is on.

    Args:
      view: the current state.
      goal: where the target's centre has to be.
    """
    if view.held < 0:
        displacement = approach(view.hand, view.contact_point)
        return displacement, np.linalg.norm(displacement) < _CRUISE
    if view.held != view.target:
        return np.zeros(3), False
    hand_goal = goal + view.hand - view.centres[view.target]
    load = view.hand[2] - view.bounds[view.target, 0, 2]
    is_there = np.linalg.norm(hand_goal - view.hand) < _RELEASE
    return approach(view.hand, hand_goal, load), not is_there


def place_on(view: View, support: int) -> np.ndarray:
    """Return the target's centre on top of object `support`, float[3]."""
    half_height = np.ptp(view.bounds[view.target, :, 2]) / 2
    height = view.bounds[support, 1, 2] + half_height + 0.002
    return np.append(view.centres[support, :2], height)


def place_beside(view: View, reference: int) -> np.ndarray:
    """Return the target's centre beside object `reference`, float[3], where there is most room."""
    directions = np.column_stack([np.cos(_SIDE_ANGLES), np.sin(_SIDE_ANGLES)])
    points = view.centres[reference, :2] + _SIDE_DISTANCE * directions
    others = np.delete(view.centres[:, :2], [view.target, reference], axis=0)
    room = np.linalg.norm(points[:, None] - others, axis=-1).min(1)
    room[(np.abs(points) > HALF_AREA + 0.01).any(1)] = -1
    half_height = np.ptp(view.bounds[view.target, :, 2]) / 2
    return np.append(points[room.argmax()], half_height + 0.002)


def limit(displacement: np.ndarray, step: float) -> np.ndarray:
    """Return a displacement as an action float32[3] in [-1, 1] of `step` metres each.

    The direction in the plane is kept.
    """
    action = displacement / step
    action[:2] /= max(1.0, np.abs(action[:2]).max())
    return np.clip(action, -1, 1).astype(np.float32)
