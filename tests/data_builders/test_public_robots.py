"""Every line of the table of datasets gets ETC, is looked at, reviewed and trained on; ArrayRecord files as well."""

import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_builders.add_etc.converter import add_etc, find_calibration, shipped_calibrations
from data_builders.tools.gallery import dataset_gallery, read_entry
from data_builders.tools.report import dataset_report
from data_builders.tools.review import apply_review
from etcvla.data.adapters import ADAPTERS, open_dataset
from etcvla.data.rlds import RLDSDataset
from etcvla.data.stage_dataset import StageDataset
from etcvla.etc.annotation import project
from etcvla.etc.annotators.projection import Calibrations
from etcvla.etc.review import ItemKey
from tests.data_builders.public_robots import SIZE, TASK, picture, write_public
from tests.data_builders.toy_robot import STEPS, episode
from tests.golden_dir import golden

ROBOTS = [name for name in ADAPTERS if name != "own"]


@pytest.fixture(scope="module", params=ROBOTS)
def added(request, tmp_path_factory):
    """(name of the line, the dataset with ETC)."""
    folder = tmp_path_factory.mktemp(request.param)
    source = write_public(folder, request.param)
    path, _ = add_etc(
        str(source),
        str(folder / "out"),
        adapter=request.param,
        calibration=str(folder / "cameras.json"),
    )
    return request.param, path


def test_facts_are_where_the_table_says(added):
    dataset, toy = RLDSDataset(added[1]), episode(1)["observation/state"].reshape(STEPS, 4)
    at = slice(STEPS, 2 * STEPS)
    np.testing.assert_allclose(
        dataset.column("annotation/gripper_position")[at], toy[:, :3], atol=1e-6
    )
    np.testing.assert_allclose(dataset.column("annotation/gripper_open")[at], toy[:, 3], atol=1e-5)
    about = dataset.metadata(1)
    assert about["rate"] == ADAPTERS[added[0]].rate
    assert about["episode_id"] == (
        "success/1" if ADAPTERS[added[0]].annotation.episode_id else "train/000001"
    )
    assert about["phases"][2] == "carry the object"
    assert not about["success"] and "outcome" not in {
        question_type
        for question_types in dataset.column("etc/question_type")
        for question_type in question_types
    }


def test_the_page_shows_instruction_and_upright_images(added, tmp_path):
    name, path = added
    dataset_gallery(path, tmp_path / "page.html", frames=8)
    page = (tmp_path / "page.html").read_text()
    assert TASK.decode() in page and "trace the path of the gripper" in page
    dataset = RLDSDataset(path)
    entry = read_entry(dataset, 1, 7)
    stored = picture(1, 0)
    np.testing.assert_array_equal(
        entry.image, stored[::-1, ::-1] if name == "libero_raw" else stored
    )
    assert entry.instruction == entry.annotation.instruction == TASK.decode()
    # The camera sees the hand at this point of the image as it is shown.
    y, x = [0.5 + 30 * 0.1 / 0.9 / SIZE, 0.5 - 30 * 0.15 / 0.9 / SIZE]
    expected = [1 - y, 1 - x] if name == "libero_raw" else [y, x]
    np.testing.assert_allclose(entry.annotation.gripper_pixel[0, 0], expected, atol=1e-5)


def check_review(path, folder):
    """Rejects one item of those that the page shows, and finds it gone."""
    dataset_gallery(path, folder / "page.html", frames=8)
    page = json.loads(
        (folder / "page.html").read_text().split('id="review-data">')[1].split("</script>")[0]
    )
    rejected = page["keys"][0]
    item = dict(zip(ItemKey._fields, rejected, strict=True)) | {"verdict": "reject"}
    review = folder / "review.json"
    review.write_text(
        json.dumps(
            {
                "format": "etcvla-review",
                "version": 1,
                "dataset": page["dataset"],
                "split": page["split"],
                "items": [item],
            }
        )
    )
    before, after = (
        [
            (str(found.metadata(episode)["episode_id"]), step, *texts)
            for episode in range(found.num_episodes)
            for step in range(found.lengths[episode])
            for fields in [
                found.frame(
                    int(found.starts[episode]) + step,
                    ["etc/question_type", "etc/question", "etc/answer"],
                )
            ]
            for texts in zip(*fields.values(), strict=True)
        ]
        for found in (RLDSDataset(path), RLDSDataset(apply_review(path, review)))
    )
    assert [key for key in before if key != tuple(rejected)] == after != before


def test_a_review_is_obeyed(added, tmp_path):
    check_review(added[1], tmp_path)


def test_a_stage_draws_actions_and_items_of_the_same_frames(added):
    name, path = added
    dataset = open_dataset(path, adapter=name)
    source = StageDataset(dataset, ("front",))
    frame = dataset.frame(0, ["observation/front", "action", "language_instruction"])
    assert frame["action"].shape == ((8,) if "droid" in name else (7,))
    assert frame["language_instruction"] == TASK.decode()
    paths = source.candidates("trajectory")
    assert len(paths) > 20 and len(source.candidates("action"))
    assert dataset_report(path)["by_kind"]["trajectory"] >= len(paths)


