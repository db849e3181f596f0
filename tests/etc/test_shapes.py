"""Pictures match their scenes, all items follow from their scenes, and wrong items are rejected."""

import dataclasses
import json
from collections import Counter, defaultdict

import numpy as np
import pytest

from etcvla.etc import shapes
from etcvla.etc.items import GENERAL, Item, format_loc, parse_loc
from etcvla.etc.question_types import answer_type
from etcvla.etc.score import is_correct
from etcvla.etc.shapes import (
    COLORS,
    SHAPES,
    SHAPES_QUESTIONS,
    TEXT,
    ShapesObject,
    ShapesScene,
    check,
    draw_scene,
    make_items,
    sample_scene,
)

GRAY = (60, 60, 60)
LEFT_RED = ShapesObject("circle", "red", "large", (0.1, 0.1, 0.4, 0.4))
RIGHT_RED = ShapesObject("circle", "red", "small", (0.1, 0.7, 0.3, 0.9))
BLUE = ShapesObject("square", "blue", "large", (0.6, 0.1, 0.9, 0.4))
LABEL = ShapesObject(TEXT, "white", "small", (0.7, 0.7, 0.8, 0.8), text="A7")
THREE_SHAPES = ShapesScene((LEFT_RED, RIGHT_RED, BLUE), (128, 128, 128))
SHAPES_AND_TEXT = ShapesScene((BLUE, LEFT_RED, RIGHT_RED, LABEL), (128, 128, 128))


@pytest.fixture(scope="module")
def corpus() -> list[tuple[ShapesScene, list[Item]]]:
    """1500 scenes with their items."""
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(1500)]
    return [(scene, make_items(scene, rng)) for scene in scenes]


@pytest.fixture(scope="module")
def scene_items(corpus) -> list[tuple[ShapesScene, Item]]:
    """All items of the corpus, each with its scene."""
    result = []
    for scene, items in corpus:
        result += [(scene, item) for item in items]
    return result


@pytest.fixture(scope="module")
def answers(scene_items) -> dict[str, Counter]:
    """Counts of the answers of each question type."""
    counts = defaultdict(Counter)
    for _, item in scene_items:
        counts[item.question_type][item.answer] += 1
    return counts


def _kind(question_type):
    return SHAPES_QUESTIONS[question_type].kind


# --- drawing -------------------------------------------------------------------------------------


def _object_mask(image, scene, obj):
    """Return bool[H, W]: pixels nearer to the colour of the object than to the background."""
    to_object = np.linalg.norm(image - np.array(COLORS[obj.color], float), axis=-1)
    to_background = np.linalg.norm(image - np.array(scene.background, float), axis=-1)
    return to_object < to_background


def _drawn_box(obj, rng, size):
    """Draw a scene with one object and return the box of its pixels."""
    scene = ShapesScene((obj,), GRAY)
    mask = _object_mask(shapes.render(scene, rng, size), scene, obj)
    rows, columns = np.nonzero(mask)
    return np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]) / size


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_fills_its_box(name):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        obj = shapes._place(rng, [], name, "white", "large")
        np.testing.assert_allclose(_drawn_box(obj, rng, 128), obj.box, atol=1.6 / 128)


def test_a_text_fills_its_box():
    rng = np.random.default_rng(3)
    for text in ("A", "7K", "WQJ"):
        obj = shapes._place(rng, [], TEXT, "white", "small", text)
        np.testing.assert_allclose(_drawn_box(obj, rng, 192), obj.box, atol=2.5 / 192)


@pytest.mark.parametrize(
    ("name", "fraction"),
    [("circle", np.pi / 4), ("ring", np.pi / 4 * 0.75), ("square", 1.0), ("diamond", 0.5)],
)
def test_a_shape_has_its_area(name, fraction):
    height = 0.6
    width = 0.6 * (0.62 if name == "diamond" else 1)
    obj = ShapesObject(name, "white", "large", (0.2, 0.2, 0.2 + height, 0.2 + width))
    scene = ShapesScene((obj,), GRAY)
    image = shapes.render(scene, np.random.default_rng(0), 200)
    area = _object_mask(image, scene, obj).mean()
    assert area / (height * width) == pytest.approx(fraction, abs=0.03)


def test_objects_are_apart_and_inside_the_image(corpus):
    for scene, _ in corpus:
        assert 1 <= len(scene.shapes) <= shapes.MAX_SHAPES
        boxes = np.array([obj.box for obj in scene.objects])
        assert (boxes >= 0).all()
        assert (boxes <= 1).all()
        for i, box in enumerate(boxes):
            others = np.delete(boxes, i, axis=0)
            is_apart = (box[:2] > others[:, 2:]) | (box[2:] < others[:, :2])
            assert is_apart.any(1).all()


def test_the_seed_determines_picture_and_scene():
    image, scene = draw_scene(np.random.default_rng(5), 64)
    same_image, same_scene = draw_scene(np.random.default_rng(5), 64)
    np.testing.assert_array_equal(image, same_image)
    assert scene == same_scene
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    _, other_scene = draw_scene(np.random.default_rng(6), 64)
    assert other_scene != scene


# --- items ---------------------------------------------------------------------------------------


def test_items_follow_from_their_scene(scene_items):
    for scene, item in scene_items:
        assert check(item, scene) is None


def test_scenes_have_five_to_eight_items_of_different_question_types(corpus):
    for _, items in corpus:
        assert 5 <= len(items) <= 8
        assert len({item.question_type for item in items}) == len(items)
        assert all(item.grade == GENERAL and item.source == "oracle" for item in items)


