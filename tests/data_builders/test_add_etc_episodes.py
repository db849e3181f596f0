"""One episode's facts and items from state, calibration, a detector and an endpoint, each apart from the others."""

import dataclasses

import numpy as np
import pytest

from data_builders.add_etc.adapter import fit
from data_builders.add_etc.episodes import Annotator, credit, nouns_of, seen_share
from etcvla.data.adapters import ADAPTERS, Adapter, AnnotationSources, find_adapter
from etcvla.data.rlds import RLDSDataset
from etcvla.etc.annotators.cache import AnswerCache
from etcvla.etc.annotators.endpoint import Endpoint
from etcvla.etc.annotators.projection import Calibrations
from etcvla.etc.items import Item
from etcvla.etc.verify import check
from tests.data_builders.toy_robot import ANSWER, STEPS, write_toy_robot
from tests.etc.fake_endpoint import FakeEndpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    write_toy_robot(folder)
    return folder


def _annotator(folder, *, calibrated=True, **options):
    dataset = RLDSDataset(folder / "toy_robot", "train")
    calibrations = Calibrations(folder / "cameras.json") if calibrated else None
    return Annotator(
        dataset,
        fit(find_adapter(str(folder / "adapter.json")), dataset),
        num_objects=6,
        calibrations=calibrations,
        **options,
    )


def _sources(labelled):
    return {item.question_type: item.source for items in labelled.items for item in items}


def test_paths_are_the_projected_gripper(folder):
    annotation = _annotator(folder)(0).annotation
    # The camera looks straight down from (0.15, 0.2, 1.2): x to the right, y up in the image.
    np.testing.assert_allclose(
        annotation.gripper_pixel[0, 0],
        [0.5 + 30 * 0.1 / 0.9 / 32, 0.5 - 30 * 0.15 / 0.9 / 32],
        atol=1e-5,
    )
    assert seen_share(annotation) == 1
    assert annotation.phases == (
        "move to the object",
        "grasp the object",
        "carry the object",
        "release the object",
        "move away",
    )
    assert annotation.gripper_open[[0, 30, 59]].tolist() == pytest.approx([1, 0.3, 1])
    assert annotation.rate == 5


def test_items_follow_from_the_annotation_and_claim_no_unknown_success(folder):
    for episode, success in enumerate((True, False, True)):
        labelled = _annotator(folder)(episode)
        items = [(t, item) for t in range(STEPS) for item in labelled.items[t]]
        assert not [reason for t, item in items if (reason := check(item, labelled.annotation, t))]
        question_types = {item.question_type for _, item in items}
        assert ("path_task" in question_types) == ("outcome" in question_types) == success
        assert labelled.annotation.success is (True if success else None)
        assert {"gripper_point", "current", "decompose", "path_subtask"} <= {
            item.question_type for _, item in items
        }
        assert {item.source for _, item in items} == {"oracle"}
        assert labelled.episode_id == f"robot/episode_{episode}.npy"


def test_without_calibration_no_item_speaks_of_the_image(folder):
    labelled = _annotator(folder, calibrated=False)(0)
    assert np.isnan(labelled.annotation.gripper_pixel).all()
    assert np.isnan(seen_share(labelled.annotation))
    assert set(_sources(labelled)) == {"current", "next", "decompose", "done", "outcome"}


