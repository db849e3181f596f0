"""Pictures of the tabletop: their objects, their questions, and a small build."""

import dataclasses
from collections import Counter, defaultdict

import numpy as np
import pytest

from data_builders.tabletop_vqa import questions
from data_builders.tabletop_vqa.episodes import TableJob, get_table, make_picture
from data_builders.tabletop_vqa.questions import (
    TABLE_QUESTIONS,
    PicturedObject,
    PicturedScene,
    check,
    make_items,
)
from data_builders.tabletop_vqa.table import sample_pairs
from data_builders.tabletop_vqa.tabletop_vqa_dataset_builder import Builder, TableConfig
from etcvla.data.rlds import RLDSDataset
from etcvla.etc.items import GENERAL, Item, format_loc
from etcvla.etc.question_types import WORDS, answer_type
from etcvla.etc.score import is_correct
from etcvla.sims.tabletop.words import COLORS, NOUNS
from tests.data_builders.command import run_command

RED_CUBE = PicturedObject("cube", "red", (0.1, 0.1, 0.3, 0.3), distance=0.1)
BLUE_CUBE = PicturedObject("cube", "blue", (0.1, 0.6, 0.3, 0.8), distance=0.11)
RED_CROSS = PicturedObject("cross", "red", (0.6, 0.65, 0.8, 0.85), distance=-0.1)
SCENE = PicturedScene((RED_CUBE, BLUE_CUBE, RED_CROSS))


@pytest.fixture(scope="module")
def corpus():
    """150 scenes with their images and items."""
    corpus = []
    for index in range(150):
        rng = np.random.default_rng(index)
        image, scene = get_table(64).draw(rng)
        corpus.append((image, scene, make_items(scene, rng)))
    return corpus


@pytest.fixture(scope="module")
def scene_items(corpus):
    """All items of the corpus, each with its scene."""
    result = []
    for _, scene, items in corpus:
        result += [(scene, item) for item in items]
    return result


def test_all_words_are_shown(corpus):
    nouns = Counter()
    colors = Counter()
    for _, scene, _ in corpus:
        assert 3 <= len(scene.objects) <= 5
        assert len({obj.name for obj in scene.objects}) == len(scene.objects)
        nouns.update(obj.noun for obj in scene.objects)
        colors.update(obj.color for obj in scene.objects)
    assert set(nouns) == set(NOUNS)
    assert set(colors) == set(COLORS)


def test_every_pair_of_words_occurs():
    rng = np.random.default_rng(0)
    pairs = set()
    for _ in range(400):
        pairs.update(sample_pairs(rng))
    assert len(pairs) == len(NOUNS) * len(COLORS)


def test_boxes_contain_the_colors_of_their_objects(corpus):
    """The mean color inside a box differs from the table in the direction of the color."""
    channels = {"red": 0, "green": 1, "blue": 2}
    shares = defaultdict(list)
    for image, scene, _ in corpus:
        for obj in scene.objects:
            if obj.color in channels and obj.noun == "cube":
                low, high = (np.reshape(obj.box, (2, 2)) * len(image)).astype(int)
                mean = image[low[0] : high[0], low[1] : high[1]].mean((0, 1))
                shares[obj.color].append(mean[channels[obj.color]] / mean.sum())
    for color in channels:
        assert np.mean(shares[color]) > 0.4, color


def test_farther_objects_are_higher_in_the_image(corpus):
    for _, scene, _ in corpus:
        distances = [obj.distance for obj in scene.objects]
        bottoms = [obj.box[2] for obj in scene.objects]
        assert np.corrcoef(distances, bottoms)[0, 1] < -0.8


def test_items_follow_from_their_scene(scene_items):
    for scene, item in scene_items:
        assert check(item, scene) is None
        assert item.grade == GENERAL
        assert item.question == item.question.lower()
        assert (answer_type(item.question_type) == WORDS) == ("<loc" not in item.answer)
        assert is_correct(item, item.answer, item.answer)


def test_all_question_types_and_templates_are_used(scene_items):
    used = set()
    for _, item in scene_items:
        for pattern in TABLE_QUESTIONS[item.question_type].patterns:
            if pattern.fullmatch(item.question):
                used.add(pattern)
    expected = set()
    for question_type in TABLE_QUESTIONS.values():
        expected.update(question_type.patterns)
    assert used == expected


def test_pictures_have_many_items(corpus):
    counts = [len(items) for _, _, items in corpus]
    assert min(counts) >= 11
    assert np.mean(counts) > 14


def test_questions_do_not_give_answers_away(scene_items):
    answers = defaultdict(Counter)
    for _, item in scene_items:
        answers[item.question_type][item.answer] += 1
    for name in ("exist", "relation_side", "relation_holds"):
        assert max(answers[name].values()) < 0.75 * answers[name].total(), name
    assert max(answers["identify_point"].values()) < 0.1 * answers["identify_point"].total()


