"""Shapes: the picture shows what the scene says, every item follows from the scene, and wrong items are caught."""

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


@pytest.fixture(scope="module")
def corpus() -> list[tuple[ShapesScene, list[Item]]]:
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(1500)]
    return [(scene, make_items(scene, rng)) for scene in scenes]


@pytest.fixture(scope="module")
def answers(corpus) -> dict[str, Counter]:
    counts = defaultdict(Counter)
    for _, items in corpus:
        for item in items:
            counts[item.question_type][item.answer] += 1
    return counts


def _plain(*things: ShapesObject) -> ShapesScene:
    return ShapesScene(things, (128, 128, 128))


LEFT_RED, RIGHT_RED, BLUE = (
    ShapesObject("circle", "red", "large", (0.1, 0.1, 0.4, 0.4)),
    ShapesObject("circle", "red", "small", (0.1, 0.7, 0.3, 0.9)),
    ShapesObject("square", "blue", "large", (0.6, 0.1, 0.9, 0.4)),
)
THREE = _plain(LEFT_RED, RIGHT_RED, BLUE)


def _pixels(image: np.ndarray, scene: ShapesScene, thing: ShapesObject) -> np.ndarray:
    """bool[H, W]: pixels nearer to the thing's colour than to the background."""
    to_thing = np.linalg.norm(image - np.array(COLORS[thing.color], float), axis=-1)
    return to_thing < np.linalg.norm(image - np.array(scene.background, float), axis=-1)


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_fills_its_box_and_nothing_outside(name):
    size = 128
    for seed in range(8):
        rng = np.random.default_rng(seed)
        thing = shapes._place(rng, [], name, "white", "large")
        scene = ShapesScene((thing,), (60, 60, 60))
        rows, columns = np.nonzero(_pixels(shapes.render(scene, rng, size), scene, thing))
        drawn = np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]) / size
        np.testing.assert_allclose(drawn, thing.box, atol=1.6 / size)


def test_a_text_fills_its_box():
    rng = np.random.default_rng(3)
    for text in ("A", "7K", "WQJ"):
        thing = shapes._place(rng, [], TEXT, "white", "small", text)
        scene = ShapesScene((thing,), (60, 60, 60))
        rows, columns = np.nonzero(_pixels(shapes.render(scene, rng, 192), scene, thing))
        drawn = np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]) / 192
        np.testing.assert_allclose(drawn, thing.box, atol=2.5 / 192)


@pytest.mark.parametrize(
    ("name", "share"),
    [("circle", np.pi / 4), ("ring", np.pi / 4 * 0.75), ("square", None), ("diamond", 0.5)],
)
def test_a_shape_has_its_area(name, share):
    box = (0.2, 0.2, 0.8, 0.2 + 0.6 * (0.62 if name == "diamond" else 1))
    thing = ShapesObject(name, "white", "large", box)
    scene = ShapesScene((thing,), (60, 60, 60))
    inside = _pixels(shapes.render(scene, np.random.default_rng(0), 200), scene, thing).mean()
    area = (box[2] - box[0]) * (box[3] - box[1])
    assert inside / area == pytest.approx(share or 1.0, abs=0.03)


def test_scenes_keep_things_apart_and_inside(corpus):
    for scene, _ in corpus:
        assert 1 <= len(scene.shapes) <= shapes.MAX_SHAPES
        boxes = np.array([thing.box for thing in scene.objects])
        assert (boxes >= 0).all()
        assert (boxes <= 1).all()
        for i, box in enumerate(boxes):
            others = np.delete(boxes, i, axis=0)
            assert ((box[:2] > others[:, 2:]) | (box[2:] < others[:, :2])).any(1).all()


def test_the_same_seed_draws_the_same():
    first, second = (draw_scene(np.random.default_rng(5), 64) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1] == second[1]
    assert first[0].shape == (64, 64, 3)
    assert first[0].dtype == np.uint8
    assert draw_scene(np.random.default_rng(6), 64)[1] != first[1]


def test_every_item_follows_from_its_scene(corpus):
    for scene, items in corpus:
        assert [error for item in items if (error := check(item, scene))] == []


def test_every_scene_has_five_to_eight_items_of_different_forms(corpus):
    for _, items in corpus:
        assert 5 <= len(items) <= 8
        assert len({item.question_type for item in items}) == len(items)
        assert all(item.grade == GENERAL and item.source == "oracle" for item in items)


def test_every_form_and_paraphrase_occurs(corpus):
    asked = defaultdict(set)
    for _, items in corpus:
        for item in items:
            question_type = SHAPES_QUESTIONS[item.question_type]
            assert item.kind == question_type.kind
            asked[item.question_type] |= {
                q for q in question_type.templates if shapes._pattern(q).fullmatch(item.question)
            }
    assert asked == {
        name: set(question_type.templates) for name, question_type in SHAPES_QUESTIONS.items()
    }


