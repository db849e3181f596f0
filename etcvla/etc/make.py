"""From an episode's annotation to the ETC items of its steps."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

import numpy as np

from etcvla.etc import scene, task, trajectory
from etcvla.etc.annotation import Annotation
from etcvla.etc.facts import Candidate, FrameView
from etcvla.etc.items import LOCATIONS, Item, format_loc
from etcvla.etc.question_types import QUESTION_TYPES, WORDS, format_question
from etcvla.etc.verify import check
from etcvla.names import lookup

ITEMS_PER_KIND = 2
MAX_SHARE = 0.5  # of one answer among an episode's items that ask the same
HOPELESS = 0.9  # share of layouts from which on what is always so is not asked at all
_ORDER = {question_type: i for i, question_type in enumerate(QUESTION_TYPES)}


def make_items(
    annotation: Annotation,
    seed: int,
    *,
    absent: Sequence[str] = scene.ABSENT,
    layouts: Annotation | None = None,
    locations: str = "loc",
) -> tuple[list[list[Item]], Counter]:
    """Up to two checked items of every kind at every step; what is unknown, ambiguous or known in advance is not asked.

    Within an episode no answer is more than half of those to the same question (`QUESTION_TYPES[...].answer_in_instruction` excepted), so that
    the question alone gives nothing away. What never changes in an episode cannot be balanced there; with `layouts` it
    is asked as often as other layouts show the contrary, and never if hardly any does.

    Args:
      annotation: facts of T steps; coordinates are of its first camera.
      seed: draws objects, question_types and wordings; the same seed gives the same items.
      absent: nouns to ask for in vain: best those of the dataset's other scenes. Give () where `annotation.objects`
        does not name all there is to see.
      layouts: facts of the first steps of K other episodes of the task, as an annotation of K steps. None where every
        episode has a scene of its own: nothing is known in advance then.
      locations: how coordinates are written, a name of `items.LOCATIONS`.

    Returns:
      T lists of items, and how often what was left out for which reason ("question_type: reason").

    Raises ValueError for an unknown way to write locations.
    """
    lookup(dict.fromkeys(LOCATIONS), locations, "locations")
    rng = np.random.default_rng(seed)
    dropped: Counter = Counter()
    found = _candidates(annotation, rng, dropped, absent)
    balance = _Balance(found)
    if layouts is not None:
        found = balance.thin(
            found,
            _candidates(layouts, np.random.default_rng(seed), Counter(), absent),
            rng,
            dropped,
        )
    draw = _Draw(annotation, found, rng, locations, dropped)
    for candidate in draw.fill(balance.admits):
        balance.add(candidate)
    draw.put_back(balance.surplus(draw.candidates))
    list(draw.fill(balance.neutral))  # where a step has room again
    return draw.by_step(), dropped


def _candidates(
    annotation: Annotation, rng: np.random.Generator, dropped: Counter, absent: Sequence[str]
) -> list[Candidate]:
    view = FrameView(annotation)
    return [
        *scene.candidates(view, rng, dropped, absent),
        *task.candidates(view, rng, dropped),
        *trajectory.candidates(view, dropped),
    ]


class _Draw:
    """Items drawn from candidates at random: at a step no question_type twice, and `ITEMS_PER_KIND` of a kind at most."""

    def __init__(
        self,
        annotation: Annotation,
        found: Sequence[Candidate],
        rng: np.random.Generator,
        locations: str,
        dropped: Counter,
    ):
        self._annotation, self._locations, self._dropped = annotation, locations, dropped
        self._wording = rng.random(len(found)).tolist()
        self._waiting = [(found[i], i) for i in _draw_order(found, rng)]
        self._drawn: dict[tuple[int, str], tuple[Candidate, Item]] = {}
        self._taken: Counter = Counter()  # by step and kind

    def fill(self, admits: Callable[[Candidate], bool]) -> Iterator[Candidate]:
        """Draws wherever there is room, and yields what it drew; no candidate is written twice."""
        waiting, self._waiting = self._waiting, []
        for candidate, i in waiting:
            place = candidate.t, QUESTION_TYPES[candidate.question_type].kind
            if (
                self._taken[place] == ITEMS_PER_KIND
                or (candidate.t, candidate.question_type) in self._drawn
                or not admits(candidate)
            ):
                self._waiting.append((candidate, i))
                continue
            item = _write(candidate, self._wording[i], self._locations)
            if reason := check(item, self._annotation, candidate.t):
                self._dropped[f"{item.question_type}: {reason}"] += 1
                continue
            self._drawn[candidate.t, item.question_type] = candidate, item
            self._taken[place] += 1
            yield candidate

    @property
    def candidates(self) -> list[Candidate]:
        """What was drawn, in order."""
        return [candidate for candidate, _ in self._drawn.values()]

    def put_back(self, surplus: Iterable[tuple[int, str]]) -> None:
        """Undraws by step and question_type."""
        for t, question_type in surplus:
            del self._drawn[t, question_type]
            self._taken[t, QUESTION_TYPES[question_type].kind] -= 1
            self._dropped[f"{question_type}: unbalanced"] += 1

    def by_step(self) -> list[list[Item]]:
        """The items of every step."""
        items: list[list[Item]] = [[] for _ in range(len(self._annotation))]
        for t, question_type in sorted(self._drawn, key=lambda key: _ORDER[key[1]]):
            items[t].append(self._drawn[t, question_type][1])
        return items


class _Balance:
    """Keeps one answer from being the usual one, among an episode's candidates whose answers are words."""

    def __init__(self, found: Sequence[Candidate]):
        values, answers = defaultdict(set), defaultdict(set)
        for candidate in found:
            if (
                QUESTION_TYPES[candidate.question_type].answer_type == WORDS
                and not QUESTION_TYPES[candidate.question_type].answer_in_instruction
            ):
                values[candidate.what].add(candidate.value)
                answers[candidate.what].add(candidate.answer)
        self._changing = {what for what, seen in values.items() if len(seen) > 1}
        # What never changes has two answers all the same where the question may be turned around.
        self._turning = {what for what, seen in answers.items() if len(seen) > 1} - self._changing
        self._constant = {what: next(iter(seen)) for what, seen in values.items() if len(seen) == 1}
        self._counts: Counter = Counter()

    def thin(
        self,
        found: Sequence[Candidate],
        layouts: Sequence[Candidate],
        rng: np.random.Generator,
        dropped: Counter,
    ) -> list[Candidate]:
        """Without those that ask what never changes here and is nearly always so; see `make_items`."""
        seen = Counter((candidate.what, candidate.value) for candidate in layouts)
        total = Counter()
        for (what, _), count in seen.items():
            total[what] += count
        out = set()
        for what, value in self._constant.items():
            share = seen[what, value] / total[what] if total[what] else 1.0
            if share > HOPELESS or rng.random() * share > 1 - share:
                out.add(what)
        for candidate in found:
            if candidate.what in out:
                dropped[f"{candidate.question_type}: known in advance"] += 1
        return [candidate for candidate in found if candidate.what not in out]

    def _keys(self, candidate: Candidate) -> tuple[Hashable, Hashable] | None:
        """What is asked, and that with the answer, as they are counted; None where nothing can be balanced."""
        if candidate.what in self._changing:
            return candidate.question, (candidate.question, candidate.value)
        return (
            (candidate.what, (candidate.what, candidate.answer))
            if candidate.what in self._turning
            else None
        )

    def admits(self, candidate: Candidate) -> bool:
        """Would the answer not be ahead of all others together?"""
        keys = self._keys(candidate)
        return keys is None or self._counts[keys[1]] <= MAX_SHARE * self._counts[keys[0]]

    def neutral(self, candidate: Candidate) -> bool:
        """Has the answer nothing to be balanced with?"""
        return self._keys(candidate) is None

    def add(self, candidate: Candidate) -> None:
        """Counts what is asked."""
        self._counts.update(self._keys(candidate) or ())

    def surplus(self, drawn: Sequence[Candidate]) -> list[tuple[int, str]]:
        """(t, question_type) of what must go, so that no answer is more than `MAX_SHARE` of its question's."""
        out = []
        for candidate in reversed(drawn):
            keys = self._keys(candidate)
            if keys and self._counts[keys[1]] > MAX_SHARE * self._counts[keys[0]]:
                self._counts.subtract(keys)
                out.append((candidate.t, candidate.question_type))
        return out


def _draw_order(found: Sequence[Candidate], rng: np.random.Generator) -> Iterator[int]:
    """Weighted drawing without replacement: a question_type's facts weigh the same, and so do a fact's frames."""
    frames = Counter(candidate.fact for candidate in found)
    facts = Counter(
        question_type
        for _, question_type in {(candidate.fact, candidate.question_type) for candidate in found}
    )
    rarity = np.array(
        [
            frames[candidate.fact]
            * facts[candidate.question_type]
            / QUESTION_TYPES[candidate.question_type].weight
            for candidate in found
        ]
    )
    return np.argsort(rng.exponential(size=len(found)) * rarity).tolist()


def _write(candidate: Candidate, paraphrase: float, locations: str) -> Item:
    def text(value: str | np.ndarray) -> str:
        return value if isinstance(value, str) else format_loc(value.ravel(), locations)

    slots = {name: text(value) for name, value in candidate.slots.items()}
    question = format_question(candidate.question_type, paraphrase, slots)
    return Item(
        QUESTION_TYPES[candidate.question_type].kind,
        candidate.question_type,
        question,
        text(candidate.answer),
    )
