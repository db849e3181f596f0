"""Make the ETC items of an episode's steps from its annotation."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np
from numpy.random import Generator

from etcvla.etc import scene, task, trajectory
from etcvla.etc.annotation import Annotation
from etcvla.etc.facts import Candidate, FrameView
from etcvla.etc.items import LOCATIONS, Item, format_loc
from etcvla.etc.question_types import QUESTION_TYPES, WORDS, format_question
from etcvla.etc.verify import check
from etcvla.names import lookup

ITEMS_PER_KIND = 2  # per step
MAX_SHARE = 0.5  # of one answer among an episode's items with the same question
# Fraction of layouts above which a fact that never changes is not asked at all.
MAX_PREDICTABLE = 0.9


def make_items(
    annotation: Annotation,
    seed: int,
    *,
    absent: Sequence[str] = scene.ABSENT,
    layouts: Annotation | None = None,
    locations: str = "loc",
) -> tuple[list[list[Item]], Counter]:
    """Make up to two verified items of every kind at every step.

    Facts that are unknown, ambiguous or predictable are not asked. Within an episode, no answer
    is given to more than half of the items with the same question, so that the question alone
    does not reveal the answer (`QuestionType.answer_in_instruction` is exempt). A fact that does
    not change within an episode cannot be balanced there. With `layouts`, it is asked as often as
    other layouts contradict it, and never if hardly any does.

    Args:
      annotation: facts of T steps. Coordinates refer to its first camera.
      seed: draws objects, question types and templates; the same seed gives the same items.
      absent: nouns of absent objects, best those of the dataset's other scenes. Use () if
        `annotation.objects` does not list all visible objects.
      layouts: facts of the first steps of K other episodes of the task, as an annotation of K
        steps. None if every episode has its own scene, because then no fact is predictable.
      locations: notation of coordinates, one of `items.LOCATIONS`.

    Returns:
      T lists of items, and the number of dropped questions by "question_type: reason".

    Raises ValueError for an unknown notation of locations.
    """
    lookup(dict.fromkeys(LOCATIONS), locations, "locations")
    rng = np.random.default_rng(seed)
    dropped: Counter = Counter()
    candidates = _candidates(annotation, rng, dropped, absent)
    balance = _AnswerBalance(candidates)
    if layouts is not None:
        others = _candidates(layouts, np.random.default_rng(seed), Counter(), absent)
        predictable = balance.predictable_topics(others, rng)
        for candidate in candidates:
            if candidate.topic in predictable:
                dropped[f"{candidate.question_type}: known in advance"] += 1
        candidates = [c for c in candidates if c.topic not in predictable]
    sampler = _Sampler(annotation, candidates, balance, rng, dropped)
    sampler.fill(balance.admits, locations)
    sampler.remove_surplus()
    sampler.fill(balance.is_exempt, locations)  # use the room that the removed items have left
    return sampler.items_by_step(), dropped


def _candidates(
    annotation: Annotation, rng: Generator, dropped: Counter, absent: Sequence[str]
) -> list[Candidate]:
    view = FrameView(annotation)
    return [
        *scene.candidates(view, rng, dropped, absent),
        *task.candidates(view, rng, dropped),
        *trajectory.candidates(view, dropped),
    ]


class _AnswerBalance:
    """Counts of answers in words, to keep any answer from outnumbering all others together.

    A topic whose value changes within the episode is balanced per question. A topic with a
    constant value still has two answers if its question can be asked with either noun as the
    subject; it is balanced over both.
    """

    def __init__(self, candidates: Iterable[Candidate]):
        self._values = defaultdict(set)  # by topic
        self._answers = defaultdict(set)  # by topic
        self._counts: Counter = Counter()  # by group, and by group and answer
        for candidate in candidates:
            spec = candidate.spec
            if spec.answer_type == WORDS and not spec.answer_in_instruction:
                self._values[candidate.topic].add(candidate.value)
                self._answers[candidate.topic].add(candidate.answer)

    def predictable_topics(self, layouts: Sequence[Candidate], rng: Generator) -> set[Hashable]:
        """Return the topics with a constant value that most layouts share.

        Args:
          layouts: candidates of the other layouts.
          rng: decides about topics that some layouts contradict.
        """
        totals = Counter(candidate.topic for candidate in layouts)
        facts = Counter(candidate.fact for candidate in layouts)
        predictable = set()
        for topic, values in self._values.items():
            if len(values) > 1:
                continue
            [value] = values
            share = facts[topic, value] / totals[topic] if totals[topic] else 1.0
            if share > MAX_PREDICTABLE or rng.random() * share > 1 - share:
                predictable.add(topic)
        return predictable

    def _group_and_answer(self, candidate: Candidate) -> tuple[Hashable, Hashable] | None:
        """Return the candidate's balancing group and its answer, None if it is exempt."""
        if len(self._values[candidate.topic]) > 1:
            return candidate.question, candidate.value
        if len(self._answers[candidate.topic]) > 1:
            return candidate.topic, candidate.answer
        return None

    def is_exempt(self, candidate: Candidate) -> bool:
        """Return whether the candidate's answer cannot be balanced."""
        return self._group_and_answer(candidate) is None

    def admits(self, candidate: Candidate) -> bool:
        """Return whether the candidate's answer is at most as frequent as all others together."""
        key = self._group_and_answer(candidate)
        return key is None or self._counts[key] <= MAX_SHARE * self._counts[key[0]]

    def add(self, candidate: Candidate, count: int = 1) -> None:
        """Count the candidate's answer, or with `count` = -1 take it back."""
        key = self._group_and_answer(candidate)
        if key is not None:
            group, _ = key
            self._counts[group] += count
            self._counts[key] += count


