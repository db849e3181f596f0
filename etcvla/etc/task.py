"""Task-oriented candidates: where to grasp, where to place, and the current step of the plan."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.random import Generator

from etcvla.etc.annotation import Annotation, project
from etcvla.etc.facts import Candidate, Candidates, FrameView, in_image, select
from etcvla.etc.question_types import clean_instruction

# Visible fraction of the target from which its grasp point is asked. It is small because an
# approaching gripper hides the target, and the grasp point stays the same.
MIN_GRASP_VISIBLE = 0.05
REGION_SIDES = (0.1, 0.2)  # of the image: range of the height and width of a proposed region
LARGE_SIDES = (0.4, 0.55)  # of the image: range of the sides of a region that is too large
REGION_GAP = 0.02  # of the image: minimal distance of a wrong region from the point
REGION_TRIES = 8  # attempts to find a proposed region inside the image
# Fractions of wrong regions that are too large, or around another object. All others are near the
# point.
TOO_LARGE = 0.15
NEIGHBOUR = 0.4
MIN_CARRY = 0.05  # metres by which an object must move to have a place where it ends up
MIN_LEFT = 0.05  # of the image: minimal distance that the object still has to move
# Steps between two questions for the plan. The instruction alone gives the answer, so these
# questions must not fill the steps at which no other planning question is possible.
DECOMPOSE_EVERY = 4
NUM_DONE = 2  # frames per episode and answer at which "is it done?" is asked


def candidates(view: FrameView, rng: Generator, dropped: Counter) -> Candidates:
    """Yield candidates of affordance and task planning for the whole episode."""
    yield from _affordance(view, rng, dropped)
    if view.annotation.phases:
        yield from _plan(view.annotation, dropped)
    yield from _end(view.annotation, rng)


# --- affordance ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _PointQuestion:
    """A point on the image for which its location, or a region around it, is asked.

    Attributes:
      point_type: question type "where is the point?"
      region_type: question type "is this region around the point?"
      point: float[T, 2] image points.
      asked: bool[T], the steps at which the point is known.
      others: float[T, K, 2], centres of objects that the point could be confused with.
    """

    point_type: str
    region_type: str
    point: np.ndarray
    asked: np.ndarray
    others: np.ndarray


def _affordance(view: FrameView, rng: Generator, dropped: Counter) -> Candidates:
    annotation = view.annotation
    target = annotation.target
    if target < 0:
        dropped["grasp_point: target unknown"] += len(annotation)
        return
    others = [i for i in range(len(annotation.objects)) if i != target]
    grasp = annotation.grasp_pixel[:, 0, target]
    in_view = in_image(grasp) & ~(view.visible[:, target] < MIN_GRASP_VISIBLE)
    asked = select(dropped, "grasp_point", {"not in view": in_view})
    question = _PointQuestion("grasp_point", "stable_grasp", grasp, asked, view.center[:, others])
    yield from _point_and_region(question, annotation, rng, dropped)

    goal = destination(annotation)
    left = np.linalg.norm(goal - view.center[:, target], axis=-1)
    moves = in_image(goal) & (left >= MIN_LEFT)
    asked = select(dropped, "place_point", {"nothing to move, or unknown": moves})
    # The target's current position is the most plausible wrong place.
    others = view.center[:, [target, *others]]
    question = _PointQuestion("place_point", "stable_place", goal, asked, others)
    yield from _point_and_region(question, annotation, rng, dropped)


def destination(annotation: Annotation) -> np.ndarray:
    """Return the image point where the target ends up, in each frame of the first camera.

    Returns:
      float32[T, 2], NaN unless the episode succeeds and moves the target by `MIN_CARRY`.
    """
    position = annotation.position[:, annotation.target]
    end = position[-1]
    if not annotation.success or not np.linalg.norm(end - position[0]) >= MIN_CARRY:
        return np.full((len(annotation), 2), np.nan, np.float32)
    return project(annotation.camera_matrix[:, 0], np.broadcast_to(end, position.shape))


def _point_and_region(
    question: _PointQuestion, annotation: Annotation, rng: Generator, dropped: Counter
) -> Candidates:
    fields = {
        "instruction": clean_instruction(annotation.instruction),
        "object": annotation.objects[annotation.target],
    }
    for t in np.flatnonzero(question.asked).tolist():
        point = question.point[t]
        yield Candidate(t, question.point_type, None, fields, point)
        if rng.random() < 0.5:
            answer = "yes"
            region = propose_region(point, True, rng)
        else:
            answer = "no"
            region = wrong_region(point, question.others[t], rng)
        if region is None:
            dropped[f"{question.region_type}: no room"] += 1
        else:
            yield Candidate(t, question.region_type, answer, fields | {"box": region}, answer)


def wrong_region(
    point: np.ndarray, others: Sequence[np.ndarray], rng: Generator
) -> np.ndarray | None:
    """Return a plausible but wrong region around a point.

    The region is too large, around another object, or just beside the point.

    Args:
      point: image point (y, x).
      others: centres of other objects; NaN if unknown.
      rng: draws the region.

    Returns:
      A box, or None if no region inside the image was found.
    """
    variant = rng.random()
    known = [other for other in others if np.isfinite(other).all()]
    if variant < TOO_LARGE:
        return propose_region(point, True, rng, sides=LARGE_SIDES)
    if variant < TOO_LARGE + NEIGHBOUR and known:
        box = propose_region(known[rng.integers(len(known))], True, rng)
        if box is not None:
            is_apart = (box[:2] - REGION_GAP > point) | (point > box[2:] + REGION_GAP)
            if is_apart.any():
                return box
    return propose_region(point, False, rng)


def propose_region(
    point: np.ndarray,
    good: bool,
    rng: Generator,
    sides: tuple[float, float] = REGION_SIDES,
) -> np.ndarray | None:
    """Draw a box that clearly contains a point, or a nearby box that clearly does not.

    Both have the same distribution of sizes, so that the size does not reveal the answer.

    Args:
      point: image point (y, x).
      good: whether the box contains the point.
      rng: draws the box.
      sides: range of the box's height and width, in images.

    Returns:
      float[4], or None if no attempt is completely inside the image.
    """
    for draw in rng.random((REGION_TRIES, 4)):
        side = sides[0] + draw[:2] * (sides[1] - sides[0])
        # The shift is relative to the side: the point keeps a fifth of the side from every edge.
        shift = 0.6 * draw[2:] - 0.3
        if not good:
            axis = int(draw[3] * 2)
            shift[axis] = np.copysign(0.75 + abs(shift[axis]), shift[axis])
        center = point + shift * side
        box = np.concatenate([center - side / 2, center + side / 2])
        if box.min() >= 0 and box.max() <= 1:
            return box
    return None


# --- task planning -------------------------------------------------------------------------------


def settled(phase: np.ndarray) -> np.ndarray:
    """Return a mask bool[T] of the steps with a known phase that both neighbouring steps share.

    At the other steps, the name of the current subtask is debatable.
    """
    padded = np.pad(phase, 1, mode="edge")
    return (phase >= 0) & (padded[:-2] == phase) & (padded[2:] == phase)


def first_of_last_phase(annotation: Annotation) -> int:
    """Return the step before which the task is certainly not done.

    This is the start of the last subtask, or half of the episode if that start is unknown.
    """
    if len(annotation.phases) > 1:
        is_last = annotation.phase == len(annotation.phases) - 1
        if is_last.any() and is_last.argmax() > 0:
            return int(is_last.argmax())
    return len(annotation) // 2


def _plan(annotation: Annotation, dropped: Counter) -> Candidates:
    fields = {"instruction": clean_instruction(annotation.instruction)}
    phases = annotation.phases
    conditions = {"unknown": annotation.phase >= 0, "ambiguous": settled(annotation.phase)}
    clear = select(dropped, "current", conditions)
    for t, phase in enumerate(annotation.phase.tolist()):
        if t % DECOMPOSE_EVERY == 0:
            yield Candidate(t, "decompose", None, fields, "; ".join(phases))
        if not clear[t]:
            continue
        yield Candidate(t, "current", phase, fields, phases[phase])
        next_phase = following(annotation, t)
        if next_phase is None:
            dropped["next: not the plan's order"] += 1
        else:
            yield Candidate(t, "next", next_phase, fields, next_phase)


def following(annotation: Annotation, t: int) -> str | None:
    """Return the subtask after the one at step t, "done" after the last one.

    The result is None if the episode departs from the order of the plan.
    """
    phase = annotation.phase[t]
    later = annotation.phase[t:]
    later = later[later != phase]
    expected = int(phase) + 1
    if expected == len(annotation.phases):
        return "done" if annotation.success and not len(later) else None
    return annotation.phases[expected] if len(later) and later[0] == expected else None


def _end(annotation: Annotation, rng: Generator) -> Candidates:
    """Yield candidates "is it done?" and "what is the outcome if the robot stops now?".

    They are at the last frames of a successful episode, and at as many frames before its last
    subtask, where stopping is a failure. The end of an unsuccessful episode is a failure.
    """
    if annotation.success is None:
        return
    fields = {"instruction": clean_instruction(annotation.instruction)}
    steps = len(annotation)
    if not annotation.success:
        for t in range(max(steps - NUM_DONE, 0), steps):
            yield Candidate(t, "outcome", "failure", fields, "failure")
        return
    early = first_of_last_phase(annotation)
    if early + NUM_DONE > steps:
        return
    count = min(NUM_DONE, early)
    for question_type, bad, good in (("done", "no", "yes"), ("outcome", "failure", "success")):
        for t in rng.choice(early, count, replace=False).tolist():
            yield Candidate(t, question_type, bad, fields, bad)
        for t in range(steps - count, steps):
            yield Candidate(t, question_type, good, fields, good)
