"""The verification accepts true items and rejects corrupted answers, questions, times and facts."""

import functools
from dataclasses import replace

import numpy as np
import pytest

from etcvla.etc import make_items
from etcvla.etc.items import format_loc, parse_loc
from etcvla.etc.question_types import BOX, PATH, POINT, QUESTION_TYPES, WORDS
from etcvla.etc.verify import TRUTHS, check
from tests.etc.synthetic_annotation import make_annotation

ANNOTATION = make_annotation()
every_question_type = pytest.mark.parametrize("question_type", QUESTION_TYPES)
OPPOSITES = [
    ("left", "right"),
    ("above", "below"),
    ("nearer", "farther"),
    ("yes", "no"),
    ("front", "behind"),
    ("success", "failure"),
]
# A fact without which an item of the question type cannot be verified.
FACTS = {
    "gripper_side": "gripper_pixel",
    "gripper_height": "position",
    "gripper_depth": "camera_matrix",
    "gripper_point": "gripper_pixel",
    "object_side": "box",
    "identify": "box",
    "locate_box": "box",
    "describe": "box",
    "grasp_point": "grasp_pixel",
    "stable_grasp": "grasp_pixel",
    "current": "phase",
    "next": "phase",
    "path_subtask": "gripper_pixel",
    "path_task": "gripper_pixel",
    "gripper_robot_side": "position",
    "object_robot_front": "position",
    "object_height": "position",
    "cross_seen": "box",
    "cross_place": "box",
    "cross_box": "box",
    "describe_shape": "box",
    "place_point": "position",
    "stable_place": "position",
}


@functools.cache
def examples(question_type):
    """Return (t, item) for all items of a question type in the items of four seeds."""
    result = []
    for seed in range(4):
        steps, _ = make_items(ANNOTATION, seed)
        for t, items in enumerate(steps):
            for item in items:
                if item.question_type == question_type:
                    result.append((t, item))
    return result


def wrong_answers(item):
    """Return plausible but wrong answers to an item."""
    answer_type = QUESTION_TYPES[item.question_type].answer_type
    return _wrong_words(item) if answer_type == WORDS else _wrong_coordinates(item, answer_type)


def _wrong_words(item):
    for first, second in OPPOSITES:
        if item.answer in (first, second):
            return [second if item.answer == first else first, "maybe"]
    steps = item.answer.split("; ")
    answers = {other.answer for _, other in examples(item.question_type)}
    answers |= {"; ".join(reversed(steps)), item.answer + " now", ""}
    return answers - {item.answer}


def _wrong_coordinates(item, answer_type):
    points = parse_loc(item.answer, 2)
    moved = points + np.where(points > 0.5, -0.1, 0.1)
    answers = [item.answer[:-9], item.answer[:-1], item.answer + "<loc0001>", "there", ""]
    wrong = [moved]
    if np.ptp(points, axis=1).max() > 0.05:
        wrong.append(points[:, ::-1])  # x before y
    if answer_type == PATH:
        start = points[:1]
        detour = start + 0.2 * np.sign(0.5 - start) * [[1, -1]]
        wrong += [
            np.concatenate([points[:-1], moved[-1:]]),
            points[::-1],
            np.concatenate([start, detour, points[-1:]]),
            points[[0] * 3 + [-1] * 3],
        ]
    return answers + [format_loc(path.ravel()) for path in wrong]


@every_question_type
def test_true_items_pass(question_type):
    assert examples(question_type)
    for t, item in examples(question_type):
        assert check(item, ANNOTATION, t) is None


@every_question_type
def test_wrong_answers_fail(question_type):
    for t, item in examples(question_type):
        for answer in wrong_answers(item):
            assert check(replace(item, answer=answer), ANNOTATION, t), (t, item, answer)


@every_question_type
def test_corrupted_questions_fail(question_type):
    t, item = examples(question_type)[0]
    for question in ("", item.question + " please", item.question[1:]):
        corrupted = replace(item, question=question)
        assert check(corrupted, ANNOTATION, t) == "question cannot be read"
    other_kind = replace(item, kind="other")
    assert check(other_kind, ANNOTATION, t) == "question type of another kind"
    other_type = replace(item, question_type="other")
    assert check(other_type, ANNOTATION, t) == "unknown question_type"


@every_question_type
def test_items_of_another_instruction_fail(question_type):
    t, item = examples(question_type)[0]
    if item.grade == "scene_grounding":
        assert "put the cup" not in item.question
    else:
        other = replace(ANNOTATION, instruction="wash the cup")
        assert check(item, other, t) == "another instruction"


@pytest.mark.parametrize(("question_type", "field"), FACTS.items())
def test_items_about_unknown_facts_fail(question_type, field):
    unknown = np.full_like(getattr(ANNOTATION, field), -1 if field == "phase" else np.nan)
    annotation = replace(ANNOTATION, **{field: unknown})
    for t, item in examples(question_type):
        assert check(item, annotation, t), item


@pytest.mark.parametrize("noun", ["sugar jar", "unicorn"])
@pytest.mark.parametrize("question_type", ["locate_box", "describe", "grasp_point"])
def test_items_with_another_object_in_the_question_fail(question_type, noun):
    for t, item in examples(question_type):
        if item.question.endswith(("cup.", "cup?")):
            question = item.question.removesuffix("cup.").removesuffix("cup?")
            question += noun + item.question[-1]
            assert check(replace(item, question=question), ANNOTATION, t)
            return
    pytest.fail("no question about the cup")


def test_items_of_another_step_fail():
    items = [*examples("gripper_point"), *examples("path_task")]
    moving = [(t, item) for t, item in items if t < 20]
    assert moving
    for t, item in moving:
        assert check(item, ANNOTATION, t + 3)


def test_a_path_of_another_subtask_fails():
    t, item = examples("path_subtask")[0]
    question = item.question.replace("move to the cup", "grasp the cup")
    assert check(replace(item, question=question), ANNOTATION, t) == "another subtask"


def test_an_outcome_is_success_or_failure():
    for t, item in examples("outcome"):
        for answer in ("yes", "no"):
            assert check(replace(item, answer=answer), ANNOTATION, t) == "wrong answer"


def test_boxes_may_differ_by_their_rounding_only():
    t, item = examples("locate_box")[0]
    box = parse_loc(item.answer, 4)[0]
    rounded = format_loc(box + 0.4 / 1024)
    assert check(replace(item, answer=rounded), ANNOTATION, t) is None
    height, width = box[2:] - box[:2]
    shifted = format_loc(box + 0.1 * np.array([height, width, height, width]))
    assert check(replace(item, answer=shifted), ANNOTATION, t) == "wrong box"


def test_every_question_type_is_verified():
    assert TRUTHS.keys() == QUESTION_TYPES.keys()
    answer_types = {spec.answer_type for spec in QUESTION_TYPES.values()}
    assert answer_types == {WORDS, POINT, BOX, PATH}
