"""Statistics of ETC items."""

import itertools
import json

import pytest

from etcvla.etc import make_items
from etcvla.etc.statistics import item_statistics
from tests.etc.synthetic_annotation import make_annotation


def test_item_statistics_count_items_and_best_constant_answers():
    steps, _ = make_items(make_annotation(), 0)
    items = list(itertools.chain.from_iterable(steps))
    numbers = item_statistics(items)
    assert (
        numbers["items"]
        == len(items)
        == sum(numbers["by_kind"].values())
        == sum(numbers["by_grade"].values())
    )
    present = [item.answer for item in items if item.question_type == "present"]
    row = numbers["by_question_type"]["present"]
    assert row["count"] == len(present) and row["answers"] == 2
    assert row["majority_share"] == pytest.approx(
        max(map(present.count, ("yes", "no"))) / len(present)
    )
    assert numbers["by_source"] == {"oracle": len(items)}
    assert json.loads(json.dumps(numbers)) == numbers
    assert item_statistics([])["items"] == 0
