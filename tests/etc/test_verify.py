"""The check accepts what is true and catches a corrupted answer, question, time or fact of every question_type."""

import dataclasses
import functools

import numpy as np
import pytest

from etcvla.etc import make_items
from etcvla.etc.items import format_loc, parse_loc
from etcvla.etc.question_types import BOX, PATH, POINT, QUESTION_TYPES, WORDS
from etcvla.etc.verify import check
from tests.etc.synthetic_annotation import make_annotation

ANNOTATION = make_annotation()
EVERY_FORM = pytest.mark.parametrize("question_type", QUESTION_TYPES)
OPPOSITE = {
    "left": "right",
    "right": "left",
    "above": "below",
    "below": "above",
    "nearer": "farther",
    "farther": "nearer",
    "yes": "no",
    "no": "yes",
    "front": "behind",
    "behind": "front",
    "success": "failure",
    "failure": "success",
}
# What each question_type's truth rests on: without it nothing can be confirmed.
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
    """[(t, item)]: every item of a question_type in four drawings of the episode."""
    return [
        (t, item)
        for seed in range(4)
        for t, step in enumerate(make_items(ANNOTATION, seed)[0])
        for item in step
        if item.question_type == question_type
    ]


def wrong_answers(item):
    """Answers that look right and are not."""
    kind = QUESTION_TYPES[item.question_type].answer_type
    if kind == WORDS:
        if item.answer in OPPOSITE:
            return [OPPOSITE[item.answer], "maybe"]
        others = {other.answer for _, other in examples(item.question_type)} - {item.answer}
        return [
            *others,
            *({"; ".join(reversed(item.answer.split("; ")))} - {item.answer}),
            item.answer + " now",
            "",
        ]
    found = parse_loc(item.answer, 2)
    moved = found + np.where(found > 0.5, -0.1, 0.1)
    answers = [
        format_loc(moved.ravel()),
        item.answer[:-9],
        item.answer[:-1],
        item.answer + "<loc0001>",
        "there",
        "",
    ]
    if np.ptp(found, axis=1).max() > 0.05:
        answers.append(format_loc(found[:, ::-1].ravel()))  # x before y
    if kind == PATH:
        end = found.copy()
        end[-1] = moved[-1]
        detour = np.concatenate(
            [found[:1], found[:1] + 0.2 * np.sign(0.5 - found[:1]) * [[1, -1]], found[-1:]]
        )
        answers += [
            format_loc(end.ravel()),
            format_loc(found[::-1].ravel()),
            format_loc(detour.ravel()),
            format_loc(found[[0] * 3 + [-1] * 3].ravel()),
        ]
    return answers


@EVERY_FORM
def test_true_items_pass(question_type):
    assert examples(question_type)
    assert [check(item, ANNOTATION, t) for t, item in examples(question_type)] == [None] * len(
        examples(question_type)
    )


@EVERY_FORM
def test_corrupted_answers_fail(question_type):
    for t, item in examples(question_type):
        for answer in wrong_answers(item):
            assert check(dataclasses.replace(item, answer=answer), ANNOTATION, t), (t, item, answer)


@EVERY_FORM
def test_corrupted_questions_fail(question_type):
    t, item = examples(question_type)[0]
    for question in ("", item.question + " please", item.question[1:]):
        assert (
            check(dataclasses.replace(item, question=question), ANNOTATION, t)
            == "question cannot be read"
        )
    assert check(dataclasses.replace(item, kind="other"), ANNOTATION, t) == "question type of another kind"
    assert (
        check(dataclasses.replace(item, question_type="other"), ANNOTATION, t)
        == "unknown question_type"
    )
    if item.grade != "scene_grounding":
        other = dataclasses.replace(ANNOTATION, instruction="wash the cup")
        assert check(item, other, t) == "another instruction"


@pytest.mark.parametrize("question_type", FACTS)
def test_unknown_facts_confirm_nothing(question_type):
    name = FACTS[question_type]
    nothing = np.full_like(getattr(ANNOTATION, name), -1 if name == "phase" else np.nan)
    blind = dataclasses.replace(ANNOTATION, **{name: nothing})
    for t, item in examples(question_type):
        assert check(item, blind, t), item


def test_another_object_in_the_question_fails():
    for question_type in ("locate_box", "describe", "grasp_point"):
        t, item = next(
            (t, item)
            for t, item in examples(question_type)
            if "cup." in item.question or "cup?" in item.question
        )
        for noun in ("sugar jar", "unicorn"):
            head, tail = item.question.rsplit("cup", 1)
            assert check(dataclasses.replace(item, question=head + noun + tail), ANNOTATION, t), (
                question_type,
                noun,
            )


def test_items_of_another_time_fail():
    moving = [
        (t, item)
        for question_type in ("gripper_point", "path_task")
        for t, item in examples(question_type)
        if t < 20
    ]
    assert moving
    assert all(check(item, ANNOTATION, t + 3) for t, item in moving)


def test_path_of_another_subtask_fails():
    t, item = examples("path_subtask")[0]
    question = item.question.replace("move to the cup", "grasp the cup")
    assert check(dataclasses.replace(item, question=question), ANNOTATION, t) == "another subtask"


def test_box_tolerance_is_rounding_not_more():
    t, item = examples("locate_box")[0]
    box = parse_loc(item.answer, 4)[0]
    half_bin = format_loc(box + 0.4 / 1024)
    assert check(dataclasses.replace(item, answer=half_bin), ANNOTATION, t) is None
    shifted = format_loc(box + 0.1 * (box[2:] - box[:2])[[0, 1, 0, 1]])
    assert check(dataclasses.replace(item, answer=shifted), ANNOTATION, t) == "wrong box"


def test_answer_types_cover_the_check():
    assert {spec.answer_type for spec in QUESTION_TYPES.values()} == {WORDS, POINT, BOX, PATH}
