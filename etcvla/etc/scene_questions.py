"""Questions about scenes whose contents are known: proposed, answered, and checked from their text.

A *scene* is any object that the functions of a question type can read. `etcvla.etc.shapes` has
drawn scenes; `data_builders.tabletop_vqa` has rendered ones.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from numpy.random import Generator

from etcvla.etc.items import Item
from etcvla.etc.question_types import template_pattern

Fields = dict[str, str]  # values of a template's fields


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
