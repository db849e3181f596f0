"""ETC for other people's RLDS: what stands on disk afterwards, how it is known, and what happens when it breaks."""

import dataclasses
import json
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from data_builders.add_etc import output
from data_builders.add_etc.converter import add_etc
from data_builders.tools.gallery import read_annotation
from etcvla.data.rlds import RLDSDataset
from etcvla.etc.annotation import project
from etcvla.etc.annotators.cache import AnswerCache
from etcvla.etc.annotators.endpoint import BudgetError, Endpoint
from etcvla.etc.items import Item
from tests.data_builders.command import run_command
from tests.data_builders.toy_robot import ANSWER, CAMERA, STEPS, write_toy_robot
from tests.etc.fake_endpoint import FakeEndpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    write_toy_robot(folder)
    return folder


def _add(folder, out, **options):
    return add_etc(
        str(folder / "toy_robot"), str(out), adapter=str(folder / "adapter.json"), **options
    )


@pytest.fixture(scope="module")
def projected(folder, tmp_path_factory):
    return _add(folder, tmp_path_factory.mktemp("out"), calibration=str(folder / "cameras.json"))


def _files(path):
    return {
        file.name: file.read_bytes()
        for file in path.iterdir()
        if file.is_file() and file.name != "metadata.json"
    }


def _items(dataset, frame):
    names = [f"etc/{field.name}" for field in dataclasses.fields(Item)]
    return [Item(*values) for values in zip(*dataset.frame(frame, names).values(), strict=True)]


def test_splits_and_every_value_of_the_source_are_kept(folder, projected):
    assert projected[0].parts[-2:] == ("toy_robot", "1.0.0")
    for split, episodes in {"train": 3, "val": 1}.items():
        before, after = (
            RLDSDataset(folder / "toy_robot", split),
            RLDSDataset(projected[0], split, verify_crc=True),
        )
        assert after.num_episodes == episodes
        assert set(before.features) < set(after.features)
        for frame in range(0, before.num_frames, 7):
            old, new = (dataset.frame(frame, list(before.features)) for dataset in (before, after))
            for name, value in old.items():
                np.testing.assert_array_equal(new[name], value)
        assert after.metadata(0)["file_path"] == before.metadata(0)["file_path"]


def test_tfds_reads_the_result(projected):
    builder = tfds.builder_from_directory(projected[0])
    assert {split: info.num_examples for split, info in builder.info.splits.items()} == {
        "train": 3,
        "val": 1,
    }
    episode = next(iter(builder.as_dataset("val")))
    assert episode["episode_metadata"]["episode_id"].numpy() == b"robot/episode_3.npy"
    assert [text.decode() for text in episode["episode_metadata"]["phases"].numpy()] == [
        "move to the object",
        "grasp the object",
        "carry the object",
        "release the object",
        "move away",
    ]
    steps = list(episode["steps"].as_numpy_iterator())
    ours = RLDSDataset(projected[0], "val")
    assert [step["annotation"]["phase"] for step in steps] == ours.column(
        "annotation/phase"
    ).tolist()
    for t in (0, 30):
        assert [text.decode() for text in steps[t]["etc"]["answer"]] == [
            item.answer for item in _items(ours, t)
        ]


def test_paths_are_the_projected_gripper(projected):
    dataset = RLDSDataset(projected[0], "train")
    annotation = read_annotation(dataset, 0)
    state = dataset.column("observation/state")[:STEPS]
    np.testing.assert_allclose(
        annotation.gripper_pixel[:, 0],
        project(annotation.camera_matrix[:, 0], state[:, :3]),
        atol=1e-6,
    )
    # The camera looks straight down from (0.15, 0.2, 1.2): x to the right, y up in the image.
    np.testing.assert_allclose(
        annotation.gripper_pixel[0, 0],
        [0.5 + 30 * 0.1 / 0.9 / 32, 0.5 - 30 * 0.15 / 0.9 / 32],
        atol=1e-5,
    )
    assert annotation.success
    assert annotation.rate == 5


def test_a_build_that_stops_goes_on_where_it_stopped(folder, tmp_path):
    fake = FakeEndpoint(ANSWER)
    options = {"calibration": str(folder / "cameras.json")}
    with fake.serve() as url:

        def endpoint(budget):
            return Endpoint(
                url, "seer", "", AnswerCache(tmp_path / "answers"), rate=1000, budget=budget
            )

        with pytest.raises(BudgetError):
            _add(folder, tmp_path / "out", endpoint=endpoint(3), **options)
        assert not list(tmp_path.rglob("dataset_info.json"))  # nothing that looks like a dataset
        (finished,) = tmp_path.rglob("incomplete.1.0.0/*.tfrecord-00000-of-00001")
        written = finished.stat().st_mtime_ns
        path, _ = _add(folder, tmp_path / "out", endpoint=endpoint(1), **options)
        assert (path / finished.name).stat().st_mtime_ns == written
        whole, _ = _add(
            folder, tmp_path / "again", endpoint=endpoint(0), **options
        )  # all answers are kept
    assert len(fake.requests) == 4
    assert _files(path) == _files(whole)


