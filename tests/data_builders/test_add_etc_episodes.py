"""Annotation and items of one episode from state, calibration, detector and endpoint."""

import dataclasses

import numpy as np
import pytest

from data_builders.add_etc.adapter import match_adapter
from data_builders.add_etc.episodes import (
    EpisodeAnnotator,
    find_nouns,
    gripper_visible_share,
    set_source,
)
from data_builders.add_etc.options import AddEtcOptions
from etcvla.data.adapters import ADAPTERS, Adapter, AnnotationSources, find_adapter
from etcvla.data.rlds import RLDSDataset
from etcvla.errors import UserError
from etcvla.etc.annotators.cache import AnswerCache
from etcvla.etc.annotators.endpoint import Endpoint
from etcvla.etc.annotators.projection import Calibrations
from etcvla.etc.items import Item
from etcvla.etc.verify import check
from tests.data_builders.toy_robot import ENDPOINT_REPLY, STEPS, write_toy_robot
from tests.etc.fake_endpoint import FakeEndpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    write_toy_robot(folder)
    return folder


def make_annotator(folder, *, calibrated=True, **options):
    dataset = RLDSDataset(folder / "toy_robot", "train")
    adapter = match_adapter(find_adapter(str(folder / "adapter.json")), dataset)
    calibrations = Calibrations(folder / "cameras.json") if calibrated else None
    return EpisodeAnnotator(dataset, adapter, AddEtcOptions(**options), calibrations)


def sources_by_type(labelled):
    """Return question type -> source of its items."""
    sources = {}
    for items in labelled.items:
        sources |= {item.question_type: item.source for item in items}
    return sources


def test_paths_are_the_projected_gripper(folder):
    annotation = make_annotator(folder)(0).annotation
    # The camera looks straight down from (0.15, 0.2, 1.2): x to the right, y up in the image.
    expected = [0.5 + 30 * 0.1 / 0.9 / 32, 0.5 - 30 * 0.15 / 0.9 / 32]
    np.testing.assert_allclose(annotation.gripper_pixel[0, 0], expected, atol=1e-5)
    assert gripper_visible_share(annotation) == 1
    assert annotation.phases == (
        "move to the object",
        "grasp the object",
        "carry the object",
        "release the object",
        "move away",
    )
    assert annotation.gripper_open[[0, 30, 59]].tolist() == pytest.approx([1, 0.3, 1])
    assert annotation.rate == 5


@pytest.mark.parametrize(("episode", "success"), [(0, True), (1, False), (2, True)])
def test_items_follow_from_the_annotation(folder, episode, success):
    labelled = make_annotator(folder)(episode)
    question_types = set()
    for step, items in enumerate(labelled.items):
        for item in items:
            assert not check(item, labelled.annotation, step)
            assert item.source == "oracle"
            question_types.add(item.question_type)
    # Items about the outcome need a known success.
    assert ("path_task" in question_types) == success
    assert ("outcome" in question_types) == success
    assert labelled.annotation.success is (True if success else None)
    assert {"gripper_point", "current", "decompose", "path_subtask"} <= question_types
    assert len(labelled.items) == STEPS
    assert labelled.episode_id == f"robot/episode_{episode}.npy"


def test_without_calibration_no_item_is_about_image_locations(folder):
    labelled = make_annotator(folder, calibrated=False)(0)
    assert np.isnan(labelled.annotation.gripper_pixel).all()
    assert np.isnan(gripper_visible_share(labelled.annotation))
    expected = {"current", "next", "decompose", "done", "outcome"}
    assert set(sources_by_type(labelled)) == expected


def test_endpoint_names_objects_and_phases(folder, tmp_path):
    fake = FakeEndpoint(429, ENDPOINT_REPLY, "I do not know.")
    with fake.serve() as url:
        endpoint = Endpoint(url, "seer", "", AnswerCache(tmp_path), rate=1000, backoff=0.01)
        named = make_annotator(folder, endpoint=endpoint)(0)
        unnamed = make_annotator(folder, endpoint=endpoint)(1)
    annotation = named.annotation
    assert annotation.phases[2] == "bring it to the plate"
    assert annotation.objects == ("cup", "plate")
    assert annotation.target == 0
    # Until the grasp, the cup's grasp point is where the gripper grasps it.
    grasp = int(np.flatnonzero(annotation.phase == 2)[0])
    np.testing.assert_allclose(annotation.grasp_pixel[5, 0, 0], annotation.gripper_pixel[grasp, 0])
    assert np.isnan(annotation.grasp_pixel[grasp + 1 :, 0, 0]).all()
    sources = sources_by_type(named)
    assert sources["gripper_point"] == "oracle"
    assert sources["current"] == "model:seer"
    assert sources["grasp_point"] == "model:seer"
    assert unnamed.dropped["endpoint: no JSON"] == 1
    assert unnamed.annotation.phases[0] == "move to the object"
    assert set(sources_by_type(unnamed).values()) == {"oracle"}
    content = fake.requests[-1]["messages"][0]["content"]
    assert len(content) == 1 + 8
    assert "Put the cup on the plate" in content[0]["text"]


