"""Detect grasps from the robot's own state, and build tracks from detections.

No contact sensor is needed. A grasp is a gripper that closes while the hand is slow, after
the hand has moved. A gripper that closes during a motion, or before the first motion, is not a
grasp.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

MIN_RANGE = 0.15  # of full opening; a gripper with a smaller range of motion grasps nothing
SLOW = 0.5  # of the episode's 90th percentile of speed; a hand that grasps is slower
MIN_WAY = 0.02  # metres that the hand must have moved before a grasp
SETTLED = 0.03  # of the gripper's range, per step; a gripper that does not move changes less
CLOSED = 0.4  # of the gripper's range: closed below
OPEN = 0.6  # of the gripper's range: open above
# Kinds of phases.
APPROACH = "approach"
GRASP = "grasp"
CARRY = "carry"
RELEASE = "release"
LEAVE = "leave"
_TEXTS = {
    APPROACH: "move to the {object}",
    GRASP: "grasp the {object}",
    CARRY: "carry the {object}",
    RELEASE: "release the {object}",
    LEAVE: "move away",
}


@dataclasses.dataclass(frozen=True)
class GripperPhases:
    """The phases of an episode's grasps. Without a grasp there are no phases.

    Phase k lasts from starts[k] to starts[k + 1] or the end of the episode.
    """

    starts: np.ndarray  # int64[K]
    kinds: tuple[str, ...]  # K

    def phase(self, steps: int) -> np.ndarray:
        """Return the index of the phase of each step, int32[steps]; -1 if there is none."""
        phase = np.searchsorted(self.starts, np.arange(steps), side="right") - 1
        return phase.astype(np.int32)

    def texts(self, target: str = "object") -> tuple[str, ...]:
        """Return the phases as imperatives. From the second grasp on, the grasps are numbered."""
        texts = []
        grasp = 0
        for kind in self.kinds:
            if kind == APPROACH:
                grasp += 1
            text = _TEXTS[kind].format(object=target)
            texts.append(f"{text}, time {grasp}" if grasp > 1 else text)
        return tuple(texts)


@dataclasses.dataclass(frozen=True)
class _Grip:
    """Steps at which the gripper starts to close, is closed, starts to open, and is open again."""

    closing: int
    closed: int
    opening: int | None = None
    opened: int | None = None


def detect_phases(gripper_open: np.ndarray, position: np.ndarray) -> GripperPhases:
    """Detect the phases of a manipulation from the gripper's opening and speed.

    Args:
      gripper_open: float[T], 0 closed .. 1 open.
      position: float[T, 3] metres.
    """
    known = np.isfinite(gripper_open).all() and np.isfinite(position).all()
    if len(gripper_open) < 3 or not known:
        return GripperPhases(np.zeros(0, np.int64), ())
    speed = _smooth(np.linalg.norm(np.gradient(position, axis=0), axis=1))
    max_speed = SLOW * np.percentile(speed, 90)
    marks: list[tuple[int, str]] = []  # start and kind
    leave = 0  # the step at which the hand leaves the previous object
    for grip in _grips(gripper_open):
        has_moved = speed[: grip.closing].sum() >= MIN_WAY
        is_slow = speed[grip.closing : grip.closed + 1].min() < max_speed
        if not (has_moved and is_slow):
            continue
        # The approach begins when the hand leaves, which therefore is an empty phase.
        marks += [(leave, APPROACH), (grip.closing, GRASP), (grip.closed, CARRY)]
        if grip.opening is not None:
            marks += [(grip.opening, RELEASE), (grip.opened, LEAVE)]
            leave = grip.opened
    return _without_empty(marks, len(gripper_open))


def _grips(gripper_open: np.ndarray) -> list[_Grip]:
    low = gripper_open.min()
    high = gripper_open.max()
    if high - low < MIN_RANGE:
        return []
    opening = (gripper_open - low) / (high - low)
    change = np.diff(opening)
    grips = []
    half_open: int | None = 0
    while half_open is not None:
        half_closed = _first(opening < CLOSED, half_open)
        if half_closed is None:
            break
        half_open = _first(opening > OPEN, half_closed)
        stop = len(opening) - 1 if half_open is None else half_open
        closing = _motion_start(change, half_closed, -1)
        at_rest = np.abs(change) < SETTLED
        closed = _first(at_rest[:stop], half_closed)
        if closed is None:
            closed = stop
        if half_closed > 0 and closed > closing:
            if half_open is None:
                grips.append(_Grip(closing, closed))
            else:
                start = _motion_start(change, half_open, 1)
                grips.append(_Grip(closing, closed, start, _motion_end(change, half_open)))
    return grips


def _first(mask: np.ndarray, start: int) -> int | None:
    """Return the first true index of bool[n] from `start` on."""
    indices = np.flatnonzero(mask[start:])
    return start + int(indices[0]) if len(indices) else None


def _motion_start(change: np.ndarray, t: int, sign: int) -> int:
    """Return the step at which the motion that leads to step t begins."""
    while t > 0 and sign * change[t - 1] > SETTLED:
        t -= 1
    return t


def _motion_end(change: np.ndarray, t: int) -> int:
    while t < len(change) and change[t] > SETTLED:
        t += 1
    return t


def _without_empty(marks: list[tuple[int, str]], steps: int) -> GripperPhases:
    """Remove phases that are empty or begin after the end of the episode."""
    starts = []
    kinds = []
    for (start, kind), (end, _) in itertools.pairwise([*marks, (steps, "")]):
        if start < min(end, steps):
            starts.append(start)
            kinds.append(kind)
    return GripperPhases(np.array(starts, np.int64), tuple(kinds))


def _smooth(values: np.ndarray) -> np.ndarray:
    """Return the mean over three steps."""
    return np.convolve(np.pad(values, 1, mode="edge"), np.ones(3) / 3, mode="valid")


def grasp_step(phases: GripperPhases) -> int | None:
    """Return the step at which the grasp is complete; None unless there is exactly one grasp.

    With several grasps, the grasped object is ambiguous.
    """
    if phases.kinds.count(CARRY) != 1:
        return None
    return int(phases.starts[phases.kinds.index(CARRY)])


def interpolate_track(points: np.ndarray, *, max_gap: int, max_speed: float) -> np.ndarray:
    """Interpolate linearly between detections that are near in time and place.

    Args:
      points: float[T, 2] in the image; NaN at steps without a detection.
      max_gap: maximal number of steps between two detections.
      max_speed: maximal speed in image sides per step. A faster jump is a wrong detection, so
        neither of its sides is interpolated.

    Returns:
      float[T, 2]; NaN at steps that are not interpolated.
    """
    track = points.copy()
    known = np.flatnonzero(np.isfinite(points).all(-1))
    for a, b in itertools.pairwise(known):
        gap = b - a
        if gap <= max_gap and np.linalg.norm(points[b] - points[a]) <= max_speed * gap:
            share = (np.arange(a, b + 1) - a)[:, None] / gap
            track[a : b + 1] = (1 - share) * points[a] + share * points[b]
    return track