def test_a_killed_run_asks_nothing_again_that_was_answered(folder, tmp_path, monkeypatch, capsys):
    """By the command: killed while the third of four questions is on its way, and started again."""
    arguments = [
        f"--data={folder / 'toy_robot'}",
        f"--adapter={folder / 'adapter.json'}",
        "--endpoint",
        "--rate=1000",
        f"--calibration={folder / 'cameras.json'}",
        "--threads=1",
        f"--out={tmp_path / 'killed'}",
    ]
    running = []

    def kill():
        running[0].kill()
        running[0].wait()
        return 500

    fake = FakeEndpoint(ANSWER, ANSWER, kill, ANSWER)
    with fake.serve() as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        monkeypatch.setenv("OPENAI_MODEL", "seer")
        running.append(
            subprocess.Popen([sys.executable, "-m", "data_builders.add_etc", *arguments])
        )
        assert running[0].wait() == -signal.SIGKILL
        assert not list(tmp_path.rglob("dataset_info.json"))
        run_command("data_builders.add_etc", *arguments, f"--gallery={tmp_path / 'page.html'}")
        said = capsys.readouterr()
        answered, lost, *later = [json.dumps(request["messages"]) for request in fake.requests[1:]]
        assert len(later) == 2 and lost == later[0] and answered not in later
        whole, counts = _add(
            folder,
            tmp_path / "whole",
            calibration=str(folder / "cameras.json"),
            endpoint=Endpoint(url, "seer", "", AnswerCache(tmp_path / "answers"), rate=1000),
        )
    path = pathlib.Path(said.out.strip())
    assert path.parts[-3:] == ("killed", "toy_robot", "1.0.0")
    assert f"items grasp_point: {counts['items grasp_point']}" in said.err.splitlines()
    assert _files(path) == _files(whole)
    assert "take the cup" in (tmp_path / "page.html").read_text()


def test_other_options_start_afresh(folder, tmp_path):
    work = tmp_path / "toy_robot" / "incomplete.1.0.0"
    (work / ".add_etc").mkdir(parents=True)
    (work / "handmade-train.tfrecord-00000-of-00001").write_bytes(b"of another time")
    (work / ".add_etc" / "recipe.json").write_text("{}")
    path, _ = _add(folder, tmp_path)
    assert RLDSDataset(path, "train", verify_crc=True).num_episodes == 3
    assert not work.exists()


def test_what_is_there_is_not_built_again_and_not_taken_for_another(folder, tmp_path, capsys):
    path, counts = _add(folder, tmp_path)
    assert counts["items current"] > 0
    before = _files(path)
    assert _add(folder, tmp_path) == (path, {})
    assert "already built" in capsys.readouterr().err
    with pytest.raises(
        ValueError, match="toy_robot/1.0.0 was built with other calibration, num_objects; delete it"
    ):
        _add(folder, tmp_path, num_objects=7, calibration=str(folder / "cameras.json"))
    assert _files(path) == before


def test_errors_name_the_fix(folder, tmp_path):
    data = str(folder / "toy_robot")
    with pytest.raises(
        ValueError, match="unknown adapter of a dataset 'bridge_v3', did you mean 'bridge_v2'"
    ):
        add_etc(data, str(tmp_path), adapter="bridge_v3")
    with pytest.raises(
        ValueError, match="cameras names 'observation/image_0', which .* mean 'observation/front'"
    ):
        add_etc(data, str(tmp_path), adapter="bridge_v2")
    with pytest.raises(ValueError, match="write over the dataset itself"):
        _add(folder, folder)


def test_annotation_is_not_added_twice(projected, tmp_path):
    with pytest.raises(ValueError, match="has steps/annotation, steps/etc, .* already"):
        add_etc(str(projected[0]), str(tmp_path), adapter="own")


def test_a_calibration_of_another_frame_is_noticed(folder, tmp_path):
    (tmp_path / "cameras.json").write_text(
        json.dumps({"cameras": {"front": CAMERA | {"pose": [5, 5, 1, 3.14, 0, 0]}}})
    )
    with pytest.raises(
        ValueError,
        match="gripper is in the image at 0% of the steps of 3 episodes.*observation/state",
    ):
        _add(folder, tmp_path, calibration=str(tmp_path / "cameras.json"))


def test_a_record_grows_by_what_is_appended():
    feature = {"a": tf.train.Feature(int64_list=tf.train.Int64List(value=range(300)))}
    old = tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
    more = tf.train.Features(
        feature={"b": tf.train.Feature(float_list=tf.train.FloatList(value=[0.5]))}
    )
    new = tf.train.Example.FromString(output.append(old, more.SerializeToString()))
    assert list(new.features.feature["a"].int64_list.value) == list(range(300))
    assert list(new.features.feature["b"].float_list.value) == [0.5]
    with pytest.raises(ValueError, match=r"not a tf\.train\.Example"):
        output.append(b"\x12\x03abc", b"")


def test_the_command_says_what_is_missing(tmp_path, monkeypatch):
    arguments = f"--data={tmp_path / 'none'}", f"--out={tmp_path}"
    with pytest.raises(SystemExit, match="error: no dataset: .*none does not exist"):
        run_command("data_builders.add_etc", *arguments)
    monkeypatch.delenv("OPENAI_MODEL", raising=False)
    with pytest.raises(SystemExit, match="error: a vision endpoint needs .*OPENAI_MODEL"):
        run_command("data_builders.add_etc", *arguments, "--endpoint")