@pytest.mark.parametrize(
    ("name", "fields", "answer"),
    [
        ("identify_point", {"point": format_loc([0.2, 0.2])}, "red cube"),
        ("identify", {"box": format_loc(RED_CROSS.box)}, "red cross"),
        ("locate_point", {"a": "red cross"}, format_loc([0.7, 0.75])),
        ("locate_box", {"a": "red cube"}, format_loc(RED_CUBE.box)),
        ("color", {"noun": "cross"}, "red"),
        ("color_at", {"point": format_loc([0.2, 0.7])}, "blue"),
        ("shape", {"color": "blue"}, "cube"),
        ("shape_at", {"point": format_loc([0.7, 0.7])}, "cross"),
        ("count_color", {"color": "red"}, "2"),
        ("count_shape", {"plural": "crosses"}, "1"),
        ("count_shape", {"plural": "balls"}, "0"),
        ("count_all", {}, "3"),
        ("exist", {"a": "a blue cross"}, "no"),
        ("exist", {"a": "a red cross"}, "yes"),
        ("relation_side", {"a": "red cube", "b": "red cross"}, "left"),
        ("relation_front", {"a": "red cube", "b": "red cross"}, "behind"),
        ("relation_holds", {"a": "red cross", "b": "red cube", "relation": "in front of"}, "yes"),
        ("relation_holds", {"a": "red cross", "b": "red cube", "relation": "left of"}, "no"),
        ("outermost", {"relation": "left"}, "red cube"),
        ("caption", {}, "red cube, blue cube, red cross"),
        ("place", {"a": "red cross"}, "bottom right"),
    ],
)
def test_answers(name, fields, answer):
    assert TABLE_QUESTIONS[name].answer(SCENE, **fields) == answer


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("color", {"noun": "cube"}),  # two cubes
        ("shape", {"color": "red"}),  # two red objects
        ("identify_point", {"point": format_loc([0.5, 0.5])}),  # on the table
        ("identify", {"box": format_loc([0.1, 0.1, 0.8, 0.8])}),
        ("relation_side", {"a": "blue cube", "b": "red cross"}),  # nearly above each other
        ("relation_front", {"a": "blue cube", "b": "red cube"}),
        ("outermost", {"relation": "right"}),
        ("locate_box", {"a": "green cube"}),
    ],
)
def test_ambiguous_questions_have_no_answer(name, fields):
    with pytest.raises(ValueError, match=r"objects match|too close"):
        TABLE_QUESTIONS[name].answer(SCENE, **fields)


def test_wrong_items_are_rejected():
    item = Item("name", "identify_point", f"what is at {format_loc([0.2, 0.2])}", "red cube")
    assert check(item, SCENE) is None
    assert "the scene says" in check(dataclasses.replace(item, answer="red ball"), SCENE)
    assert "no question_type" in check(dataclasses.replace(item, kind="count"), SCENE)
    unknown = dataclasses.replace(item, question="what is at the left")
    assert "not a question" in check(unknown, SCENE)


def test_picture_depends_on_seed_split_and_index():
    def _pixels(split, index, seed):
        return make_picture(TableJob(split, index, seed, image_size=64)).image.tobytes()

    assert _pixels("train", 3, 0) == _pixels("train", 3, 0)
    different = {_pixels("train", 3, 0), _pixels("val", 3, 0), _pixels("train", 3, 1)}
    assert len(different) == 3


def test_wrong_item_stops_the_build(monkeypatch):
    monkeypatch.setattr(questions, "check", lambda item, scene: "wrong")
    with pytest.raises(RuntimeError, match="tabletop_vqa train 7: wrong"):
        make_picture(TableJob("train", 7, seed=0, image_size=64))


def test_default_config_is_registered():
    assert [TableConfig()] == Builder.BUILDER_CONFIGS
    assert TableConfig().name == "default"
    assert len(TableConfig().jobs("train")) == 16_000


def test_command_builds_a_dataset_that_the_reader_reads(tmp_path, capsys):
    run_command(
        "data_builders.tabletop_vqa",
        f"--out={tmp_path}",
        "--episodes=6",
        "--val_episodes=3",
        "--image_size=64",
        "--workers=1",
        f"--gallery={tmp_path}/page.html",
    )
    path = capsys.readouterr().out.strip()
    assert path == f"{tmp_path}/tabletop_vqa/6ep_3val_64px/1.0.0"
    for split, count in (("train", 6), ("val", 3)):
        dataset = RLDSDataset(path, split)
        assert len(dataset.lengths) == count
        index = int(dataset.metadata(0)["episode_id"][-7:])
        made = make_picture(TableJob(split, index, seed=0, image_size=64))
        frame = dataset.frame(0, ["observation/image", "etc/answer"])
        assert list(frame["etc/answer"]) == [item.answer for item in made.items]
        difference = frame["observation/image"].astype(float) - made.image
        assert np.abs(difference).mean() < 8
    assert (tmp_path / "page.html").read_text().count("<article>") == 6
