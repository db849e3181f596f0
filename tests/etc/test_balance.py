"""Counting items, and telling how far their answers can be guessed."""

from etcvla.etc.balance import Tally
from etcvla.etc.items import Item


def _items(question_type, kind, answers, question="is the gripper above or below the mug?"):
    return [Item(kind, question_type, question, answer) for answer in answers]


def _tally(*groups):
    tally = Tally()
    for question_type, kind, answers in groups:
        tally.add(_items(question_type, kind, answers), task="reach", split="train")
    return tally


def test_items_are_counted_by_every_key():
    tally = _tally(
        ("done", "task_planning", ["yes", "no"]),
        ("gripper_point", "spatial_understanding", ["<loc0001><loc0002>"]),
    )
    tally.add(_items("done", "task_planning", ["no"]), task="push", split="val")
    assert tally.counts("grade") == {"task_oriented": 3, "scene_grounding": 1}
    assert tally.counts("task") == {"reach": 3, "push": 1}
    assert tally.counts("split") == {"train": 3, "val": 1}
    assert tally.counts("question_type") == {"done": 3, "gripper_point": 1}
    summary = tally.summary()
    assert summary["majority"]["done"] == {"answer": "no", "share": 0.667, "items": 3}
    assert "gripper_point" not in summary["majority"]  # coordinates have no majority
    assert summary["characters"]["answer"]["max"] == 18


def test_a_favourite_answer_breaks_the_rule():
    assert (
        _tally(
            ("gripper_height", "spatial_understanding", ["above"] * 120 + ["below"] * 80)
        ).unbalanced()
        == []
    )
    problems = _tally(
        ("gripper_height", "spatial_understanding", ["above"] * 122 + ["below"] * 78)
    ).unbalanced()
    assert problems[0].startswith("gripper_height: 61% of 200 answers are 'above' (limit 60%)")
    assert len(problems) == 2  # the kind as well


def test_small_groups_and_told_answers_are_exempt():
    assert _tally(("gripper_height", "spatial_understanding", ["above"] * 199)).unbalanced() == []
    plan = _tally(
        ("decompose", "task_planning", ["a; b"] * 200),
        ("done", "task_planning", ["yes", "no"] * 200),
    )
    assert plan.unbalanced() == []


def test_blind_guessing_is_measured_by_task_and_question():
    tally = _tally(("gripper_height", "spatial_understanding", ["above"] * 3 + ["below"]))
    tally.add(
        _items("gripper_height", "spatial_understanding", ["below"] * 4), task="push", split="train"
    )
    blind = tally.blind_accuracy()
    assert blind["gripper_height"] == {
        "share": 0.625,
        "items": 8,
        "questions": 1,
    }  # whatever the task
    assert blind["gripper_height in reach"]["share"] == 0.75
    assert blind["gripper_height in push"]["share"] == 1
    assert tally.majorities()["gripper_height"]["share"] == 0.625


def test_what_is_learnt_blindly_is_tried_on_the_other_split():
    tally = _tally(("gripper_height", "spatial_understanding", ["above"] * 3 + ["below"]))
    tally.add(
        _items("gripper_height", "spatial_understanding", ["below", "above", "below"]),
        task="reach",
        split="val",
    )
    tally.add(
        _items("gripper_height", "spatial_understanding", ["above"], "is it higher?"),
        task="reach",
        split="val",
    )
    assert tally.blind_accuracy()["gripper_height"] == {"share": 0.5, "items": 4, "questions": 2}


def test_a_kind_that_a_task_lacks_is_shown():
    tally = _tally(("done", "task_planning", ["yes", "no"]))
    tally.add(
        _items("gripper_height", "spatial_understanding", ["below"]), task="push", split="train"
    )
    assert tally.kinds_by_task() == {
        "reach": {"task_planning": 2, "spatial_understanding": 0},
        "push": {"task_planning": 0, "spatial_understanding": 1},
    }
