"""Action-aligned candidates: the gripper's future path in the image as a few keypoints."""

from __future__ import annotations

import bisect
from collections import Counter

import numpy as np

from etcvla.etc.facts import Candidate, Candidates, FrameView, in_image
from etcvla.etc.question_types import MAX_KEYPOINTS, clean_instruction

TOLERANCE = 0.015  # of the image: no keypoint is added for a smaller deviation from the motion
PACE = 0.1  # weight of a deviation in time relative to a deviation from the line
MIN_MOTION = 0.02  # of the image: a gripper that stays this close to its start has no path


def candidates(view: FrameView, dropped: Counter) -> Candidates:
    """Yield candidates of both path question types.

    A motion that does not reach its goal is not a correct answer to either question.
    """
    annotation = view.annotation
    fields = {"instruction": clean_instruction(annotation.instruction)}
    final = len(annotation) - 1
    for t, end in enumerate(phase_ends(annotation.phase).tolist()):
        phase = int(annotation.phase[t])
        if phase >= 0 and (annotation.success or end < final):
            subtask = fields | {"phase": annotation.phases[phase]}
            candidate = Candidate(t, "path_subtask", phase, subtask, "")
            yield from _add_path(candidate, view, end, dropped)
        else:
            dropped["path_subtask: unknown"] += 1
        if annotation.success:
            candidate = Candidate(t, "path_task", None, fields, "")
            yield from _add_path(candidate, view, final, dropped)
        else:
            dropped["path_task: no success"] += 1


def phase_ends(phase: np.ndarray) -> np.ndarray:
    """Return, for each step, the last step of the run of equal phases that contains it, int[T]."""
    last = np.append(np.flatnonzero(np.diff(phase)), len(phase) - 1)
    return last[np.searchsorted(last, np.arange(len(phase)))]


def cut_at_border(path: np.ndarray) -> np.ndarray:
    """Cut a path float[n, 2] where it first leaves the image.

    The last point of the result is the point where the path crosses the border.
    """
    outside = np.flatnonzero(~in_image(path))
    if not len(outside):
        return path
    k = int(outside[0])
    last = path[k - 1]
    step = path[k] - last
    room = np.where(step > 0, 1 - last, last)
    fraction = np.min(room / np.maximum(np.abs(step), 1e-9))
    return np.concatenate([path[:k], [np.clip(last + fraction * step, 0, 1)]])


def keypoints(path: np.ndarray) -> np.ndarray:
    """Select up to `MAX_KEYPOINTS` points of a path float[n, 2], in order of time, with both ends.

    The selection starts with both ends and repeatedly adds the point with the largest deviation
    from the polyline, until no deviation reaches `TOLERANCE`. The deviation is the distance from
    the line plus `PACE` times the distance from a point that moves along the line at constant
    speed. A straight path on which the gripper waits therefore gets a keypoint too.
    """
    keep = [0, len(path) - 1]
    while len(keep) < MAX_KEYPOINTS:
        deviation = _deviation(path, keep)
        worst = int(deviation.argmax())
        if deviation[worst] < TOLERANCE:
            break
        bisect.insort(keep, worst)
    return path[keep]


def _deviation(path: np.ndarray, keep: list[int]) -> np.ndarray:
    """Compute each point's deviation from the polyline segment of the same period.

    Args:
      path: float[n, 2].
      keep: indices of the polyline's vertices.

    Returns:
      float[n - 1]; the last point is a vertex.
    """
    # One complex number per point halves the number of calls, which dominate for such small arrays.
    z = path[:, 0] + 1j * path[:, 1]
    steps = np.diff(keep)
    duration = np.repeat(steps, steps)
    span = np.repeat(z[keep[1:]] - z[keep[:-1]], steps)
    offset = z[:-1] - np.repeat(z[keep[:-1]], steps)
    along = (offset * span.conj()).real / np.maximum(np.abs(span) ** 2, 1e-12)
    along = np.clip(along, 0, 1)
    elapsed = (np.arange(len(z) - 1) - np.repeat(keep[:-1], steps)) / duration
    return np.abs(offset - along * span) + PACE * np.abs((along - elapsed) * span)


def _add_path(candidate: Candidate, view: FrameView, end: int, dropped: Counter) -> Candidates:
    """Yield the candidate with the gripper's path from its step to step `end`, if it has one."""
    path = view.gripper[candidate.t : end + 1]
    if not np.isfinite(path).all():
        dropped[f"{candidate.question_type}: unknown"] += 1
        return
    if not view.gripper_in_image[candidate.t]:
        dropped[f"{candidate.question_type}: not in view"] += 1
        return
    path = cut_at_border(path)
    if np.sqrt(((path - path[0]) ** 2).sum(-1).max()) < MIN_MOTION:
        dropped[f"{candidate.question_type}: tiny motion"] += 1
        return
    yield candidate._replace(answer=keypoints(path))
