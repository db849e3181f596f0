"""Counting items and measuring how well their answers can be guessed."""

import pytest

from etcvla.etc.balance import Tally
from etcvla.etc.items import Item

HEIGHT_QUESTION = "is the gripper above or below the mug?"


def _add(tally, question_type, answers, *, task="reach", split="train", question=HEIGHT_QUESTION):
    kind = {
        "done": "task_planning",
        "decompose": "task_planning",
        "gripper_point": "spatial_understanding",
        "gripper_height": "spatial_understanding",
    }[question_type]
    items = [Item(kind, question_type, question, answer) for answer in answers]
    tally.add(items, task=task, split=split)


@pytest.fixture
def tally():
    return Tally()


def test_items_are_counted_by_every_key(tally):
    _add(tally, "done", ["yes", "no"])
    _add(tally, "gripper_point", ["<loc0001><loc0002>"])
    _add(tally, "done", ["no"], task="push", split="val")
    assert tally.counts("grade") == {"task_oriented": 3, "scene_grounding": 1}
    assert tally.counts("task") == {"reach": 3, "push": 1}
    assert tally.counts("split") == {"train": 3, "val": 1}
    assert tally.counts("question_type") == {"done": 3, "gripper_point": 1}


def test_summary_has_majorities_and_lengths(tally):
    _add(tally, "done", ["yes", "no", "no"])
    _add(tally, "gripper_point", ["<loc0001><loc0002>"])
    summary = tally.summary()
    assert summary["majority"]["done"] == {"answer": "no", "share": 0.667, "items": 3}
    assert "gripper_point" not in summary["majority"]  # only answers in words have a majority
    assert summary["characters"]["answer"]["max"] == 18


def test_a_majority_within_the_limit_is_balanced(tally):
    _add(tally, "gripper_height", ["above"] * 120 + ["below"] * 80)
    assert tally.unbalanced() == []


def test_a_majority_above_the_limit_is_reported(tally):
    _add(tally, "gripper_height", ["above"] * 122 + ["below"] * 78)
    question_type, kind = tally.unbalanced()
    assert question_type == "gripper_height: 61% of 200 answers are 'above' (limit 60%)"
    assert kind.startswith("spatial_understanding: 61%")


def test_small_groups_are_exempt_from_the_balance(tally):
    _add(tally, "gripper_height", ["above"] * 199)
    assert tally.unbalanced() == []


def test_answers_that_the_instruction_determines_are_exempt_from_the_balance(tally):
    _add(tally, "decompose", ["a; b"] * 200)
    _add(tally, "done", ["yes", "no"] * 200)
    assert tally.unbalanced() == []


def test_blind_accuracy_by_question_type_and_task(tally):
    _add(tally, "gripper_height", ["above"] * 3 + ["below"])
    _add(tally, "gripper_height", ["below"] * 4, task="push")
    blind = tally.blind_accuracy()
    assert blind["gripper_height"] == {"share": 0.625, "items": 8, "questions": 1}
    assert blind["gripper_height in reach"]["share"] == 0.75
    assert blind["gripper_height in push"]["share"] == 1
    assert tally.majorities()["gripper_height"]["share"] == 0.625


def test_blind_answers_of_the_train_split_are_scored_on_the_other_split(tally):
    _add(tally, "gripper_height", ["above"] * 3 + ["below"])
    _add(tally, "gripper_height", ["below", "above", "below"], split="val")
    _add(tally, "gripper_height", ["above"], split="val", question="is it higher?")
    expected = {"share": 0.5, "items": 4, "questions": 2}
    assert tally.blind_accuracy()["gripper_height"] == expected


def test_kinds_by_task_include_zeros(tally):
    _add(tally, "done", ["yes", "no"])
    _add(tally, "gripper_height", ["below"], task="push")
    assert tally.kinds_by_task() == {
        "reach": {"task_planning": 2, "spatial_understanding": 0},
        "push": {"task_planning": 0, "spatial_understanding": 1},
    }
