"""Task-oriented items: where to take hold and where to bring it, and which step of the plan this is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from etcvla.etc.annotation import Annotation, project
from etcvla.etc.facts import Candidate, FrameView, count_dropped, in_image
from etcvla.etc.question_types import clean_instruction

MIN_GRASP_VISIBLE = (
    0.05  # a hand that closes in hides its target; the point to hold is still the same
)
REGION_SIDES = (0.1, 0.2)  # of the image: the range of a proposed region's height and width
LARGE_SIDES = (0.4, 0.55)  # of one that says too little
REGION_GAP = 0.02  # of the image, between a wrong region and the point
TOO_LARGE, NEIGHBOUR = 0.15, 0.4  # shares of wrong regions; the others lie just beside the point
MIN_CARRY = 0.05  # metres an object must have moved by the end to have a place where it goes
MIN_LEFT = 0.05  # of the image, that it still has to go
DECOMPOSE_EVERY = (
    4  # steps: the instruction gives the answer, so it must not fill where others are not asked
)
NUM_DONE = 2  # frames an episode, of each answer, that are asked whether the task is done


def candidates(view: FrameView, rng: np.random.Generator, dropped: Counter) -> Iterator[Candidate]:
    """Candidates of affordance and task planning over the whole episode."""
    yield from _affordance(view, rng, dropped)
    if view.annotation.phases:
        yield from _plan(view.annotation, dropped)
    yield from _end(view.annotation, rng)


def settled(phase: np.ndarray) -> np.ndarray:
    """bool[T]: the subtask is known and the same one step before and after, so that its name is beyond dispute."""
    padded = np.pad(phase, 1, mode="edge")
    return (phase >= 0) & (padded[:-2] == phase) & (padded[2:] == phase)


def first_of_last_phase(annotation: Annotation) -> int:
    """The step before which the task is surely not done: where the last subtask begins, at most half of the episode."""
    last = np.flatnonzero(annotation.phase == len(annotation.phases) - 1)
    begin = int(last[0]) if len(last) and len(annotation.phases) > 1 else 0
    return begin or len(annotation) // 2


def _affordance(view: FrameView, rng: np.random.Generator, dropped: Counter) -> Iterator[Candidate]:
    facts = view.annotation
    if facts.target < 0:
        dropped["grasp_point: target unknown"] += len(facts)
        return
    point = facts.grasp_pixel[:, 0, facts.target]
    seen = in_image(point) & ~(view.visible[:, facts.target] < MIN_GRASP_VISIBLE)
    count_dropped(dropped, "grasp_point", "not in view", ~seen)
    others = [i for i in range(len(facts.objects)) if i != facts.target]
    yield from _point_and_region(
        ("grasp_point", "stable_grasp"), facts, point, seen, view.center[:, others], rng, dropped
    )
    goal = destination(facts)
    left = np.linalg.norm(goal - view.center[:, facts.target], axis=-1)
    asked = in_image(goal) & (left >= MIN_LEFT)
    count_dropped(dropped, "place_point", "nothing to move, or unknown", ~asked)
    # The object itself is the most tempting wrong place.
    yield from _point_and_region(
        ("place_point", "stable_place"),
        facts,
        goal,
        asked,
        view.center[:, [facts.target, *others]],
        rng,
        dropped,
    )


def destination(facts: Annotation) -> np.ndarray:
    """float32[T, 2]: the image point where the target ends up, as each frame's camera sees it.

    NaN unless the episode succeeded and moved the target by `MIN_CARRY`.
    """
    way = facts.position[:, facts.target]
    if not facts.success or not np.linalg.norm(way[-1] - way[0]) >= MIN_CARRY:
        return np.full((len(facts), 2), np.nan, np.float32)
    return project(facts.camera_matrix[:, 0], np.broadcast_to(way[-1], (len(facts), 3)))


def _point_and_region(
    question_types: tuple[str, str],
    facts: Annotation,
    point: np.ndarray,
    asked: np.ndarray,
    others: np.ndarray,
    rng: np.random.Generator,
    dropped: Counter,
) -> Iterator[Candidate]:
    """Where is it, float[T, 2]? And: is it here? `others` float[T, K, 2] are centres of what it could be mixed up with."""
    pointing, judging = question_types
    slots = {
        "instruction": clean_instruction(facts.instruction),
        "object": facts.objects[facts.target],
    }
    for t in np.flatnonzero(asked).tolist():
        yield Candidate(t, pointing, pointing, None, slots, point[t])
        answer = "yes" if rng.random() < 0.5 else "no"
        region = (
            propose_region(point[t], True, rng)
            if answer == "yes"
            else wrong_region(point[t], others[t], rng)
        )
        if region is None:
            dropped[f"{judging}: no room"] += 1
            continue
        yield Candidate(t, judging, judging, answer, slots | {"box": region}, answer)


def wrong_region(
    point: np.ndarray, others: Sequence[np.ndarray], rng: np.random.Generator
) -> np.ndarray | None:
    """A box that one could take for a region around `point` (y, x): too large, a neighbour's, or just beside it."""
    how, known = rng.random(), [other for other in others if np.isfinite(other).all()]
    if how < TOO_LARGE:
        return propose_region(point, True, rng, sides=LARGE_SIDES)
    if how < TOO_LARGE + NEIGHBOUR and known:
        box = propose_region(known[rng.integers(len(known))], True, rng)
        if (
            box is not None
            and ((box[:2] - REGION_GAP > point) | (point > box[2:] + REGION_GAP)).any()
        ):
            return box
    return propose_region(point, False, rng)


