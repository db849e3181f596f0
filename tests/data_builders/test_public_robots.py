"""Datasets of all adapters are converted, shown, reviewed and trained on; ArrayRecord files too."""

import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_builders.add_etc.converter import add_etc
from data_builders.add_etc.options import AddEtcOptions, find_calibration, shipped_calibrations
from data_builders.common.read_dataset import iterate_items, read_items
from data_builders.tools.gallery import read_entry, write_dataset_gallery
from data_builders.tools.report import dataset_report
from data_builders.tools.review import apply_review
from etcvla.data.adapted_dataset import open_dataset
from etcvla.data.adapters import ADAPTERS
from etcvla.data.rlds import RLDSDataset
from etcvla.data.stage_dataset import StageDataset
from etcvla.etc.annotation import project
from etcvla.etc.annotators.projection import Calibrations
from etcvla.etc.review import ItemKey
from tests.data_builders.gallery_page import read_review_data, write_review
from tests.data_builders.public_robots import SIZE, TASK, make_image, write_public
from tests.data_builders.toy_robot import STEPS, episode
from tests.golden_dir import golden

ROBOTS = [name for name in ADAPTERS if name != "own"]


@pytest.fixture(scope="module", params=ROBOTS)
def converted(request, tmp_path_factory):
    """(name of the adapter, version folder of the dataset with ETC)."""
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    source = write_public(folder, name)
    options = AddEtcOptions(adapter=name, calibration=str(folder / "cameras.json"))
    path, _ = add_etc(str(source), str(folder / "out"), options)
    return name, path


def test_facts_are_read_from_the_features_of_the_adapter(converted):
    name, path = converted
    dataset = RLDSDataset(path)
    toy_state = episode(1)["observation/state"].reshape(STEPS, 4)
    steps = slice(STEPS, 2 * STEPS)
    position = dataset.column("annotation/gripper_position")[steps]
    np.testing.assert_allclose(position, toy_state[:, :3], atol=1e-6)
    opening = dataset.column("annotation/gripper_open")[steps]
    np.testing.assert_allclose(opening, toy_state[:, 3], atol=1e-5)
    metadata = dataset.metadata(1)
    adapter = ADAPTERS[name]
    assert metadata["rate"] == adapter.rate
    expected_id = "success/1" if adapter.annotation.episode_id else "train/000001"
    assert metadata["episode_id"] == expected_id
    assert metadata["phases"][2] == "carry the object"
    assert not metadata["success"]
    for items in iterate_items(dataset):
        assert "outcome" not in {item.question_type for item in items}


def test_page_shows_the_instruction_and_upright_images(converted, tmp_path):
    name, path = converted
    write_dataset_gallery(path, tmp_path / "page.html", num_frames=8)
    page = (tmp_path / "page.html").read_text()
    assert TASK.decode() in page
    assert "trace the path of the gripper" in page
    entry = read_entry(RLDSDataset(path), 1, 7)
    is_rotated = name == "libero_raw"
    stored = make_image(1, 0)
    np.testing.assert_array_equal(entry.image, stored[::-1, ::-1] if is_rotated else stored)
    assert entry.instruction == TASK.decode()
    assert entry.annotation.instruction == TASK.decode()
    # The gripper's point in the upright image.
    y = 0.5 + 30 * 0.1 / 0.9 / SIZE
    x = 0.5 - 30 * 0.15 / 0.9 / SIZE
    expected = [1 - y, 1 - x] if is_rotated else [y, x]
    np.testing.assert_allclose(entry.annotation.gripper_pixel[0, 0], expected, atol=1e-5)


def item_keys(path):
    dataset = RLDSDataset(path)
    keys = []
    for number in range(dataset.num_episodes):
        episode_id = str(dataset.metadata(number)["episode_id"])
        for step in range(dataset.lengths[number]):
            for item in read_items(dataset, int(dataset.starts[number]) + step):
                fields = (item.question_type, item.question, item.answer)
                keys.append(ItemKey(episode_id, step, *fields))
    return keys


