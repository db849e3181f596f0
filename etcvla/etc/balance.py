"""Statistics of a dataset's items, and how well their answers can be guessed, in one pass.

If one answer of a question type is too frequent, a model can score well by always giving it
(`Tally.unbalanced`). `Tally.blind_accuracy` measures what the exact words of a question reveal
about its answer without the image.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from etcvla.etc.items import Item
from etcvla.etc.question_types import QUESTION_TYPES, WORDS, answer_type

MAX_MAJORITY = 0.6
MIN_ITEMS = 200  # smaller groups are not judged: items of an episode share facts
KEYS = ("grade", "kind", "question_type", "task", "split")
_ANY_QUESTION = ""


class Tally:
    """Counts of items by grade, kind, question type, task and split, and of their answers."""

    def __init__(self):
        self._counts: Counter = Counter()  # by `KEYS`
        self._answers: dict[tuple[str, str], Counter] = defaultdict(Counter)
        self._questions: dict[tuple[str, str, str, str], Counter] = defaultdict(Counter)
        self._lengths: dict[str, list[int]] = {"question": [], "answer": []}

    def add(self, items: Iterable[Item], *, task: str, split: str) -> None:
        """Count the items of one step."""
        for item in items:
            self._counts[item.grade, item.kind, item.question_type, task, split] += 1
            self._lengths["question"].append(len(item.question))
            self._lengths["answer"].append(len(item.answer))
            if answer_type(item.question_type) == WORDS:
                self._answers[item.kind, item.question_type][item.answer] += 1
                self._questions[split, task, item.question_type, item.question][item.answer] += 1

    def counts(self, by: str) -> dict[str, int]:
        """Return the number of items by one of `KEYS`."""
        index = KEYS.index(by)
        totals: Counter = Counter()
        for key, count in self._counts.items():
            totals[key[index]] += count
        return dict(totals)

    def majorities(self) -> dict[str, dict[str, float | int | str]]:
        """Return the most frequent answer of every kind and question type with answers in words.

        Each entry has "answer", its "share", and the number of "items".
        """
        by_type: dict[str, Counter] = defaultdict(Counter)
        by_kind: dict[str, Counter] = defaultdict(Counter)
        for (kind, question_type), answers in self._answers.items():
            by_type[question_type].update(answers)
            by_kind[kind].update(answers)
        groups = by_type | by_kind
        return {name: _majority(answers) for name, answers in sorted(groups.items())}

    def unbalanced(self) -> list[str]:
        """Return a message for each kind and question type whose majority exceeds `MAX_MAJORITY`.

        Question types whose answer the instruction determines and groups of fewer than
        `MIN_ITEMS` items are exempt.
        """
        messages = []
        for name, row in self.majorities().items():
            is_exempt = name in QUESTION_TYPES and QUESTION_TYPES[name].answer_in_instruction
            if row["share"] > MAX_MAJORITY and row["items"] >= MIN_ITEMS and not is_exempt:
                messages.append(
                    f"{name}: {row['share']:.0%} of {row['items']} answers are {row['answer']!r} "
                    f"(limit {MAX_MAJORITY:.0%})"
                )
        return messages

    def blind_accuracy(self) -> dict[str, dict[str, float]]:
        """Compute the accuracy of the best answer to each question's exact words.

        The best answers are those of split "train" and are scored on the other splits. New words
        get the most frequent answer of the question type. If there is only one split, the answers
        are scored on the items from which they are derived, which overestimates the accuracy.

        Returns:
          One entry per question type, and one per question type and task ("... in ..."): the
          "share" of correct answers, the number of "items", and the number of distinct
          "questions".
        """
        splits = {split for split, *_ in self._questions}
        train_splits = {"train"} if len(splits) > 1 and "train" in splits else splits
        test_splits = splits - train_splits or splits
        train: dict[str, dict[str, Counter]] = defaultdict(lambda: defaultdict(Counter))
        test: dict[str, dict[str, Counter]] = defaultdict(lambda: defaultdict(Counter))
        for (split, task, question_type, question), answers in self._questions.items():
            for name in (question_type, f"{question_type} in {task}"):
                if split in train_splits:
                    train[name][question].update(answers)
                    train[name][_ANY_QUESTION].update(answers)
                if split in test_splits:
                    test[name][question].update(answers)
        return {name: _guess(train[name], questions) for name, questions in sorted(test.items())}

    def kinds_by_task(self) -> dict[str, dict[str, int]]:
        """Return the number of items of every kind in every task, including zeros."""
        kinds = self.counts("kind")
        table = {task: dict.fromkeys(kinds, 0) for task in self.counts("task")}
        for (_, kind, _, task, _), count in self._counts.items():
            table[task][kind] += count
        return table

    def lengths(self) -> dict[str, dict[str, float]]:
        """Return mean, 99th percentile and maximum of the number of characters of the texts."""
        return {
            name: _length_statistics(values) for name, values in self._lengths.items() if values
        }

    def summary(self) -> dict[str, Any]:
        """Return all statistics as plain values."""
        return {
            **{f"by_{key}": self.counts(key) for key in KEYS},
            "kinds_by_task": self.kinds_by_task(),
            "majority": self.majorities(),
            "blind": self.blind_accuracy(),
            "characters": self.lengths(),
            "unbalanced": self.unbalanced(),
        }


def _majority(answers: Counter) -> dict[str, float | int | str]:
    [(answer, count)] = answers.most_common(1)
    return {"answer": answer, "share": round(count / answers.total(), 3), "items": answers.total()}


def _guess(train: Mapping[str, Counter], questions: Mapping[str, Counter]) -> dict[str, float]:
    """Score the most frequent training answer to each question."""
    correct = 0
    total = 0
    for question, answers in questions.items():
        total += answers.total()
        guesses = train.get(question) or train.get(_ANY_QUESTION)
        if guesses:
            [(guess, _)] = guesses.most_common(1)
            correct += answers[guess]
    return {"share": round(correct / total, 3), "items": total, "questions": len(questions)}


def _length_statistics(lengths: list[int]) -> dict[str, float]:
    return {
        "mean": round(float(np.mean(lengths)), 1),
        "p99": float(np.percentile(lengths, 99)),
        "max": max(lengths),
    }
