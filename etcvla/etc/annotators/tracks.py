"""What the robot's own state says: when it takes hold, carries and lets go; and tracks put together from detections.

No contacts are needed: a grasp is a gripper that closes where a hand that has come from elsewhere nearly stands still.
One that closes on the way, or before it sets out, makes a fist, and says nothing.
"""

from __future__ import annotations

import dataclasses

import numpy as np

MIN_RANGE = 0.15  # of full opening: a gripper that moves less than this takes hold of nothing
STILL = 0.5  # of the episode's brisk speed (90th percentile), below which a hand that closes is taking hold
MIN_WAY = 0.02  # metres that a hand has come to take hold
SETTLED = 0.03  # of the gripper's range in the episode, a step: it moves no more
APPROACH, GRASP, CARRY, RELEASE, LEAVE = "approach", "grasp", "carry", "release", "leave"
_WORDS = {
    APPROACH: "move to the {object}",
    GRASP: "grasp the {object}",
    CARRY: "carry the {object}",
    RELEASE: "release the {object}",
    LEAVE: "move away",
}


@dataclasses.dataclass(frozen=True)
class GripperPhases:
    """Runs of an episode: kinds[k] lasts from starts[k] to starts[k + 1] or the end. None where nothing was grasped."""

    starts: np.ndarray  # int64[K]
    kinds: tuple[str, ...]

    def phase(self, steps: int) -> np.ndarray:
        """int32[T]: which segment each step is in; -1 where none is known."""
        return (np.searchsorted(self.starts, np.arange(steps), side="right") - 1).astype(np.int32)

    def texts(self, target: str = "object") -> tuple[str, ...]:
        """The segments as imperatives; of several grasps, each from the second on is numbered."""
        grasps = np.cumsum([kind == APPROACH for kind in self.kinds])
        return tuple(
            _WORDS[kind].format(object=target) + (f", time {grasp}" if grasp > 1 else "")
            for kind, grasp in zip(self.kinds, grasps, strict=True)
        )


def detect_phases(gripper_open: np.ndarray, position: np.ndarray) -> GripperPhases:
    """The phases of a manipulation from its gripper and its speed.

    Args:
      gripper_open: float[T], 0 closed .. 1 open. position: float[T, 3] metres.
    """
    nothing = GripperPhases(np.zeros(0, np.int64), ())
    if len(gripper_open) < 3 or not (
        np.isfinite(gripper_open).all() and np.isfinite(position).all()
    ):
        return nothing
    speed = _smooth(np.linalg.norm(np.gradient(position, axis=0), axis=1))
    brisk = np.percentile(speed, 90)
    marks: list[tuple[int, str]] = []
    for begin, end, reopen in _grips(gripper_open):
        if speed[:begin].sum() < MIN_WAY or speed[begin : end + 1].min() >= STILL * brisk:
            continue
        marks += [
            (marks[-1][0] if marks and marks[-1][1] == LEAVE else 0, APPROACH),
            (begin, GRASP),
            (end, CARRY),
        ]
        if reopen is not None:
            marks += [(reopen[0], RELEASE), (reopen[1], LEAVE)]
    if not marks:
        return nothing
    return _tidy(marks, len(gripper_open))


def _grips(gripper_open: np.ndarray) -> list[tuple[int, int, tuple[int, int] | None]]:
    """(begins to close, has settled, (begins to open, is open) or None) of each grip."""
    low, high = gripper_open.min(), gripper_open.max()
    if high - low < MIN_RANGE:
        return []
    share = (gripper_open - low) / (high - low)
    change = np.diff(share)
    grips, t, steps = [], 0, len(share)
    while t < steps:
        close = t + int(np.argmax(share[t:] < 0.4)) if (share[t:] < 0.4).any() else steps
        if close == steps:
            break
        opened = np.flatnonzero(share[close:] > 0.6)
        half_open = close + int(opened[0]) if len(opened) else None
        stop = steps - 1 if half_open is None else half_open
        begin = _back(change, close, -1)
        settled = next((s for s in range(close, stop) if abs(change[s]) < SETTLED), stop)
        if close > 0 and settled > begin:
            reopen = (
                None
                if half_open is None
                else (_back(change, half_open, 1), _forth(change, half_open))
            )
            grips.append((begin, settled, reopen))
        if half_open is None:
            break
        t = half_open
    return grips


def _back(change: np.ndarray, t: int, sign: int) -> int:
    """The step at which the motion that has led to step t began."""
    while t > 0 and sign * change[t - 1] > SETTLED:
        t -= 1
    return t


def _forth(change: np.ndarray, t: int) -> int:
    while t < len(change) and change[t] > SETTLED:
        t += 1
    return t


def _tidy(marks: list[tuple[int, str]], steps: int) -> GripperPhases:
    """Without segments that are empty, or begin beyond the end."""
    starts = [start for start, _ in marks] + [steps]
    keep = [
        (start, kind)
        for (start, kind), end in zip(marks, starts[1:], strict=True)
        if start < min(end, steps)
    ]
    return GripperPhases(
        np.array([start for start, _ in keep], np.int64), tuple(kind for _, kind in keep)
    )


def _smooth(values: np.ndarray) -> np.ndarray:
    """The mean over three steps."""
    return np.convolve(np.pad(values, 1, mode="edge"), np.ones(3) / 3, mode="valid")


def grasp_step(gripper_phases: GripperPhases) -> int | None:
    """The step at which the first grasp holds; None without a grasp, and where there are several (of what?)."""
    holds = [
        int(start)
        for start, kind in zip(gripper_phases.starts, gripper_phases.kinds, strict=True)
        if kind == CARRY
    ]
    return holds[0] if len(holds) == 1 else None


def interpolate_track(points: np.ndarray, *, max_gap: int, max_speed: float) -> np.ndarray:
    """A track from detections at some steps: straight between two that are near in time and place, else unknown.

    Args:
      points: float[T, 2] of the image; NaN where nothing was detected.
      max_gap: steps between two detections that may be bridged.
      max_speed: of the image, a step; a faster jump is a mistaken detection, and neither side of it is bridged.
    """
    track = points.copy()
    known = np.flatnonzero(np.isfinite(points).all(-1))
    for a, b in zip(known, known[1:], strict=False):
        if b - a <= max_gap and np.linalg.norm(points[b] - points[a]) <= max_speed * (b - a):
            share = (np.arange(a, b + 1) - a)[:, None] / (b - a)
            track[a : b + 1] = (1 - share) * points[a] + share * points[b]
    return track
