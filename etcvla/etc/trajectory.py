"""Action-aligned items: the gripper's future path in the image as a few keypoints, from where it is now to the end."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterator

import numpy as np

from etcvla.etc.facts import Candidate, FrameView, in_image
from etcvla.etc.question_types import MAX_KEYPOINTS, clean_instruction

TOLERANCE = (
    0.015  # of the image: a path is not bent further to follow the gripper more closely than this
)
PACE = 0.1  # weight of being behind or ahead of time against being off the line
MIN_MOTION = 0.02  # of the image: what stays within this of its start has no path worth a question


def candidates(view: FrameView, dropped: Counter) -> Iterator[Candidate]:
    """Candidates of both path question_types; a motion that does not lead to its goal is not shown as the way to it."""
    facts = view.annotation
    slots = {"instruction": clean_instruction(facts.instruction)}
    final = len(facts) - 1
    for t, end in enumerate(phase_ends(facts.phase).tolist()):
        phase = int(facts.phase[t])
        if phase >= 0 and (facts.success or end < final):
            yield from _path(
                view, t, end, "path_subtask", slots | {"phase": facts.phases[phase]}, phase, dropped
            )
        else:
            dropped["path_subtask: unknown"] += 1
        if facts.success:
            yield from _path(view, t, final, "path_task", slots, None, dropped)
        else:
            dropped["path_task: no success"] += 1


def phase_ends(phase: np.ndarray) -> np.ndarray:
    """int[T]: the last step of the run of equal phases that each step is in."""
    last = np.append(np.flatnonzero(np.diff(phase)), len(phase) - 1)
    return last[np.searchsorted(last, np.arange(len(phase)))]


def cut_at_border(path: np.ndarray) -> np.ndarray:
    """A path float[n, 2] up to where it first leaves the image, closed by the point where it crosses the border."""
    outside = np.flatnonzero(~in_image(path))
    if not len(outside):
        return path
    k = int(outside[0])
    last, step = path[k - 1], path[k] - path[k - 1]
    room = np.where(step > 0, 1 - last, last)
    share = np.min(room / np.maximum(np.abs(step), 1e-9))
    return np.concatenate([path[:k], [np.clip(last + share * step, 0, 1)]])


def keypoints(path: np.ndarray) -> np.ndarray:
    """Up to `MAX_KEYPOINTS` points of a path float[n, 2], both ends among them, in order of time.

    Starts from the ends and keeps adding the point that the polyline misses most, until it misses none by `TOLERANCE`.
    Off the line counts in full (curvature), and behind or ahead of an even pace along it by `PACE` (time): where the
    gripper waits, a straight path has a keypoint too.
    """
    keep = [0, len(path) - 1]
    while len(keep) < MAX_KEYPOINTS:
        missed = _deviation(path, keep)
        worst = int(missed.argmax())
        if missed[worst] < TOLERANCE:
            break
        bisect.insort(keep, worst)
    return path[keep]


def _deviation(path: np.ndarray, keep: list[int]) -> np.ndarray:
    """float[n - 1]: how far each point but the last is from the polyline's segment over the same stretch of time."""
    z = (
        path[:, 0] + 1j * path[:, 1]
    )  # one complex number a point: half the calls on arrays this small
    stretch = np.diff(keep)
    span = np.repeat(z[keep[1:]] - z[keep[:-1]], stretch)
    offset = z[:-1] - np.repeat(z[keep[:-1]], stretch)
    along = (offset * span.conj()).real / np.maximum(np.abs(span) ** 2, 1e-12)
    clock = (np.arange(len(z) - 1) - np.repeat(keep[:-1], stretch)) / np.repeat(stretch, stretch)
    return np.abs(offset - np.clip(along, 0, 1) * span) + PACE * np.abs(
        (np.clip(along, 0, 1) - clock) * span
    )


def _path(
    view: FrameView,
    t: int,
    end: int,
    question_type: str,
    slots: dict[str, str],
    phase: int | None,
    dropped: Counter,
) -> Iterator[Candidate]:
    path = view.gripper[t : end + 1]
    if not np.isfinite(path).all():
        dropped[f"{question_type}: unknown"] += 1
        return
    if not view.gripper_seen[t]:
        dropped[f"{question_type}: not in view"] += 1
        return
    path = cut_at_border(path)
    if np.sqrt(((path - path[0]) ** 2).sum(-1).max()) < MIN_MOTION:
        dropped[f"{question_type}: tiny motion"] += 1
    else:
        yield Candidate(t, question_type, question_type, phase, slots, keypoints(path))
