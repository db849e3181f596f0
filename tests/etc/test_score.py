"""Scores by answer type, and what blind guessing gets."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from etcvla.etc import make_items, shapes
from etcvla.etc.geometry import iou, path_distance, resample
from etcvla.etc.items import NUM_LOC, Item, format_loc, parse_loc
from etcvla.etc.question_types import (
    GENERAL_QUESTION_TYPES,
    QUESTION_TYPES,
    WORDS,
    answer_type,
    clean_instruction,
    format_question,
    parse_question,
)
from etcvla.etc.score import (
    blind_accuracy,
    is_correct,
    majority_answers,
    parse_answer,
    score_answer,
)
from tests.etc.synthetic_annotation import make_annotation

unit = st.floats(0, 1, exclude_max=True, allow_subnormal=False)  # slopes over those overflow


def item(question_type, answer, question="?"):
    return Item(QUESTION_TYPES[question_type].kind, question_type, question, answer)


# --- locations and questions, there and back -----------------------------------------------------------------------


@given(st.lists(st.tuples(unit, unit), min_size=1, max_size=5))
def test_locations_round_trip(points):
    text = format_loc(np.ravel(points))
    assert np.abs(parse_loc(text, 2) - points).max() <= 0.5 / NUM_LOC + 1e-7
    assert format_loc(parse_loc(text, 2).ravel()) == text


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=2))
def test_locations_off_the_image_are_clipped_to_its_border(point):
    assert np.abs(parse_loc(format_loc(point), 2)[0] - np.clip(point, 0, 1)).max() <= 1 / NUM_LOC


def test_what_is_no_location():
    with pytest.raises(ValueError, match="finite"):
        format_loc([0.5, math.nan])
    for text in (
        "",
        "<loc0001>",
        "<loc0001><loc1024>",
        "<loc1><loc2>",
        "x<loc0001><loc0002>",
        "<loc0001><loc0002>.",
    ):
        assert parse_loc(text, 2) is None


@given(
    st.sampled_from(sorted(QUESTION_TYPES)),
    unit,
    st.sampled_from(["cup", "drawer handle", "sugar jar"]),
    st.sampled_from(["open the drawer", "push the puck to the goal", "close it, then stop"]),
)
def test_questions_round_trip(question_type, paraphrase, noun, instruction):
    box = format_loc([0.1, 0.2, 0.3, 0.4])
    target_positions = {
        "a": "gripper",
        "b": noun,
        "object": noun,
        "instruction": instruction,
        "phase": f"move to the {noun}",
        "box": box,
        "view": "wrist",
        "place": "top left",
        "objects": f"{noun}, mug, door",
    }
    found = parse_question(
        question_type, format_question(question_type, paraphrase, target_positions)
    )
    assert found == {name: target_positions[name] for name in found}
    assert len(QUESTION_TYPES[question_type].templates) >= 3


def test_instructions_stand_in_a_sentence():
    assert clean_instruction(" Open the drawer. ") == "open the drawer"


# --- scores --------------------------------------------------------------------------------------------------------


def test_words():
    assert is_correct("present", "yes", " Yes\n") == 1
    assert is_correct("describe", "red cup, top left", "red  cup, top left") == 1
    assert is_correct("describe", "red cup, top left", "red cup, top") == 0
    assert score_answer("present", "yes", "no") == {"correct": 0.0}


def test_box():
    truth = format_loc([0.2, 0.2, 0.6, 0.6])
    assert score_answer("locate_box", truth, truth) == {"correct": 1.0, "iou": 1.0}
    half = score_answer("locate_box", truth, format_loc([0.2, 0.2, 0.6, 0.45]))
    assert half["correct"] == 1 and half["iou"] == pytest.approx(0.25 / 0.4, abs=0.01)
    less = score_answer("locate_box", truth, format_loc([0.2, 0.2, 0.6, 0.38]))
    assert less["correct"] == 0 and less["iou"] == pytest.approx(0.18 / 0.4, abs=0.01)
    inverted = format_loc([0.6, 0.6, 0.2, 0.2])
    assert score_answer("locate_box", truth, inverted) == {"correct": 0.0, "iou": 0.0}


def test_point():
    truth = format_loc([0.5, 0.5])
    assert is_correct("gripper_point", truth, format_loc([0.55, 0.55])) == 1
    assert is_correct("gripper_point", truth, format_loc([0.56, 0.56])) == 0
    assert score_answer("grasp_point", truth, format_loc([0.5, 0.6]))["distance"] == pytest.approx(
        0.1, abs=1e-3
    )


def test_path_is_judged_by_its_course_not_by_its_keypoints():
    truth = format_loc([0.1, 0.1, 0.9, 0.5])
    finer = format_loc([0.1, 0.1, 0.3, 0.2, 0.5, 0.3, 0.9, 0.5])
    assert score_answer("path_task", truth, finer)["distance"] < 2e-3
    assert is_correct("path_task", truth, format_loc([0.9, 0.5, 0.1, 0.1])) == 0
    assert is_correct("path_task", truth, format_loc([0.5, 0.3])) == 0
    assert is_correct("path_subtask", truth, format_loc([0.15, 0.1, 0.95, 0.5])) == 1


def test_a_grasp_point_lies_on_what_it_names_or_not():
    truth, box = format_loc([0.5, 0.5]), np.array([0.4, 0.4, 0.6, 0.8], np.float32)
    assert [
        score_answer("grasp_point", truth, said, box)["inside"]
        for said in (truth, format_loc([0.5, 0.79]), format_loc([0.5, 0.9]), "nowhere")
    ] == [1, 1, 0, 0]
    assert "inside" not in score_answer("grasp_point", truth, truth) | score_answer(
        "place_point", truth, truth, box
    )


@pytest.mark.parametrize(
    "question_type",
    [
        question_type
        for question_type in QUESTION_TYPES
        if QUESTION_TYPES[question_type].answer_type != WORDS
    ],
)
@pytest.mark.parametrize(
    "prediction", ["", "left", "<loc0001>", "<loc0001><loc0002><loc0003>", "<loc0001> <loc9999>"]
)
def test_unreadable_predictions_are_wrong_by_the_worst_measure(question_type, prediction):
    truth = format_loc(
        [0.1, 0.1, 0.2, 0.2] if QUESTION_TYPES[question_type].answer_type == "box" else [0.1, 0.1]
    )
    result = score_answer(question_type, truth, prediction)
    assert result["correct"] == 0 and result.get("iou", 0) == 0
    assert result.get("distance", math.sqrt(2)) == pytest.approx(math.sqrt(2))


def test_user_errors():
    with pytest.raises(ValueError, match="did you mean 'grasp_point'"):
        is_correct("grasp_points", "<loc0001><loc0001>", "")
    with pytest.raises(ValueError, match="true answer 'left' is not a box"):
        is_correct("locate_box", "left", "left")
    with pytest.raises(ValueError, match='"question_type" or "question"'):
        blind_accuracy([], [], by="kind")


def test_every_true_answer_scores_one():
    for step in make_items(make_annotation(), 0)[0]:
        assert all(is_correct(item, item.answer, item.answer) == 1 for item in step)


def test_general_forms_are_registered_with_how_they_are_read():
    assert set(shapes.SHAPES_QUESTIONS) | {"vqa", "trace"} == set(GENERAL_QUESTION_TYPES)
    rng = np.random.default_rng(0)
    for _ in range(40):
        for made in shapes.make_items(shapes.sample_scene(rng), rng):
            assert (answer_type(made.question_type) == WORDS) == ("<loc" not in made.answer)
            assert is_correct(made, made.answer, made.answer) == 1


# --- blind guessing ------------------------------------------------------------------------------------------------


def test_majority_answers_by_type():
    items = [item("present", answer) for answer in ("yes", "no", "no")]
    items += [
        item("gripper_point", format_loc(point)) for point in ([0.1, 0.9], [0.2, 0.5], [0.9, 0.1])
    ]
    items += [
        item("path_task", format_loc(path)) for path in ([0, 0, 0, 0.8], [0, 0, 0, 0.4, 0, 0.8])
    ]
    constant = majority_answers(items)
    assert constant["present"] == "no"
    assert constant["gripper_point"] == format_loc([0.2, 0.5])
    path = parse_answer("path", constant["path_task"])
    np.testing.assert_allclose(path[:, 1], [0, 0.2, 0.4, 0.6, 0.8], atol=2e-3)


def test_baseline_by_form_and_by_question():
    train = [
        item("present", "no", "cup?"),
        item("present", "no", "cup?"),
        item("present", "yes", "jar?"),
    ]
    test = [
        item("present", "no", "cup?"),
        item("present", "yes", "jar?"),
        item("present", "no", "new?"),
        item("gripper_point", format_loc([0.5, 0.5])),
    ]
    assert blind_accuracy(train, test) == {
        "goal_description": pytest.approx(2 / 3),
        "spatial_understanding": 0.0,
    }
    assert blind_accuracy(train, test, by="question")["goal_description"] == 1.0


# --- geometry ------------------------------------------------------------------------------------------------------

paths = arrays(np.float64, st.tuples(st.integers(1, 6), st.just(2)), elements=unit)


@given(paths, paths)
def test_path_distance_is_a_distance(a, b):
    assert path_distance(a, a) == 0
    assert path_distance(a, b) == pytest.approx(path_distance(b, a))
    assert path_distance(a, b) <= math.sqrt(2) + 1e-9
    np.testing.assert_allclose(path_distance(a, a + [0.3, 0.4]), 0.5, atol=1e-6)


@given(paths)
def test_resampling_keeps_the_ends(path):
    found = resample(path, 7)
    assert found.shape == (7, 2)
    np.testing.assert_allclose(found[[0, -1]], path[[0, -1]], atol=1e-9)


def test_resampling_is_even_along_the_arc():
    corner = np.array([[0, 0], [0, 0.3], [0.1, 0.3]])
    np.testing.assert_allclose(
        resample(corner, 5), [[0, 0], [0, 0.1], [0, 0.2], [0, 0.3], [0.1, 0.3]], atol=1e-12
    )


def test_iou():
    a = np.array([[0, 0, 2, 2], [0, 0, 1, 1], [0, 0, 1, 1]], float)
    b = np.array([[1, 1, 3, 3], [0, 0, 1, 1], [2, 2, 3, 3]], float)
    np.testing.assert_allclose(iou(a, b), [1 / 7, 1, 0])


def test_a_plan_is_as_good_as_what_stands_in_order():
    plan = "move to the mug; grasp the mug; lift the mug"
    assert score_answer("decompose", plan, plan) == {"correct": 1.0, "order": 1.0}
    assert score_answer("decompose", plan, "Grasp the mug ; lift the mug")[
        "order"
    ] == pytest.approx(0.8)
    assert score_answer("decompose", plan, "lift the mug; grasp the mug; move to the mug")[
        "order"
    ] == pytest.approx(1 / 3)
    assert score_answer("decompose", plan, "")["order"] == 0