def check_review(path, folder):
    """Reject an item of the gallery page, and check that the reviewed dataset lacks it alone."""
    write_dataset_gallery(path, folder / "page.html", num_frames=8)
    data = read_review_data(folder / "page.html")
    rejected = ItemKey(*data["keys"][0])
    review = write_review(folder / "review.json", {rejected: "reject"}, data["dataset"])
    before = item_keys(path)
    after = item_keys(apply_review(path, review))
    assert rejected in before
    assert after == [key for key in before if key != rejected]


def test_review_drops_the_rejected_item(converted, tmp_path):
    check_review(converted[1], tmp_path)


def test_stage_draws_actions_and_items_of_the_same_frames(converted):
    name, path = converted
    dataset = open_dataset(path, adapter=name)
    stage_dataset = StageDataset(dataset, ("front",))
    frame = dataset.frame(0, ["observation/front", "action", "language_instruction"])
    assert frame["action"].shape == ((8,) if "droid" in name else (7,))
    assert frame["language_instruction"] == TASK.decode()
    paths = stage_dataset.candidates("trajectory")
    assert len(paths) > 20
    assert len(stage_dataset.candidates("action")) > 0
    assert dataset_report(path)["by_kind"]["trajectory"] >= len(paths)


def matching_adapters(dataset):
    """Return the adapters whose cameras and instructions the dataset has."""
    names = []
    for name in ROBOTS:
        adapter = ADAPTERS[name]
        features = {*adapter.cameras.values(), *adapter.instruction}
        if not adapter.rotated_cameras and features <= set(dataset.features):
            names.append(name)
    return names


@pytest.mark.parametrize("source", golden("rlds_tfrecord"), ids=lambda folder: folder.name)
def test_public_fixtures_keep_their_facts(source, tmp_path):
    source = shutil.copytree(source, tmp_path / "source" / source.name)
    before = RLDSDataset(source)
    names = matching_adapters(before)
    assert names
    for name in names:
        sources = ADAPTERS[name].annotation
        path, _ = add_etc(str(source), str(tmp_path / name), AddEtcOptions(adapter=name))
        after = RLDSDataset(path)
        assert after.lengths.tolist() == before.lengths.tolist()
        position = before.column(sources.position[0])[:, :3]
        np.testing.assert_array_equal(after.column("annotation/gripper_position"), position)
        stored = before.column(sources.opening[0])[:, sources.opening[1]]
        opening = np.clip((stored - sources.closed) / (sources.open - sources.closed), 0, 1)
        np.testing.assert_allclose(after.column("annotation/gripper_open"), opening, atol=1e-6)
        assert after.metadata(0)["file_path"] == before.metadata(0)["file_path"]
        check_review(path, tmp_path)


# From LIBERO's simulator: grasp centres in the world, and their image points in the mirrored images
# of the public datasets.
SIMULATED_POINTS = {
    "libero_tabletop": [
        ([-0.211154, -0.061809, 1.067940], [0.352351, 0.573330]),
        ([-0.152306, 0.091899, 1.008815], [0.450367, 0.390038]),
        ([-0.226220, 0.009572, 1.042575], [0.368119, 0.488944]),
    ],
    "libero_floor": [
        ([-0.151154, -0.061809, 0.155940], [0.358709, 0.564847]),
        ([-0.092335, 0.091633, 0.096986], [0.442910, 0.402266]),
        ([-0.165709, 0.009093, 0.132620], [0.374102, 0.490659]),
    ],
}


@pytest.mark.parametrize("name", shipped_calibrations())
def test_shipped_calibrations_agree_with_the_simulator(name):
    camera = ADAPTERS["libero"].cameras["front"].removeprefix("observation/")
    matrix = Calibrations(find_calibration(name)).get("any", camera).matrix()
    for point, pixel in SIMULATED_POINTS[name]:
        np.testing.assert_allclose(project(matrix, np.array(point)), pixel, atol=1e-5)
    assert name in ADAPTERS["libero"].annotation.calibration