def test_all_question_types_and_templates_are_used(scene_items):
    used = defaultdict(set)
    for _, item in scene_items:
        question_type = SHAPES_QUESTIONS[item.question_type]
        assert item.kind == question_type.kind
        for template, pattern in zip(question_type.templates, question_type.patterns, strict=True):
            if pattern.fullmatch(item.question):
                used[item.question_type].add(template)
    assert used == {name: set(spec.templates) for name, spec in SHAPES_QUESTIONS.items()}


def test_true_answers_are_scored_as_correct(scene_items):
    for _, item in scene_items[:1200]:
        assert answer_type(item.question_type)
        assert is_correct(item.question_type, item.answer, item.answer)


def test_texts_are_lower_case(scene_items):
    for _, item in scene_items:
        assert item.question == item.question.lower()
        assert item.answer == item.answer.lower()


def test_wrong_answers_are_rejected(scene_items, answers):
    for scene, item in scene_items[:600]:
        others = sorted(answers[item.question_type].keys() - {item.answer})
        for answer in others[:5]:
            assert check(dataclasses.replace(item, answer=answer), scene), (item, answer)


def test_shifted_boxes_are_rejected(scene_items):
    boxes = [(scene, item) for scene, item in scene_items if item.question_type == "locate_box"]
    assert boxes
    for scene, item in boxes[:100]:
        box = parse_loc(item.answer, 4)[0]
        for shifted in (np.roll(box, 1), box + 0.01):
            assert check(dataclasses.replace(item, answer=format_loc(shifted)), scene)


@pytest.mark.parametrize(
    ("question_type", "question", "answer", "problem"),
    [
        (
            "locate_box",
            "locate the red circle.",
            "<loc0102><loc0102><loc0409><loc0409>",
            "matches 2 objects",
        ),
        (
            "locate_box",
            "locate the green circle.",
            "<loc0102><loc0102><loc0409><loc0409>",
            "matches 0 objects",
        ),
        (
            "relation_height",
            "is the large red circle above or below the small red circle?",
            "above",
            "too close",
        ),
        (
            "relation_side",
            "is the circle to the left or to the right of the blue square?",
            "right",
            "matches 2 objects",
        ),
        ("describe", "describe the circle.", "red circle, top left", "matches 2 objects"),
        ("read_text", "read the text.", "", "no text"),
        (
            "identify",
            "which object is at <loc0000><loc0000><loc0100><loc0100>?",
            "red circle",
            "0 shapes in the box",
        ),
        ("count_all", "how many shapes are there, roughly?", "3", "not a question"),
        ("caption", "what is the blue shape?", "square", "not a question"),
    ],
)
def test_questions_without_a_unique_answer_are_rejected(question_type, question, answer, problem):
    item = Item(_kind(question_type), question_type, question, answer)
    assert problem in check(item, THREE_SHAPES)


def test_unknown_question_types_are_rejected():
    item = Item("caption", "other", "what is in the image?", "square")
    assert check(item, THREE_SHAPES) == "no question_type 'other' of kind 'caption'"


@pytest.mark.parametrize(
    ("question_type", "question", "answer"),
    [
        ("caption", "what is in the image?", "red circle, blue square, red circle"),
        ("describe", "describe the square.", "blue square, bottom left"),
        ("color", "what color is the square?", "blue"),
        ("shape", "what is the blue shape?", "square"),
        ("locate_box", "detect the small red circle.", "<loc0102><loc0716><loc0307><loc0921>"),
        ("locate_point", "point to the blue square.", "<loc0768><loc0256>"),
        ("identify", "what is in the box <loc0614><loc0102><loc0921><loc0409>?", "blue square"),
        ("count_color", "count the red shapes.", "2"),
        ("count_shape", "how many stars are there?", "0"),
        ("count_all", "count the shapes.", "3"),
        ("exist", "do you see a red square?", "no"),
        ("exist", "is a red circle in the image?", "yes"),
        (
            "relation_side",
            "is the small red circle to the left or to the right of the blue square?",
            "right",
        ),
        ("relation_height", "is the blue square above or below the large red circle?", "below"),
        ("relation_holds", "is the large red circle to the left of the small red circle?", "yes"),
        ("relation_holds", "is the blue square above the large red circle?", "no"),
        ("read_text", "what does the text say?", "a7"),
    ],
)
def test_answers_of_a_known_scene(question_type, question, answer):
    item = Item(_kind(question_type), question_type, question, answer)
    assert check(item, SHAPES_AND_TEXT) is None
    assert check(dataclasses.replace(item, answer=answer + "x"), SHAPES_AND_TEXT)


def test_unknown_nouns_are_an_error():
    with pytest.raises(ValueError, match="'red mug' names no shape"):
        THREE_SHAPES.find("red mug")


# --- balance -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "question_type", ["exist", "relation_holds", "relation_side", "relation_height"]
)
def test_two_way_answers_are_balanced(answers, question_type):
    first, second = answers[question_type].values()
    assert abs(first - second) < 4 * (first + second) ** 0.5  # four standard deviations


@pytest.mark.parametrize("question_type", ["count_color", "count_shape", "count_all"])
def test_no_count_dominates(answers, question_type):
    counts = answers[question_type]
    assert max(counts.values()) / counts.total() < 0.45
    assert {"1", "2", "3", "4"} <= set(counts)


def test_absent_objects_share_a_word_with_present_ones(scene_items):
    """Otherwise the colour or the shape alone would reveal the answer to "is there an X?"."""
    for scene, item in scene_items:
        if item.question_type == "exist" and item.answer == "no":
            phrase = SHAPES_QUESTIONS["exist"].parse(item.question)["a"]
            _, color, name = phrase.split()
            assert scene.find(f"{color} shape") or scene.find(name)


def test_items_survive_a_round_trip_through_json(scene_items):
    for _, item in scene_items[:8]:
        assert Item(**json.loads(json.dumps(dataclasses.asdict(item)))) == item
