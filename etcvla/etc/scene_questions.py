"""Questions about scenes whose contents are known: proposed, answered, and checked from their text.

A *scene* is any object that the functions of a question type can read. `etcvla.etc.shapes` has
drawn scenes; `data_builders.tabletop_vqa` has rendered ones.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.random import Generator

from etcvla.etc.items import Item
from etcvla.etc.question_types import template_pattern

Fields = dict[str, str]  # values of a template's fields
# Relative weights of the counts 0, 1, 2, ... in questions; high counts are rare in pictures.
_COUNT_WEIGHTS = np.array([0.5, 1, 5, 18, 30, 50, 80])


@dataclasses.dataclass(frozen=True)
class SceneQuestion:
    """A question type about scenes. Subclasses set the pattern of each field of their templates."""

    field_patterns: ClassVar[Mapping[str, str]] = {}

    kind: str
    templates: tuple[str, ...]  # paraphrases of the question, with {fields}
    propose: Callable[[Any, Generator], list[Fields]]  # possible fields for a scene
    answer: Callable[..., str]  # called with scene and fields; ValueError: no unique answer

    @functools.cached_property
    def patterns(self) -> tuple[re.Pattern[str], ...]:
        """One pattern per template."""
        return tuple(template_pattern(text, self.field_patterns) for text in self.templates)

    def parse(self, question: str) -> Fields | None:
        """Return the fields of a question, None if no template of this question type matches it."""
        for pattern in self.patterns:
            match = pattern.fullmatch(question)
            if match:
                return match.groupdict()
        return None

    def write(self, name: str, fields: Fields, answer: str, rng: Generator) -> Item:
        """Return the item of a question of this type, called `name`, in a random phrasing."""
        template = self.templates[rng.integers(len(self.templates))]
        return Item(self.kind, name, template.format(**fields), answer)


def no_fields(scene: Any, rng: Generator) -> list[Fields]:
    """Propose a question whose templates have no fields."""
    return [{}]


def choose_rare(counts: Mapping[str, int], rng: Generator) -> str:
    """Draw a key. Keys with high counts, which are rare in scenes, have higher weights."""
    weights = _COUNT_WEIGHTS[list(counts.values())]
    return str(rng.choice(list(counts), p=weights / weights.sum()))


def propose_existence(
    name: str,
    nouns: Iterable[str],
    colors: Iterable[str],
    find: Callable[[str], Sequence],
    rng: Generator,
) -> list[Fields]:
    """Propose a present or absent objects with equal probability.

    Absent objects share their color or their noun with the present object, half of them each.
    Otherwise the color or the noun alone would reveal the answer.

    Args:
      name: color and noun of an object of the scene.
      find: returns the objects that a phrase names.
    """
    color, noun = name.split()
    if rng.random() < 0.5:
        return [{"a": _with_article(name)}]
    if rng.random() < 0.5:
        names = [f"{color} {other}" for other in nouns]
    else:
        names = [f"{other} {noun}" for other in colors]
    return [{"a": _with_article(absent)} for absent in names if not find(absent)]


def _with_article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def check(item: Item, scene: Any, questions: Mapping[str, SceneQuestion]) -> str | None:
    """Return the reason why `item` is wrong about the scene, None if it is correct.

    The question is parsed from its text; the objects from which it was made are not used.

    Args:
      questions: question types by name.
    """
    question_type = questions.get(item.question_type)
    if question_type is None or question_type.kind != item.kind:
        return f"no question_type {item.question_type!r} of kind {item.kind!r}"
    fields = question_type.parse(item.question)
    if fields is None:
        return f"not a question of question_type {item.question_type}: {item.question!r}"
    try:
        expected = question_type.answer(scene, **fields)
    except ValueError as error:
        return f"{item.question!r} has no unique answer: {error}"
    if item.answer != expected:
        return f"{item.question!r}: {item.answer!r}, the scene says {expected!r}"
    return None
