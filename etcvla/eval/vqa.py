"""What a checkpoint still knows: held-out questions, answered greedily, scored by kind, beside blind guessing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from etcvla.data.stage_dataset import ANY_KIND, StageDataset
from etcvla.etc.items import Item
from etcvla.etc.question_types import QUESTION_TYPES, parse_question
from etcvla.etc.score import blind_accuracy, is_correct, score_answer
from etcvla.policy import Policy
from etcvla.stats import clustered

BATCH = 32
BOX = "annotation/box"
TRAIN_ITEMS = 20_000  # from which the blind baselines are learnt


@dataclasses.dataclass(frozen=True)
class Question:
    """A held-out item with its frame's images, uint8[H, W, 3] each, and what was answered."""

    item: Item
    instruction: str
    images: tuple[np.ndarray, ...]
    episode: int = 0  # of its split
    box: np.ndarray | None = (
        None  # float32[4] in the first image, of the thing that it names; None if unknown
    )
    prediction: str = ""

    @property
    def correct(self) -> bool:
        return is_correct(self.item, self.item.answer, self.prediction)


def draw_questions(source: StageDataset, *, per_kind: int, seed: int) -> list[Question]:
    """`per_kind` questions of each kind, spread evenly over the split's frames."""
    rng = np.random.default_rng(seed)
    names = [*source.item_features, *(f"observation/{name}" for name in source.cameras)]
    names += [name for name in ("language_instruction", BOX) if name in source.dataset.features]
    questions = []
    for kind in source.known_kinds:
        pool = source.candidates(kind)
        for frame in pool[np.linspace(0, len(pool) - 1, min(per_kind, len(pool))).astype(int)]:
            facts = source.dataset.frame(int(frame), names)
            items = [item for item in source.items(facts) if item.kind == kind]
            images = tuple(facts[f"observation/{name}"] for name in source.cameras)
            item, episode = items[rng.integers(len(items))], source.dataset.locate(int(frame))[0]
            questions.append(
                Question(
                    item,
                    facts.get("language_instruction", ""),
                    images,
                    episode,
                    _named_box(item, source, episode, facts),
                )
            )
    return questions


def _named_box(
    item: Item, source: StageDataset, episode: int, facts: Mapping[str, Any]
) -> np.ndarray | None:
    """Where the first camera sees the thing that a question names."""
    thing = (
        (parse_question(item.question_type, item.question) or {}).get("object")
        if item.question_type in QUESTION_TYPES
        else None
    )
    if thing is None or BOX not in facts:
        return None
    about = source.dataset.metadata(episode)
    boxes = facts[BOX][list(about["cameras"]).index(source.cameras[0])]
    found = dict(zip(about["objects"], boxes, strict=False)).get(thing)
    return found if found is not None and np.isfinite(found).all() else None


def answer_all(policy: Policy, questions: Sequence[Question]) -> list[Question]:
    """The questions with the policy's answers; the last batch is padded, so that one shape is compiled."""
    answered = []
    for start in range(0, len(questions), BATCH):
        part = list(questions[start : start + BATCH])
        padded = (part * BATCH)[:BATCH]
        said = policy.answer([q.images for q in padded], [q.item.question for q in padded])
        answered += [
            dataclasses.replace(q, prediction=text) for q, text in zip(part, said, strict=False)
        ]
    return answered


def items_of(source: StageDataset, limit: int = TRAIN_ITEMS) -> list[Item]:
    """About `limit` of a split's items, from frames spread evenly over it."""
    frames = source.candidates(ANY_KIND)
    step = max(1, len(frames) * 6 // limit)
    return [
        item
        for frame in frames[::step]
        for item in source.items(source.dataset.frame(int(frame), source.item_features))
    ]


def scores(
    answered: Sequence[Question], train_items: Sequence[Item]
) -> dict[str, dict[str, float]]:
    """By kind: accuracy, its 95 % interval and count, and what two blind guessers get on the same questions.

    `majority` gives one constant answer a question_type; `blind` the best constant answer to each exact question.
    Intervals know that answers of one episode are not independent.
    """
    items = [question.item for question in answered]
    majority, blind = (
        blind_accuracy(train_items, items, by=by) for by in ("question_type", "question")
    )
    out = {}
    for kind in sorted({item.kind for item in items}):
        asked = [question for question in answered if question.item.kind == kind]
        found = clustered(
            [question.correct for question in asked], [question.episode for question in asked]
        )
        out[kind] = {
            "accuracy": found.value,
            "low": found.low,
            "high": found.high,
            "count": found.count,
            "majority": majority[kind],
            "blind": blind[kind],
            **closeness(asked),
        }
    return out


def closeness(answered: Sequence[Question]) -> dict[str, float]:
    """The means of what `score.score_answer` tells beside right or wrong, and under `.._count` of how many answers."""
    found: dict[str, list[float]] = {}
    for question in answered:
        for name, value in score_answer(
            question.item, question.item.answer, question.prediction, question.box
        ).items():
            found.setdefault(name, []).append(value)
    found.pop("correct", None)
    return {
        key: number
        for name, values in found.items()
        for key, number in ((name, float(np.mean(values))), (f"{name}_count", len(values)))
    }


def mean_accuracy(by_kind: Mapping[str, Mapping[str, float]]) -> float:
    """Mean accuracy over the kinds."""
    return float(np.mean([kind["accuracy"] for kind in by_kind.values()]))