class _Sampler:
    """Draws items from candidates at random.

    A step has at most `ITEMS_PER_KIND` items of a kind, and no question type twice.
    """

    def __init__(
        self,
        annotation: Annotation,
        candidates: Sequence[Candidate],
        balance: _AnswerBalance,
        rng: Generator,
        dropped: Counter,
    ):
        self._annotation = annotation
        self._balance = balance
        self._dropped = dropped
        paraphrases = rng.random(len(candidates)).tolist()
        self._waiting = [(candidates[i], paraphrases[i]) for i in _draw_order(candidates, rng)]
        self._drawn: dict[tuple[int, str], tuple[Candidate, Item]] = {}  # by step, question type
        self._per_kind: Counter = Counter()  # by step and kind

    def fill(self, admits: Callable[[Candidate], bool], locations: str) -> None:
        """Draw waiting candidates that `admits` accepts for all steps that have room.

        A candidate that fails its verification is dropped; a candidate that is not drawn keeps
        waiting. `locations` is the notation of coordinates.
        """
        waiting = []
        for candidate, paraphrase in self._waiting:
            step_and_kind = candidate.t, candidate.spec.kind
            step_and_type = candidate.t, candidate.question_type
            is_full = self._per_kind[step_and_kind] == ITEMS_PER_KIND
            if is_full or step_and_type in self._drawn or not admits(candidate):
                waiting.append((candidate, paraphrase))
                continue
            item = _write(candidate, paraphrase, locations)
            reason = check(item, self._annotation, candidate.t)
            if reason:
                self._dropped[f"{item.question_type}: {reason}"] += 1
                continue
            self._drawn[step_and_type] = candidate, item
            self._per_kind[step_and_kind] += 1
            self._balance.add(candidate)
        self._waiting = waiting

    def remove_surplus(self) -> None:
        """Remove the last drawn items until no answer exceeds `MAX_SHARE` of its question."""
        for key, (candidate, item) in reversed(list(self._drawn.items())):
            if not self._balance.admits(candidate):
                self._balance.add(candidate, -1)
                del self._drawn[key]
                self._per_kind[candidate.t, item.kind] -= 1
                self._dropped[f"{item.question_type}: unbalanced"] += 1

    def items_by_step(self) -> list[list[Item]]:
        """Return the items of every step, in the order of `QUESTION_TYPES`."""
        items: list[list[Item]] = [[] for _ in range(len(self._annotation))]
        for question_type in QUESTION_TYPES:
            for t, step_items in enumerate(items):
                if (t, question_type) in self._drawn:
                    _, item = self._drawn[t, question_type]
                    step_items.append(item)
        return items


def _draw_order(candidates: Sequence[Candidate], rng: Generator) -> list[int]:
    """Return the candidates' indices in the order of a weighted draw without replacement.

    All facts of a question type have the same weight, and so have all frames of a fact.
    """
    frames = Counter(candidate.fact for candidate in candidates)
    facts = Counter(question_type for (question_type, _), _ in frames)
    rarity = [
        frames[candidate.fact] * facts[candidate.question_type] / candidate.spec.weight
        for candidate in candidates
    ]
    return np.argsort(rng.exponential(size=len(candidates)) * np.array(rarity)).tolist()


def _write(candidate: Candidate, paraphrase: float, locations: str) -> Item:
    def _text(value: str | np.ndarray) -> str:
        return value if isinstance(value, str) else format_loc(value.ravel(), locations)

    fields = {name: _text(value) for name, value in candidate.fields.items()}
    question = format_question(candidate.question_type, paraphrase, fields)
    return Item(candidate.spec.kind, candidate.question_type, question, _text(candidate.answer))