def test_scoring_knows_every_form_and_accepts_the_truth(corpus):
    for _, items in corpus[:200]:
        for item in items:
            assert answer_type(item.question_type)
            assert is_correct(item.question_type, item.answer, item.answer) == 1


def test_texts_are_lower_case(corpus):
    for _, items in corpus:
        for item in items:
            assert item.question == item.question.lower()
            assert item.answer == item.answer.lower()


def test_a_wrong_answer_is_caught(corpus):
    """An answer of the same form from another scene is wrong here unless this scene gives it too."""
    others = defaultdict(set)
    for _, items in corpus[:300]:
        for item in items:
            others[item.question_type].add(item.answer)
    tried = 0
    for scene, items in corpus[300:400]:
        for item in items:
            for answer in sorted(others[item.question_type] - {item.answer})[:5]:
                assert check(dataclasses.replace(item, answer=answer), scene), (item, answer)
                tried += 1
    assert tried > 1000


def test_a_shifted_box_is_caught(corpus):
    for scene, items in corpus[:100]:
        for item in items:
            if item.question_type == "locate_box":
                box = parse_loc(item.answer, 4)[0]
                assert check(dataclasses.replace(item, answer=format_loc(np.roll(box, 1))), scene)
                assert check(dataclasses.replace(item, answer=format_loc(box + 0.01)), scene)


@pytest.mark.parametrize(
    ("question_type", "question", "answer"),
    [
        (
            "locate_box",
            "locate the red circle.",
            "<loc0102><loc0102><loc0409><loc0409>",
        ),  # there are two
        (
            "locate_box",
            "locate the green circle.",
            "<loc0102><loc0102><loc0409><loc0409>",
        ),  # there is none
        (
            "relation_height",
            "is the large red circle above or below the small red circle?",
            "above",
        ),  # level
        (
            "relation_side",
            "is the circle to the left or to the right of the blue square?",
            "right",
        ),  # which?
        ("describe", "describe the circle.", "red circle, top left"),  # which?
        ("read_text", "read the text.", ""),  # no text
        (
            "identify",
            "which object is at <loc0000><loc0000><loc0100><loc0100>?",
            "red circle",
        ),  # nothing there
        ("count_all", "how many shapes are there, roughly?", "3"),  # not our words
        ("caption", "what is the blue shape?", "square"),  # another question_type's
        ("no_form", "what is in the image?", "square"),
    ],
)
def test_a_question_without_one_answer_is_caught(question_type, question, answer):
    kind = SHAPES_QUESTIONS[question_type].kind if question_type in SHAPES_QUESTIONS else "caption"
    assert check(Item(kind, question_type, question, answer), THREE)


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
    text = ShapesObject(TEXT, "white", "small", (0.7, 0.7, 0.8, 0.8), text="A7")
    scene = _plain(BLUE, LEFT_RED, RIGHT_RED, text)
    assert (
        check(Item(SHAPES_QUESTIONS[question_type].kind, question_type, question, answer), scene)
        is None
    )
    assert check(
        Item(SHAPES_QUESTIONS[question_type].kind, question_type, question, answer + "x"), scene
    )


def test_an_unknown_noun_is_an_error():
    with pytest.raises(ValueError, match="'red mug' names no shape"):
        THREE.find("red mug")


@pytest.mark.parametrize(
    "question_type", ["exist", "relation_holds", "relation_side", "relation_height"]
)
def test_two_way_answers_are_balanced(answers, question_type):
    assert len(answers[question_type]) == 2
    counts = list(answers[question_type].values())
    assert abs(counts[0] - counts[1]) < 4 * sum(counts) ** 0.5  # four standard deviations


@pytest.mark.parametrize("question_type", ["count_color", "count_shape", "count_all"])
def test_no_count_dominates(answers, question_type):
    assert max(answers[question_type].values()) / sum(answers[question_type].values()) < 0.45
    assert {"1", "2", "3", "4"} <= set(answers[question_type])


def test_absent_things_share_a_word_with_present_ones(corpus):
    """Else "is there an X?" could be answered from the colour or the shape alone."""
    absent = [
        (scene, item)
        for scene, items in corpus
        for item in items
        if item.question_type == "exist" and item.answer == "no"
    ]
    for scene, item in absent:
        color, name = SHAPES_QUESTIONS["exist"].parse(item.question)["a"].split()[1:]
        assert scene.find(f"{color} shape") or scene.find(name)


def test_items_survive_json(corpus):
    for item in corpus[0][1]:
        assert Item(**json.loads(json.dumps(dataclasses.asdict(item)))) == item