def test_an_endpoint_names_what_the_state_shows(folder, tmp_path):
    fake = FakeEndpoint(429, ANSWER, "I do not know.")
    with fake.serve() as url:
        endpoint = Endpoint(url, "seer", "", AnswerCache(tmp_path), rate=1000, backoff=0.01)
        named, unnamed = (_annotator(folder, endpoint=endpoint)(episode) for episode in (0, 1))
    annotation = named.annotation
    assert annotation.phases[2] == "bring it to the plate"
    assert (annotation.objects, annotation.target) == (("cup", "plate"), 0)
    # Until it is held, the cup's grasp point is where the gripper came to hold it.
    held = int(np.flatnonzero(annotation.phase == 2)[0])
    np.testing.assert_allclose(annotation.grasp_pixel[5, 0, 0], annotation.gripper_pixel[held, 0])
    assert np.isnan(annotation.grasp_pixel[held + 1 :, 0, 0]).all()
    datasets = _sources(named)
    assert datasets["gripper_point"] == "oracle"
    assert datasets["current"] == datasets["grasp_point"] == "model:seer"
    assert unnamed.dropped["endpoint: no JSON"] == 1
    assert unnamed.annotation.phases[0] == "move to the object"
    assert set(_sources(unnamed).values()) == {"oracle"}
    content = fake.requests[-1]["messages"][0]["content"]
    assert len(content) == 1 + 8
    assert "Put the cup on the plate" in content[0]["text"]


class FixedDetector:
    """Sees a cup and a gripper that stand still, and no plate."""

    name, threshold = "owl", 0.2

    def __init__(self):
        self.seen = 0

    def __call__(self, image, nouns):
        self.seen += 1
        boxes = {"cup": [0.1, 0.1, 0.3, 0.4], "robot gripper": [0.4, 0.5, 0.6, 0.7]}
        return np.array([boxes.get(noun, [np.nan] * 4) for noun in nouns], np.float32)


def test_a_detector_fills_boxes_and_a_track(folder):
    detector = FixedDetector()
    labelled = _annotator(folder, calibrated=False, detector=detector, stride=10)(0)
    annotation = labelled.annotation
    assert annotation.objects == ("cup", "plate")
    assert np.isfinite(annotation.box[[0, 10, 59], 0, 0]).all()
    assert np.isnan(annotation.box[5]).all()
    assert np.isnan(annotation.box[:, :, 1]).all()
    np.testing.assert_allclose(
        annotation.gripper_pixel[:, 0], np.tile([0.5, 0.6], (STEPS, 1)), atol=1e-6
    )
    assert detector.seen == 7
    assert labelled.dropped["detector: object not found, or found twice"] == 7
    datasets = _sources(labelled)
    assert datasets["locate_box"] == datasets["gripper_point"] == "model:owl"
    assert datasets["current"] == "oracle"


def test_a_detector_does_not_replace_a_calibration(folder):
    labelled = _annotator(folder, detector=FixedDetector(), objects=("cup",))(0)
    np.testing.assert_array_equal(
        labelled.annotation.gripper_pixel, _annotator(folder)(0).annotation.gripper_pixel
    )
    assert labelled.annotation.objects == ("cup",)
    assert _sources(labelled)["gripper_point"] == "oracle"


def test_an_adapter_without_cameras_takes_all(folder):
    dataset = RLDSDataset(folder / "toy_robot")
    assert fit(ADAPTERS["own"], dataset).cameras == {"front": "observation/front"}
    with pytest.raises(
        ValueError,
        match="annotation.position names 'observation/stat'.*did you mean 'observation/state'",
    ):
        fit(Adapter(annotation=AnnotationSources(position=("observation/stat", 0))), dataset)


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
def test_nouns_stand_after_articles(instruction, nouns):
    assert nouns_of(instruction) == nouns


def test_an_item_is_credited_to_every_model_behind_it():
    datasets = {"gripper": "oracle", "boxes": "owl", "names": "seer", "phases": "seer"}
    made = {
        question_type: credit(Item("k", question_type, "q", "a"), datasets).source
        for question_type in (
            "gripper_point",
            "locate_box",
            "current",
            "of a question_type to come",
        )
    }
    assert made == {
        "gripper_point": "oracle",
        "locate_box": "model:owl+seer",
        "current": "model:seer",
        "of a question_type to come": "model:owl+seer",
    }


def test_without_an_instruction_no_item_speaks_of_a_task(folder):
    annotator = _annotator(folder)
    annotator = dataclasses.replace(
        annotator, adapter=dataclasses.replace(annotator.adapter, instruction=())
    )
    labelled = annotator(0)
    assert set(_sources(labelled)) == {"gripper_point"}
