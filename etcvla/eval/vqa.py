"""Held-out questions: greedy answers, scored by kind, beside the accuracy of guessing blindly."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from etcvla.data.stage_dataset import ANY_KIND, StageDataset
from etcvla.etc.items import Item
from etcvla.etc.question_types import QUESTION_TYPES, parse_question
from etcvla.etc.score import blind_accuracy, is_correct, score_answer
from etcvla.policy import Policy
from etcvla.stats import clustered

BATCH = 32
BOX_FEATURE = "annotation/box"
TRAIN_ITEMS = 20_000  # training items from which blind guesses are derived
_ITEMS_PER_FRAME = 6  # estimate for training splits


@dataclasses.dataclass(frozen=True)
class Question:
    """A held-out item with its frame, and the policy's answer."""

    item: Item
    instruction: str
    images: tuple[np.ndarray, ...]  # uint8[H, W, 3] per camera
    episode: int = 0  # of the split
    box: np.ndarray | None = None  # float32[4] of the named object in the first image, if known
    prediction: str = ""

    @property
    def correct(self) -> bool:
        """Whether the prediction is correct, see `etcvla.etc.score`."""
        return is_correct(self.item, self.item.answer, self.prediction)


def draw_questions(dataset: StageDataset, *, per_kind: int, seed: int) -> list[Question]:
    """Return `per_kind` questions of each kind, from frames spread evenly over the split."""
    rng = np.random.default_rng(seed)
    optional = ("language_instruction", BOX_FEATURE)
    features = [name for name in optional if name in dataset.dataset.features]
    questions = []
    for kind in dataset.known_kinds:
        for index, frame, images in spread_frames(dataset, kind, per_kind, features):
            items = [item for item in dataset.items(frame) if item.kind == kind]
            item = items[rng.integers(len(items))]
            episode, _ = dataset.dataset.locate(index)
            question = Question(
                item,
                frame.get("language_instruction", ""),
                images,
                episode=episode,
                box=_named_box(item, dataset, episode, frame),
            )
            questions.append(question)
    return questions


def spread_frames(
    dataset: StageDataset, kind: str, count: int, features: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any], tuple[np.ndarray, ...]]]:
    """Yield up to `count` frames with items of a kind, spread evenly over the split.

    Args:
      features: features to read in addition to items and images.

    Yields:
      Number of the frame, its features, and its images uint8[H, W, 3] per camera.
    """
    cameras = [f"observation/{name}" for name in dataset.cameras]
    names = [*dataset.item_features, *cameras, *features]
    for index in spread_evenly(dataset.candidates(kind), count):
        frame = dataset.dataset.frame(int(index), names)
        yield int(index), frame, tuple(frame[name] for name in cameras)


def spread_evenly(values: Sequence[Any], count: int) -> list[Any]:
    """Return up to `count` of the values, spread evenly over them."""
    indices = np.linspace(0, len(values) - 1, min(count, len(values))).astype(int)
    return [values[i] for i in indices]


def _named_box(
    item: Item, dataset: StageDataset, episode: int, frame: Mapping
) -> np.ndarray | None:
    """Return the box in the first camera of the object that the question names; None if unknown."""
    if BOX_FEATURE not in frame or item.question_type not in QUESTION_TYPES:
        return None
    fields = parse_question(item.question_type, item.question) or {}
    metadata = dataset.dataset.metadata(episode)
    camera = list(metadata["cameras"]).index(dataset.cameras[0])
    boxes = dict(zip(metadata["objects"], frame[BOX_FEATURE][camera], strict=False))
    box = boxes.get(fields.get("object"))
    return box if box is not None and np.isfinite(box).all() else None


def answer_questions(policy: Policy, questions: Sequence[Question]) -> list[Question]:
    """Return the questions with the policy's answers, given the images of the policy's cameras.

    The last batch repeats questions up to the batch size, so that one shape is compiled.
    """
    answered = []
    for start in range(0, len(questions), BATCH):
        batch = list(questions[start : start + BATCH])
        padded = (batch * BATCH)[:BATCH]
        images = [question.images[: policy.num_cameras] for question in padded]
        predictions = policy.answer(images, [question.item.question for question in padded])
        for question, prediction in zip(batch, predictions, strict=False):
            answered.append(dataclasses.replace(question, prediction=prediction))
    return answered


def sample_items(dataset: StageDataset) -> list[Item]:
    """Return about TRAIN_ITEMS items of a split, from frames spread evenly over it."""
    frames = dataset.candidates(ANY_KIND)
    stride = max(1, len(frames) * _ITEMS_PER_FRAME // TRAIN_ITEMS)
    items = []
    for frame_index in frames[::stride]:
        frame = dataset.dataset.frame(int(frame_index), dataset.item_features)
        items += dataset.items(frame)
    return items


def score_by_kind(
    answered: Sequence[Question], train_items: Sequence[Item]
) -> dict[str, dict[str, float]]:
    """Return kind -> scores.

    Keys of the scores:
      accuracy, low, high, count: with the 95 % interval, which takes into account that answers
        about one episode are correlated (`stats.clustered`).
      majority: accuracy of one constant answer per question type.
      blind: accuracy of the best constant answer to each exact question.
      others: means of the further scores of `score_answer`, and their counts.
    """
    items = [question.item for question in answered]
    majority = blind_accuracy(train_items, items, by="question_type")
    blind = blind_accuracy(train_items, items, by="question")
    by_kind = defaultdict(list)
    for question in answered:
        by_kind[question.item.kind].append(question)
    scores = {}
    for kind, questions in sorted(by_kind.items()):
        accuracy = clustered(
            [question.correct for question in questions],
            [question.episode for question in questions],
        )
        scores[kind] = {
            "accuracy": accuracy.value,
            "low": accuracy.low,
            "high": accuracy.high,
            "count": accuracy.count,
            "majority": majority[kind],
            "blind": blind[kind],
            **_mean_scores(questions),
        }
    return scores


def _mean_scores(answered: Sequence[Question]) -> dict[str, float]:
    """Return the means of the scores of `score_answer` other than "correct".

    `<name>_count` is the number of answers that have the score `<name>`.
    """
    values = defaultdict(list)
    for question in answered:
        item = question.item
        scores = score_answer(item, item.answer, question.prediction, question.box)
        for name, value in scores.items():
            values[name].append(value)
    values.pop("correct", None)
    means = {}
    for name, numbers in values.items():
        means[name] = float(np.mean(numbers))
        means[f"{name}_count"] = len(numbers)
    return means


def mean_accuracy(by_kind: Mapping[str, Mapping[str, float]]) -> float:
    """Return the mean accuracy over kinds."""
    return float(np.mean([scores["accuracy"] for scores in by_kind.values()]))