@pytest.mark.parametrize("source", golden("rlds_tfrecord"), ids=lambda folder: folder.name)
def test_public_fixtures_keep_their_facts(source, tmp_path):
    source = shutil.copytree(source, tmp_path / "source" / source.name)
    before = RLDSDataset(source)
    fits = [
        name
        for name, adapter in ADAPTERS.items()
        if name != "own"
        and not adapter.rotated_cameras
        and {*adapter.cameras.values(), *adapter.instruction} <= set(before.features)
    ]
    for name in fits:
        facts = ADAPTERS[name].annotation
        path, _ = add_etc(str(source), str(tmp_path / name), adapter=name)
        after = RLDSDataset(path)
        assert after.lengths.tolist() == before.lengths.tolist()
        np.testing.assert_array_equal(
            after.column("annotation/gripper_position"), before.column(facts.position[0])[:, :3]
        )
        opening = before.column(facts.opening[0])[:, facts.opening[1]]
        opening = np.clip((opening - facts.closed) / (facts.open - facts.closed), 0, 1)
        np.testing.assert_allclose(after.column("annotation/gripper_open"), opening, atol=1e-6)
        assert after.metadata(0)["file_path"] == before.metadata(0)["file_path"]
        check_review(path, tmp_path)
    assert fits


# Of LIBERO's simulator: the grasp centre in the world, and where the mirrored picture of the public sets shows it.
SEEN = {
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
def test_shipped_calibrations_see_what_the_simulator_shows(name):
    camera = ADAPTERS["libero"].cameras["front"].removeprefix("observation/")
    matrix = Calibrations(find_calibration(name)).get("any", camera).matrix()
    for point, pixel in SEEN[name]:
        np.testing.assert_allclose(project(matrix, np.array(point)), pixel, atol=1e-5)
    assert name in ADAPTERS["libero"].annotation.calibration


class ToyArrays(tfds.core.GeneratorBasedBuilder):
    """The toy robot as TFDS writes it."""

    VERSION = tfds.core.Version("2.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="left")]

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "steps": tfds.features.Dataset(
                        {
                            "observation": {
                                "front": tfds.features.Image(shape=(SIZE, SIZE, 3)),
                                "state": tfds.features.Tensor(shape=(4,), dtype=np.float32),
                            },
                            "action": tfds.features.Tensor(shape=(2,), dtype=np.float32),
                            "language_instruction": tfds.features.Text(),
                        }
                    ),
                    "episode_metadata": {"file_path": tfds.features.Text()},
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number in range(5):
            toy = episode(number)
            yield (
                number,
                {
                    "steps": [
                        {
                            "observation": {
                                "front": picture(number, 0),
                                "state": toy["observation/state"].reshape(STEPS, 4)[t],
                            },
                            "action": toy["action"].reshape(STEPS, 2)[t],
                            "language_instruction": TASK.decode(),
                        }
                        for t in range(STEPS)
                    ],
                    "episode_metadata": {"file_path": f"success/{number}"},
                },
            )


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """{file format: (source, with ETC)} of the same episodes."""
    folder, made = tmp_path_factory.mktemp("arrays"), {}
    adapter = folder / "adapter.json"
    adapter.write_text(
        json.dumps(
            {
                "rate": 5,
                "annotation": {
                    "position": ["observation/state", 0],
                    "episode_id": "file_path",
                    "opening": ["observation/state", 3],
                },
            }
        )
    )
    for question_type in ("array_record", "tfrecord"):
        builder = ToyArrays(
            data_dir=folder / question_type, config="left", file_format=question_type
        )
        builder.download_and_prepare()
        path, _ = add_etc(
            str(builder.data_dir), str(folder / f"{question_type}_etc"), adapter=str(adapter)
        )
        made[question_type] = RLDSDataset(builder.data_dir), path
    return made


def test_array_records_get_what_tfrecords_get(arrays):
    source, path = arrays["array_record"]
    assert source.whole_records and path.parts[-3:] == ("toy_arrays", "left", "2.0.0")
    assert {file.name for file in path.glob("*record*")} == {
        "toy_arrays-train.tfrecord-00000-of-00001"
    }
    twin = arrays["tfrecord"][1]
    for name in ("toy_arrays-train.tfrecord-00000-of-00001", "features.json"):
        assert (path / name).read_bytes() == (twin / name).read_bytes()
    episodes = list(tfds.builder_from_directory(str(path)).as_dataset("train"))
    assert len(episodes) == 5
    dataset = RLDSDataset(path, verify_crc=True)
    np.testing.assert_array_equal(dataset.column("action"), source.column("action"))
    number = int(dataset.metadata(1)["file_path"].removeprefix("success/"))
    np.testing.assert_array_equal(
        dataset.frame(70, ["observation/front"])["observation/front"], picture(number, 0)
    )
    assert sum(map(len, dataset.column("etc/question_type"))) > 100


def test_what_it_was_made_of_is_told(arrays):
    made = json.loads((arrays["tfrecord"][1] / "metadata.json").read_text())
    assert made["config"]["adapter"]["annotation"]["episode_id"] == "file_path"
    assert made["config"]["source"].startswith("toy_arrays/left/2.0.0 sha256:")
    assert made["dropped"]["path_task: no success"] == 5 * STEPS
