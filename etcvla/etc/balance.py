"""How many items of what, and can their answers be guessed? One pass over a dataset's items.

An answer that is given too often in a question_type makes the question_type a lottery with a favourite. What can still be told from a
question's exact words, without looking, stands in the table of `blind`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np

from etcvla.etc.items import Item
from etcvla.etc.question_types import QUESTION_TYPES, WORDS, answer_type

MAX_MAJORITY = 0.6
_ANY = ""  # a question of any words
MIN_ITEMS = 200  # below, shares say little: an episode's items share its facts


class Tally:
    """Counts of items by grade, kind, question_type, task and split, and of answers."""

    def __init__(self):
        self._counts: Counter = Counter()
        self._answers: dict[tuple[str, str], Counter] = defaultdict(Counter)
        self._questions: dict[tuple[str, str, str, str], Counter] = defaultdict(Counter)
        self._lengths: dict[str, list[int]] = {"question": [], "answer": []}

    def add(self, items: Iterable[Item], *, task: str, split: str) -> None:
        """Counts the items of one step."""
        for item in items:
            self._counts[item.grade, item.kind, item.question_type, task, split] += 1
            self._lengths["question"].append(len(item.question))
            self._lengths["answer"].append(len(item.answer))
            if answer_type(item.question_type) == WORDS:
                self._answers[item.kind, item.question_type][item.answer] += 1
                self._questions[split, task, item.question_type, item.question][item.answer] += 1

    def counts(self, by: str) -> dict[str, int]:
        """Items by "grade", "kind", "question_type", "task" or "split"."""
        index = ("grade", "kind", "question_type", "task", "split").index(by)
        total: Counter = Counter()
        for key, count in self._counts.items():
            total[key[index]] += count
        return dict(total)

    def majorities(self) -> dict[str, dict[str, float | int | str]]:
        """The most frequent answer, its share and the count of items, of every kind and of every question_type in words."""
        groups = {question_type: answers for (_, question_type), answers in self._answers.items()}
        for kind in {kind for kind, _ in self._answers}:
            groups[kind] = sum(
                (answers for (of, _), answers in self._answers.items() if of == kind), Counter()
            )
        return {name: _majority(answers) for name, answers in sorted(groups.items())}

    def unbalanced(self) -> list[str]:
        """What breaks the rule: an answer with more than `MAX_MAJORITY` of a kind's or a question_type's items in words.

        Forms whose answer the instruction gives (`Form.answer_in_instruction`) and groups of fewer than `MIN_ITEMS` are exempt.
        """
        return [
            f"{name}: {row['share']:.0%} of {row['items']} answers are {row['answer']!r} (limit {MAX_MAJORITY:.0%})"
            for name, row in self.majorities().items()
            if row["share"] > MAX_MAJORITY
            and row["items"] >= MIN_ITEMS
            and not (name in QUESTION_TYPES and QUESTION_TYPES[name].answer_in_instruction)
        ]

    def blind(self) -> dict[str, dict[str, float]]:
        """By question_type, and by question_type and task, how often one is right who knows a question's exact words and nothing else.

        The best answers are learnt from split "train" and tried on the others, where words that are new get the question_type's
        usual answer. Of one split alone they are learnt from what they are tried on, which flatters the guesser.
        "questions" says how many different ones are tried.
        """
        splits = {split for split, *_ in self._questions}
        learnt = {"train"} if len(splits) > 1 and "train" in splits else splits
        tried = splits - learnt or splits
        known, asked = (
            defaultdict(lambda: defaultdict(Counter)),
            defaultdict(lambda: defaultdict(Counter)),
        )
        for (split, task, question_type, question), answers in self._questions.items():
            for name in (question_type, f"{question_type} in {task}"):
                if split in learnt:
                    known[name][question] += answers
                    known[name][_ANY] += answers
                if split in tried:
                    asked[name][question] += answers
        return {name: _guess(known[name], questions) for name, questions in sorted(asked.items())}

    def kinds_by_task(self) -> dict[str, dict[str, int]]:
        """Items of every kind in every task, 0 where there are none."""
        kinds = self.counts("kind")
        table = {task: dict.fromkeys(kinds, 0) for task in self.counts("task")}
        for (_, kind, _, task, _), count in self._counts.items():
            table[task][kind] += count
        return table

    def lengths(self) -> dict[str, dict[str, float]]:
        """Characters of questions and answers: mean, 99th percentile, longest."""
        return {
            name: {
                "mean": round(float(np.mean(found)), 1),
                "p99": float(np.percentile(found, 99)),
                "max": int(max(found)),
            }
            for name, found in self._lengths.items()
            if found
        }

    def summary(self) -> dict:
        """All of it, as plain values."""
        return {
            **{
                f"by_{by}": self.counts(by)
                for by in ("grade", "kind", "question_type", "task", "split")
            },
            "kinds_by_task": self.kinds_by_task(),
            "majority": self.majorities(),
            "blind": self.blind(),
            "characters": self.lengths(),
            "unbalanced": self.unbalanced(),
        }


def _guess(known: dict[str, Counter], questions: dict[str, Counter]) -> dict[str, float]:
    """Scores the best constant answer to each question's words."""
    right = 0
    for question, answers in questions.items():
        best = (known[question] or known[_ANY]).most_common(1)
        right += answers[best[0][0]] if best else 0
    total = sum(answers.total() for answers in questions.values())
    return {"share": round(right / total, 3), "items": total, "questions": len(questions)}


def _majority(answers: Counter) -> dict[str, float | int | str]:
    ((answer, count),) = answers.most_common(1)
    return {"answer": answer, "share": round(count / answers.total(), 3), "items": answers.total()}
