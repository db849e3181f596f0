"""Task-oriented items: where to take hold, and which step of the plan this is, given the instruction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from etcvla.etc.annotation import Annotation
from etcvla.etc.facts import Candidate, View, drop, inside
from etcvla.etc.forms import clean

MIN_GRASP_VISIBLE = 0.05  # a hand that closes in hides its target; the point to hold is still the same
REGION_SIDES = (0.1, 0.2)  # of the image: the range of a proposed grasp region's height and width
NUM_DONE = 2  # frames an episode, of each answer, that are asked whether the task is done


def candidates(view: View, rng: np.random.Generator, dropped: Counter) -> Iterator[Candidate]:
    """Candidates of affordance and task planning over the whole episode."""
    yield from _affordance(view, rng, dropped)
    if view.annotation.phases:
        yield from _plan(view.annotation, dropped)
    yield from _done(view.annotation, rng)


def settled(phase: np.ndarray) -> np.ndarray:
    """bool[T]: the subtask is known and the same one step before and after, so that its name is beyond dispute."""
    padded = np.pad(phase, 1, mode="edge")
    return (phase >= 0) & (padded[:-2] == phase) & (padded[2:] == phase)


def first_of_last_phase(annotation: Annotation) -> int:
    """The step before which the task is surely not done: where the last subtask begins, at most half of the episode."""
    last = np.flatnonzero(annotation.phase == len(annotation.phases) - 1)
    begin = int(last[0]) if len(last) and len(annotation.phases) > 1 else 0
    return begin or len(annotation) // 2


def _affordance(view: View, rng: np.random.Generator, dropped: Counter) -> Iterator[Candidate]:
    facts = view.annotation
    if facts.target < 0:
        dropped["grasp_point: target unknown"] += len(facts)
        return
    point = facts.grasp_pixel[:, 0, facts.target]
    seen = inside(point) & ~(view.visible[:, facts.target] < MIN_GRASP_VISIBLE)
    drop(dropped, "grasp_point", "not in view", ~seen)
    slots = {"instruction": clean(facts.instruction), "object": facts.objects[facts.target]}
    for t in np.flatnonzero(seen).tolist():
        yield Candidate(t, "grasp_point", "grasp_point", slots, point[t])
        answer = "yes" if rng.random() < 0.5 else "no"
        region = propose_region(point[t], answer == "yes", rng)
        if region is None:
            dropped["stable_grasp: no room"] += 1
            continue
        yield Candidate(t, "stable_grasp", ("stable_grasp", answer), slots | {"box": region}, answer)


def propose_region(point: np.ndarray, good: bool, rng: np.random.Generator, tries: int = 8) -> np.ndarray | None:
    """A box on the image that clearly contains `point` (y, x), or one close by that clearly does not.

    Both come in the same sizes, so that size does not tell them apart. None if no try lies wholly on the image.
    """
    for draw in rng.random((tries, 4)):
        side = REGION_SIDES[0] + draw[:2] * (REGION_SIDES[1] - REGION_SIDES[0])
        shift = 0.6 * draw[2:] - 0.3  # of the sides: the point keeps a fifth of the side from every edge
        if not good:
            axis = int(draw[3] * 2)
            shift[axis] = np.copysign(0.75 + abs(shift[axis]), shift[axis])
        center = point + shift * side
        box = np.concatenate([center - side / 2, center + side / 2])
        if box.min() >= 0 and box.max() <= 1:
            return box
    return None


def _plan(facts: Annotation, dropped: Counter) -> Iterator[Candidate]:
    slots = {"instruction": clean(facts.instruction)}
    steady = settled(facts.phase)
    drop(dropped, "current", "unknown", facts.phase < 0)
    drop(dropped, "current", "ambiguous", (facts.phase >= 0) & ~steady)
    for t, (phase, clear) in enumerate(zip(facts.phase.tolist(), steady.tolist(), strict=True)):
        yield Candidate(t, "decompose", "decompose", slots, "; ".join(facts.phases))
        if clear:
            yield Candidate(t, "current", ("current", phase), slots, facts.phases[phase])
            follower = following(facts, t)
            if follower is None:
                dropped["next: not the plan's order"] += 1
            else:
                yield Candidate(t, "next", ("next", follower), slots, follower)


def following(facts: Annotation, t: int) -> str | None:
    """The subtask after the one at step t, "done" after the last; None where the episode departs from the plan."""
    later = facts.phase[t:]
    later = later[later != facts.phase[t]]
    after = int(facts.phase[t]) + 1
    if after == len(facts.phases):
        return "done" if facts.success and not len(later) else None
    return facts.phases[after] if len(later) and later[0] == after else None


def _done(facts: Annotation, rng: np.random.Generator) -> Iterator[Candidate]:
    """The last frames of a success, and as many from before the last subtask."""
    early = first_of_last_phase(facts)
    if not facts.success or early + NUM_DONE > len(facts):
        return
    count = min(NUM_DONE, early)
    slots = {"instruction": clean(facts.instruction)}
    for t in rng.choice(early, count, replace=False).tolist():
        yield Candidate(t, "done", ("done", "no"), slots, "no")
    for t in range(len(facts) - count, len(facts)):
        yield Candidate(t, "done", ("done", "yes"), slots, "yes")