class FixedDetector:
    """Detector that finds a cup and a gripper at fixed places, and no plate."""

    name = "owl"
    threshold = 0.2

    def __init__(self):
        self.num_calls = 0

    def __call__(self, image, nouns):
        self.num_calls += 1
        boxes = {"cup": [0.1, 0.1, 0.3, 0.4], "robot gripper": [0.4, 0.5, 0.6, 0.7]}
        return np.array([boxes.get(noun, [np.nan] * 4) for noun in nouns], np.float32)


def test_detector_fills_boxes_and_the_gripper_path(folder):
    detector = FixedDetector()
    labelled = make_annotator(folder, calibrated=False, detector=detector, stride=10)(0)
    annotation = labelled.annotation
    assert annotation.objects == ("cup", "plate")
    assert np.isfinite(annotation.box[[0, 10, 59], 0, 0]).all()
    assert np.isnan(annotation.box[5]).all()
    assert np.isnan(annotation.box[:, :, 1]).all()
    expected = np.tile([0.5, 0.6], (STEPS, 1))
    np.testing.assert_allclose(annotation.gripper_pixel[:, 0], expected, atol=1e-6)
    assert detector.num_calls == 7
    assert labelled.dropped["detector: object not found, or found twice"] == 7
    sources = sources_by_type(labelled)
    assert sources["locate_box"] == "model:owl"
    assert sources["gripper_point"] == "model:owl"
    assert sources["current"] == "oracle"


def test_detector_does_not_replace_a_calibration(folder):
    labelled = make_annotator(folder, detector=FixedDetector(), objects=("cup",))(0)
    calibrated = make_annotator(folder)(0).annotation
    np.testing.assert_array_equal(labelled.annotation.gripper_pixel, calibrated.gripper_pixel)
    assert labelled.annotation.objects == ("cup",)
    assert sources_by_type(labelled)["gripper_point"] == "oracle"


def test_adapter_without_cameras_gets_all_cameras(folder):
    dataset = RLDSDataset(folder / "toy_robot")
    adapter = match_adapter(ADAPTERS["own"], dataset)
    assert adapter.cameras == {"front": "observation/front"}
    wrong = Adapter(annotation=AnnotationSources(position=("observation/stat", 0)))
    message = "annotation.position names 'observation/stat'.*did you mean 'observation/state'"
    with pytest.raises(UserError, match=message):
        match_adapter(wrong, dataset)


@pytest.mark.parametrize(
    ("instruction", "nouns"),
    [
        ("Pick up the black bowl and place it on the plate.", ("black bowl", "plate")),
        ("put a carrot in the sink", ("carrot", "sink")),
        ("open the middle drawer", ("middle drawer",)),
        ("move it to the left of the pot", ("pot",)),
        ("fold towel", ()),
        ("", ()),
    ],
)
def test_nouns_follow_articles(instruction, nouns):
    assert find_nouns(instruction) == nouns


@pytest.mark.parametrize(
    ("question_type", "source"),
    [
        ("gripper_point", "oracle"),
        ("locate_box", "model:owl+seer"),
        ("current", "model:seer"),
        ("an unknown question type", "model:owl+seer"),
    ],
)
def test_source_names_every_model_behind_an_item(question_type, source):
    sources = {"gripper": "oracle", "boxes": "owl", "names": "seer", "phases": "seer"}
    assert set_source(Item("k", question_type, "q", "a"), sources).source == source


def test_without_an_instruction_no_item_is_about_the_task(folder):
    annotator = make_annotator(folder)
    adapter = dataclasses.replace(annotator.adapter, instruction=())
    labelled = dataclasses.replace(annotator, adapter=adapter)(0)
    assert set(sources_by_type(labelled)) == {"gripper_point"}