def propose_region(
    point: np.ndarray,
    good: bool,
    rng: np.random.Generator,
    tries: int = 8,
    sides: tuple[float, float] = REGION_SIDES,
) -> np.ndarray | None:
    """A box on the image that clearly contains `point` (y, x), or one close by that clearly does not.

    Both come in the same sizes, so that size does not tell them apart. None if no try lies wholly on the image.
    """
    for draw in rng.random((tries, 4)):
        side = sides[0] + draw[:2] * (sides[1] - sides[0])
        shift = (
            0.6 * draw[2:] - 0.3
        )  # of the sides: the point keeps a fifth of the side from every edge
        if not good:
            axis = int(draw[3] * 2)
            shift[axis] = np.copysign(0.75 + abs(shift[axis]), shift[axis])
        center = point + shift * side
        box = np.concatenate([center - side / 2, center + side / 2])
        if box.min() >= 0 and box.max() <= 1:
            return box
    return None


def _plan(facts: Annotation, dropped: Counter) -> Iterator[Candidate]:
    slots = {"instruction": clean_instruction(facts.instruction)}
    steady = settled(facts.phase)
    count_dropped(dropped, "current", "unknown", facts.phase < 0)
    count_dropped(dropped, "current", "ambiguous", (facts.phase >= 0) & ~steady)
    for t, (phase, clear) in enumerate(zip(facts.phase.tolist(), steady.tolist(), strict=True)):
        if t % DECOMPOSE_EVERY == 0:
            yield Candidate(t, "decompose", "decompose", None, slots, "; ".join(facts.phases))
        if clear:
            yield Candidate(t, "current", "current", phase, slots, facts.phases[phase])
            follower = following(facts, t)
            if follower is None:
                dropped["next: not the plan's order"] += 1
            else:
                yield Candidate(t, "next", "next", follower, slots, follower)


def following(facts: Annotation, t: int) -> str | None:
    """The subtask after the one at step t, "done" after the last; None where the episode departs from the plan."""
    later = facts.phase[t:]
    later = later[later != facts.phase[t]]
    after = int(facts.phase[t]) + 1
    if after == len(facts.phases):
        return "done" if facts.success and not len(later) else None
    return facts.phases[after] if len(later) and later[0] == after else None


def _end(facts: Annotation, rng: np.random.Generator) -> Iterator[Candidate]:
    """Is it done, and what if it ends here: the last frames of a success, and as many from before the last subtask.

    A robot that stops there has failed, as has one whose episode is known to have ended without success.
    """
    if facts.success is None:
        return
    slots = {"instruction": clean_instruction(facts.instruction)}
    early = first_of_last_phase(facts)
    if not facts.success:
        for t in range(max(len(facts) - NUM_DONE, 0), len(facts)):
            yield Candidate(t, "outcome", "outcome", "failure", slots, "failure")
        return
    if early + NUM_DONE > len(facts):
        return
    count = min(NUM_DONE, early)
    last = range(len(facts) - count, len(facts))
    for question_type, bad, good in (("done", "no", "yes"), ("outcome", "failure", "success")):
        for t in rng.choice(early, count, replace=False).tolist():
            yield Candidate(t, question_type, question_type, bad, slots, bad)
        for t in last:
            yield Candidate(t, question_type, question_type, good, slots, good)
