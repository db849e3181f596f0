"""From an episode's annotation to the ETC items of its steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from etcvla.etc import scene, task, trajectory
from etcvla.etc.annotation import Annotation
from etcvla.etc.facts import Candidate, View
from etcvla.etc.forms import FORMS, ask
from etcvla.etc.items import Item, format_loc
from etcvla.etc.verify import check

ITEMS_PER_KIND = 2
_ORDER = {form: i for i, form in enumerate(FORMS)}


def make_items(annotation: Annotation, seed: int, *,
               absent: Sequence[str] = scene.ABSENT) -> tuple[list[list[Item]], Counter]:
    """Up to two checked items of every kind at every step; what is unknown or ambiguous is not asked.

    Args:
      annotation: facts of T steps; items speak of its first camera.
      seed: draws objects, forms and wordings; the same seed gives the same items.
      absent: nouns to ask for in vain: best those of the dataset's other scenes. Give () where `annotation.objects`
        does not name all there is to see.

    Returns:
      T lists of items, and how often what was left out for which reason ("form: reason").
    """
    rng = np.random.default_rng(seed)
    dropped: Counter = Counter()
    view = View(annotation)
    found = [*scene.candidates(view, rng, dropped, absent), *task.candidates(view, rng, dropped),
             *trajectory.candidates(view, dropped)]
    items: list[dict[str, Item]] = [{} for _ in range(len(annotation))]
    taken: Counter = Counter()
    wording = rng.random(len(found)).tolist()
    for i in _draw_order(found, rng):
        candidate = found[i]
        kind = FORMS[candidate.form].kind
        if taken[candidate.t, kind] == ITEMS_PER_KIND or candidate.form in items[candidate.t]:
            continue
        item = _write(candidate, wording[i])
        if reason := check(item, annotation, candidate.t):
            dropped[f"{item.form}: {reason}"] += 1
        else:
            items[candidate.t][item.form] = item
            taken[candidate.t, kind] += 1
    return [[step[form] for form in sorted(step, key=_ORDER.__getitem__)] for step in items], dropped


def _draw_order(found: Sequence[Candidate], rng: np.random.Generator) -> Iterator[int]:
    """Weighted drawing without replacement: a form's facts weigh the same, and so do a fact's frames."""
    frames = Counter(candidate.fact for candidate in found)
    facts = Counter(form for _, form in {(candidate.fact, candidate.form) for candidate in found})
    rarity = np.array([frames[candidate.fact] * facts[candidate.form] / FORMS[candidate.form].share
                       for candidate in found])
    return np.argsort(rng.exponential(size=len(found)) * rarity).tolist()


def _write(candidate: Candidate, paraphrase: float) -> Item:
    slots = {name: _text(value) for name, value in candidate.slots.items()}
    question = ask(candidate.form, paraphrase, slots)
    return Item(FORMS[candidate.form].kind, candidate.form, question, _text(candidate.answer))


def _text(value: str | np.ndarray) -> str:
    return value if isinstance(value, str) else format_loc(value.ravel())
