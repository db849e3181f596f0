"""Statistics of a set of ETC items: counts by grade, kind, source and question type."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from etcvla.etc.items import Item
from etcvla.etc.score import is_correct, majority_answers


def item_statistics(items: Sequence[Item]) -> dict[str, Any]:
    """Compute the statistics of `items`, ready for JSON.

    Args:
      items: the items of any number of frames.

    Returns:
      "items": number of items.
      "by_grade", "by_kind", "by_source": counts.
      "by_question_type": question type -> {"count", "answers": number of different answers,
        "majority_answer": best constant answer, "majority_share": share of the items that it
        answers correctly by the rules of `is_correct`}. General questions of the same name are
        included.
      "question_chars", "answer_chars": {"mean", "max"} length.
    """
    by_type = defaultdict(list)
    for item in items:
        by_type[item.question_type].append(item)
    constant_answers = majority_answers(items)
    return {
        "items": len(items),
        "by_grade": dict(Counter(item.grade for item in items)),
        "by_kind": dict(Counter(item.kind for item in items)),
        "by_source": dict(Counter(item.source for item in items)),
        "by_question_type": {
            name: _type_statistics(group, constant_answers[name]) for name, group in by_type.items()
        },
        "question_chars": _lengths([item.question for item in items]),
        "answer_chars": _lengths([item.answer for item in items]),
    }


def _type_statistics(items: Sequence[Item], constant_answer: str) -> dict[str, Any]:
    scores = [is_correct(item, item.answer, constant_answer) for item in items]
    return {
        "count": len(items),
        "answers": len({item.answer for item in items}),
        "majority_answer": constant_answer,
        "majority_share": float(np.mean(scores)),
    }


def _lengths(texts: Sequence[str]) -> dict[str, float]:
    lengths = [len(text) for text in texts] or [0]
    return {"mean": float(np.mean(lengths)), "max": max(lengths)}
