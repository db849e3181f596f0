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

    Returns:
      "items": number of items.
      "by_grade", "by_kind", "by_source": counts.
      "by_question_type": question type -> {"count", "answers": number of different answers,
        "majority_answer": best constant answer, "majority_share": share of the items that it
        answers correctly by the rules of `is_correct`}. General questions of the same name are
        included.
    """
    by_type = defaultdict(list)
    for item in items:
        by_type[item.question_type].append(item)
    question_types = {}
    for name, constant_answer in majority_answers(items).items():
        correct = [is_correct(item, item.answer, constant_answer) for item in by_type[name]]
        question_types[name] = {
            "count": len(correct),
            "answers": len({item.answer for item in by_type[name]}),
            "majority_answer": constant_answer,
            "majority_share": float(np.mean(correct)),
        }
    return {
        "items": len(items),
        "by_grade": dict(Counter(item.grade for item in items)),
        "by_kind": dict(Counter(item.kind for item in items)),
        "by_source": dict(Counter(item.source for item in items)),
        "by_question_type": question_types,
    }
