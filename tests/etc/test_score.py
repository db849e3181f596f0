"""Scores by type of answer, and the accuracy of guessing without the image."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from etcvla.errors import UserError
from etcvla.etc import make_items, shapes
from etcvla.etc.geometry import iou, path_distance, resample
from etcvla.etc.items import NUM_LOC, Item, format_loc, parse_loc
from etcvla.etc.question_types import (
    BOX,
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

# Subnormal numbers are excluded because slopes over them overflow.
unit_interval = st.floats(0, 1, exclude_max=True, allow_subnormal=False)
COORDINATE_TYPES = [name for name in QUESTION_TYPES if QUESTION_TYPES[name].answer_type != WORDS]


def _item(question_type, answer, question="?"):
    return Item(QUESTION_TYPES[question_type].kind, question_type, question, answer)


# --- locations and questions ---------------------------------------------------------------------


@given(st.lists(st.tuples(unit_interval, unit_interval), min_size=1, max_size=5))
def test_locations_survive_a_round_trip(points):
    text = format_loc(np.ravel(points))
    parsed = parse_loc(text, 2)
    assert np.abs(parsed - points).max() <= 0.5 / NUM_LOC + 1e-7
    assert format_loc(parsed.ravel()) == text


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=2))
def test_locations_outside_the_image_are_clipped_to_its_border(point):
    parsed = parse_loc(format_loc(point), 2)[0]
    assert np.abs(parsed - np.clip(point, 0, 1)).max() <= 1 / NUM_LOC


def test_locations_must_be_finite():
    with pytest.raises(ValueError, match="finite"):
        format_loc([0.5, math.nan])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<loc0001>",
        "<loc0001><loc1024>",
        "<loc1><loc2>",
        "x<loc0001><loc0002>",
        "<loc0001><loc0002>.",
        "[1, 1024]",
        "[1]",
    ],
)
def test_malformed_locations_are_not_parsed(text):
    assert parse_loc(text, 2) is None


@given(
    st.sampled_from(sorted(QUESTION_TYPES)),
    unit_interval,
    st.sampled_from(["cup", "drawer handle", "sugar jar"]),
    st.sampled_from(["open the drawer", "push the puck to the goal", "close it, then stop"]),
)
def test_questions_survive_a_round_trip(question_type, paraphrase, noun, instruction):
    fields = {
        "a": "gripper",
        "b": noun,
        "object": noun,
        "instruction": instruction,
        "phase": f"move to the {noun}",
        "box": format_loc([0.1, 0.2, 0.3, 0.4]),
        "view": "wrist",
        "place": "top left",
        "objects": f"{noun}, mug, door",
    }
    question = format_question(question_type, paraphrase, fields)
    parsed = parse_question(question_type, question)
    assert parsed == {name: fields[name] for name in parsed}


@pytest.mark.parametrize("question_type", QUESTION_TYPES)
def test_question_types_have_at_least_three_templates(question_type):
    assert len(set(QUESTION_TYPES[question_type].templates)) >= 3


def test_instructions_are_cleaned_for_the_middle_of_a_sentence():
    assert clean_instruction(" Open the drawer. ") == "open the drawer"


# --- scores --------------------------------------------------------------------------------------


def test_words_must_be_equal_up_to_case_and_spaces():
    assert is_correct("present", "yes", " Yes\n")
    assert is_correct("describe", "red cup, top left", "red  cup, top left")
    assert not is_correct("describe", "red cup, top left", "red cup, top")
    assert score_answer("present", "yes", "no") == {"correct": 0.0}


@pytest.mark.parametrize(
    ("box", "correct", "overlap"),
    [
        ([0.2, 0.2, 0.6, 0.6], 1, 1.0),
        ([0.2, 0.2, 0.6, 0.45], 1, 0.25 / 0.4),
        ([0.2, 0.2, 0.6, 0.38], 0, 0.18 / 0.4),
        ([0.6, 0.6, 0.2, 0.2], 0, 0.0),
    ],
)
def test_a_box_is_correct_from_half_overlap_on(box, correct, overlap):
    scores = score_answer("locate_box", format_loc([0.2, 0.2, 0.6, 0.6]), format_loc(box))
    assert scores == {"correct": correct, "iou": pytest.approx(overlap, abs=0.01)}


def test_a_point_is_correct_within_a_distance():
    truth = format_loc([0.5, 0.5])
    assert is_correct("gripper_point", truth, format_loc([0.55, 0.55]))
    assert not is_correct("gripper_point", truth, format_loc([0.56, 0.56]))
    scores = score_answer("grasp_point", truth, format_loc([0.5, 0.6]))
    assert scores["distance"] == pytest.approx(0.1, abs=1e-3)


def test_paths_are_compared_by_their_course_and_not_by_their_keypoints():
    truth = format_loc([0.1, 0.1, 0.9, 0.5])
    finer = format_loc([0.1, 0.1, 0.3, 0.2, 0.5, 0.3, 0.9, 0.5])
    assert score_answer("path_task", truth, finer)["distance"] < 2e-3
    assert not is_correct("path_task", truth, format_loc([0.9, 0.5, 0.1, 0.1]))
    assert not is_correct("path_task", truth, format_loc([0.5, 0.3]))
    assert is_correct("path_subtask", truth, format_loc([0.15, 0.1, 0.95, 0.5]))


@pytest.mark.parametrize(
    ("prediction", "inside"),
    [
        (format_loc([0.5, 0.5]), 1),
        (format_loc([0.5, 0.79]), 1),
        (format_loc([0.5, 0.9]), 0),
        ("nowhere", 0),
    ],
)
def test_a_grasp_point_is_inside_the_box_of_its_object_or_not(prediction, inside):
    truth = format_loc([0.5, 0.5])
    box = np.array([0.4, 0.4, 0.6, 0.8], np.float32)
    assert score_answer("grasp_point", truth, prediction, box)["inside"] == inside
    assert "inside" not in score_answer("grasp_point", truth, prediction)
    assert "inside" not in score_answer("place_point", truth, prediction, box)


@pytest.mark.parametrize("question_type", COORDINATE_TYPES)
@pytest.mark.parametrize(
    "prediction", ["", "left", "<loc0001>", "<loc0001><loc0002><loc0003>", "<loc0001> <loc9999>"]
)
def test_unreadable_predictions_have_the_worst_scores(question_type, prediction):
    is_box = QUESTION_TYPES[question_type].answer_type == BOX
    truth = format_loc([0.1, 0.1, 0.2, 0.2] if is_box else [0.1, 0.1])
    scores = score_answer(question_type, truth, prediction)
    if is_box:
        assert scores == {"correct": 0, "iou": 0}
    else:
        assert scores == {"correct": 0, "distance": pytest.approx(math.sqrt(2))}


@pytest.mark.parametrize(
    ("prediction", "order"),
    [
        ("move to the mug; grasp the mug; lift the mug", 1.0),
        ("Grasp the mug ; lift the mug", 0.8),
        ("lift the mug; grasp the mug; move to the mug", 1 / 3),
        ("", 0.0),
    ],
)
def test_plans_are_scored_by_the_order_of_their_steps(prediction, order):
    plan = "move to the mug; grasp the mug; lift the mug"
    scores = score_answer("decompose", plan, prediction)
    assert scores == {"correct": float(order == 1), "order": pytest.approx(order)}


def test_errors_name_the_value():
    with pytest.raises(ValueError, match="did you mean 'grasp_point'"):
        score_answer("grasp_points", "<loc0001><loc0001>", "")
    with pytest.raises(ValueError, match="true answer 'left' is not a box"):
        score_answer("locate_box", "left", "left")
    with pytest.raises(UserError, match='"question_type" or "question"'):
        blind_accuracy([], [], by="kind")


def test_true_answers_are_correct():
    for items in make_items(make_annotation(), 0)[0]:
        assert all(is_correct(item, item.answer, item.answer) for item in items)


def test_general_question_types_are_registered_with_the_type_of_their_answer():
    assert set(shapes.SHAPES_QUESTIONS) < set(GENERAL_QUESTION_TYPES)
    rng = np.random.default_rng(0)
    for _ in range(40):
        for item in shapes.make_items(shapes.sample_scene(rng), rng):
            assert (answer_type(item.question_type) == WORDS) == ("<loc" not in item.answer)
            assert is_correct(item, item.answer, item.answer)


# --- guessing without the image ------------------------------------------------------------------


def test_majority_answers_by_type_of_answer():
    items = [_item("present", answer) for answer in ("yes", "no", "no")]
    for point in ([0.1, 0.9], [0.2, 0.5], [0.9, 0.1]):
        items.append(_item("gripper_point", format_loc(point)))
    for path in ([0, 0, 0, 0.8], [0, 0, 0, 0.4, 0, 0.8]):
        items.append(_item("path_task", format_loc(path)))
    answers = majority_answers(items)
    assert answers["present"] == "no"
    assert answers["gripper_point"] == format_loc([0.2, 0.5])
    path = parse_answer("path", answers["path_task"])
    np.testing.assert_allclose(path[:, 1], [0, 0.2, 0.4, 0.6, 0.8], atol=2e-3)


def test_blind_accuracy_by_question_type_and_by_question():
    train = [
        _item("present", "no", "cup?"),
        _item("present", "no", "cup?"),
        _item("present", "yes", "jar?"),
    ]
    test = [
        _item("present", "no", "cup?"),
        _item("present", "yes", "jar?"),
        _item("present", "no", "new?"),
        _item("gripper_point", format_loc([0.5, 0.5])),
    ]
    assert blind_accuracy(train, test) == {
        "goal_description": pytest.approx(2 / 3),
        "spatial_understanding": 0.0,
    }
    assert blind_accuracy(train, test, by="question")["goal_description"] == 1.0


# --- geometry ------------------------------------------------------------------------------------

paths = arrays(np.float64, st.tuples(st.integers(1, 6), st.just(2)), elements=unit_interval)


@given(paths, paths)
def test_path_distance_is_a_metric(a, b):
    assert path_distance(a, a) == 0
    assert path_distance(a, b) == pytest.approx(path_distance(b, a))
    assert path_distance(a, b) <= math.sqrt(2) + 1e-9
    np.testing.assert_allclose(path_distance(a, a + [0.3, 0.4]), 0.5, atol=1e-6)


@given(paths)
def test_resampling_keeps_the_ends(path):
    resampled = resample(path, 7)
    assert resampled.shape == (7, 2)
    np.testing.assert_allclose(resampled[[0, -1]], path[[0, -1]], atol=1e-9)


def test_resampling_is_even_along_the_arc():
    corner = np.array([[0, 0], [0, 0.3], [0.1, 0.3]])
    expected = [[0, 0], [0, 0.1], [0, 0.2], [0, 0.3], [0.1, 0.3]]
    np.testing.assert_allclose(resample(corner, 5), expected, atol=1e-12)


def test_iou():
    a = np.array([[0, 0, 2, 2], [0, 0, 1, 1], [0, 0, 1, 1]], float)
    b = np.array([[1, 1, 3, 3], [0, 0, 1, 1], [2, 2, 3, 3]], float)
    np.testing.assert_allclose(iou(a, b), [1 / 7, 1, 0])