class ToyArrays(tfds.core.GeneratorBasedBuilder):
    """The toy robot, written by TFDS."""

    VERSION = tfds.core.Version("2.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="left")]

    def _info(self):
        observation = {
            "front": tfds.features.Image(shape=(SIZE, SIZE, 3)),
            "state": tfds.features.Tensor(shape=(4,), dtype=np.float32),
        }
        steps = {
            "observation": observation,
            "action": tfds.features.Tensor(shape=(2,), dtype=np.float32),
            "language_instruction": tfds.features.Text(),
        }
        features = {
            "steps": tfds.features.Dataset(steps),
            "episode_metadata": {"file_path": tfds.features.Text()},
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number in range(5):
            toy = episode(number)
            states = toy["observation/state"].reshape(STEPS, 4)
            actions = toy["action"].reshape(STEPS, 2)
            steps = []
            for t in range(STEPS):
                step = {
                    "observation": {"front": make_image(number, 0), "state": states[t]},
                    "action": actions[t],
                    "language_instruction": TASK.decode(),
                }
                steps.append(step)
            yield (
                number,
                {"steps": steps, "episode_metadata": {"file_path": f"success/{number}"}},
            )


@pytest.fixture(scope="module")
def datasets_by_format(tmp_path_factory):
    """File format -> (source, version folder with ETC) of the same episodes."""
    folder = tmp_path_factory.mktemp("arrays")
    adapter = folder / "adapter.json"
    sources = {
        "position": ["observation/state", 0],
        "episode_id": "file_path",
        "opening": ["observation/state", 3],
    }
    adapter.write_text(json.dumps({"rate": 5, "annotation": sources}))
    datasets = {}
    for name in ("array_record", "tfrecord"):
        builder = ToyArrays(data_dir=folder / name, config="left", file_format=name)
        builder.download_and_prepare()
        options = AddEtcOptions(adapter=str(adapter))
        path, _ = add_etc(str(builder.data_dir), str(folder / f"{name}_etc"), options)
        datasets[name] = (RLDSDataset(builder.data_dir), path)
    return datasets


def test_array_record_and_tfrecord_sources_give_the_same_files(datasets_by_format):
    source, path = datasets_by_format["array_record"]
    assert source.whole_records
    assert path.parts[-3:] == ("toy_arrays", "left", "2.0.0")
    shard = "toy_arrays-train.tfrecord-00000-of-00001"
    assert {file.name for file in path.glob("*record*")} == {shard}
    other = datasets_by_format["tfrecord"][1]
    for name in (shard, "features.json"):
        assert (path / name).read_bytes() == (other / name).read_bytes()
    assert len(list(tfds.builder_from_directory(str(path)).as_dataset("train"))) == 5


def test_array_record_source_keeps_its_values(datasets_by_format):
    source, path = datasets_by_format["array_record"]
    dataset = RLDSDataset(path)
    np.testing.assert_array_equal(dataset.column("action"), source.column("action"))
    number = int(dataset.metadata(1)["file_path"].removeprefix("success/"))
    image = dataset.frame(70, ["observation/front"])["observation/front"]
    np.testing.assert_array_equal(image, make_image(number, 0))
    assert sum(len(items) for items in iterate_items(dataset)) > 100


def test_metadata_records_source_and_adapter(datasets_by_format):
    path = datasets_by_format["tfrecord"][1]
    metadata = json.loads((path / "metadata.json").read_text())
    assert metadata["config"]["adapter"]["annotation"]["episode_id"] == "file_path"
    assert metadata["config"]["source"].startswith("toy_arrays/left/2.0.0 sha256:")
    assert metadata["dropped_items"]["path_task: no success"] == 5 * STEPS
