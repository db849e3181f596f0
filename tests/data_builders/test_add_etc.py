"""The converter: the files it writes, how it resumes, and what it reports."""

import json
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from data_builders.add_etc import records
from data_builders.add_etc.converter import add_etc
from data_builders.add_etc.options import AddEtcOptions
from data_builders.add_etc.output import ItemCounts
from data_builders.common.read_dataset import read_annotation, read_items
from etcvla.data.rlds import RLDSDataset
from etcvla.errors import UserError
from etcvla.etc.annotation import project
from etcvla.etc.annotators.cache import AnswerCache
from etcvla.etc.annotators.endpoint import BudgetError, Endpoint
from tests.data_builders.command import run_command
from tests.data_builders.toy_robot import CAMERA, ENDPOINT_REPLY, STEPS, write_toy_robot
from tests.etc.fake_endpoint import FakeEndpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    write_toy_robot(folder)
    return folder


def convert(folder, out, **options):
    options = AddEtcOptions(adapter=str(folder / "adapter.json"), **options)
    return add_etc(str(folder / "toy_robot"), str(out), options)


@pytest.fixture(scope="module")
def calibrated(folder, tmp_path_factory):
    """The toy robot with ETC, made with a calibration."""
    out = tmp_path_factory.mktemp("out")
    path, _ = convert(folder, out, calibration=str(folder / "cameras.json"))
    return path


def file_contents(path):
    contents = {}
    for file in path.iterdir():
        if file.is_file() and file.name != "metadata.json":
            contents[file.name] = file.read_bytes()
    return contents


@pytest.mark.parametrize(("split", "episodes"), [("train", 3), ("val", 1)])
def test_splits_and_all_values_of_the_source_are_kept(folder, calibrated, split, episodes):
    assert calibrated.parts[-2:] == ("toy_robot", "1.0.0")
    source = RLDSDataset(folder / "toy_robot", split)
    result = RLDSDataset(calibrated, split, verify_crc=True)
    assert result.num_episodes == episodes
    assert set(source.features) < set(result.features)
    for frame in range(0, source.num_frames, 7):
        names = list(source.features)
        converted = result.frame(frame, names)
        for name, value in source.frame(frame, names).items():
            np.testing.assert_array_equal(converted[name], value)
    assert result.metadata(0)["file_path"] == source.metadata(0)["file_path"]


def test_tfds_reads_the_result(calibrated):
    builder = tfds.builder_from_directory(calibrated)
    counts = {split: info.num_examples for split, info in builder.info.splits.items()}
    assert counts == {"train": 3, "val": 1}
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
    dataset = RLDSDataset(calibrated, "val")
    phases = [step["annotation"]["phase"] for step in steps]
    assert phases == dataset.column("annotation/phase").tolist()
    for t in (0, 30):
        answers = [text.decode() for text in steps[t]["etc"]["answer"]]
        assert answers == [item.answer for item in read_items(dataset, t)]


def test_paths_are_the_projected_gripper(calibrated):
    dataset = RLDSDataset(calibrated, "train")
    annotation = read_annotation(dataset, 0)
    positions = dataset.column("observation/state")[:STEPS, :3]
    projected = project(annotation.camera_matrix[:, 0], positions)
    np.testing.assert_allclose(annotation.gripper_pixel[:, 0], projected, atol=1e-6)
    # The camera looks straight down from (0.15, 0.2, 1.2): x to the right, y up in the image.
    expected = [0.5 + 30 * 0.1 / 0.9 / 32, 0.5 - 30 * 0.15 / 0.9 / 32]
    np.testing.assert_allclose(annotation.gripper_pixel[0, 0], expected, atol=1e-5)
    assert annotation.success
    assert annotation.rate == 5


def make_endpoint(url, answers, **options):
    return Endpoint(url, "seer", "", AnswerCache(answers), rate=1000, **options)


def test_interrupted_build_resumes_with_the_first_unfinished_file(folder, tmp_path):
    fake = FakeEndpoint(ENDPOINT_REPLY)
    answers = tmp_path / "answers"
    calibration = str(folder / "cameras.json")
    with fake.serve() as url:
        endpoint = make_endpoint(url, answers, budget=3)
        with pytest.raises(BudgetError):
            convert(folder, tmp_path / "out", endpoint=endpoint, calibration=calibration)
        assert not list(tmp_path.rglob("dataset_info.json"))
        (finished,) = tmp_path.rglob("incomplete.1.0.0/*.tfrecord-00000-of-00001")
        written = finished.stat().st_mtime_ns
        endpoint = make_endpoint(url, answers, budget=1)
        path, _ = convert(folder, tmp_path / "out", endpoint=endpoint, calibration=calibration)
        assert (path / finished.name).stat().st_mtime_ns == written
        # All replies are cached.
        endpoint = make_endpoint(url, answers, budget=0)
        other, _ = convert(folder, tmp_path / "again", endpoint=endpoint, calibration=calibration)
    assert len(fake.requests) == 4
    assert file_contents(path) == file_contents(other)


def test_killed_command_repeats_no_answered_request(folder, tmp_path, monkeypatch, capsys):
    """Kill the command during the third of four requests, and start it again."""
    arguments = [
        f"--data={folder / 'toy_robot'}",
        f"--adapter={folder / 'adapter.json'}",
        "--endpoint",
        "--rate=1000",
        f"--calibration={folder / 'cameras.json'}",
        "--threads=1",
        f"--out={tmp_path / 'killed'}",
    ]
    processes = []

    def kill():
        processes[0].kill()
        processes[0].wait()
        return 500

    fake = FakeEndpoint(ENDPOINT_REPLY, ENDPOINT_REPLY, kill, ENDPOINT_REPLY)
    with fake.serve() as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        monkeypatch.setenv("OPENAI_MODEL", "seer")
        command = [sys.executable, "-m", "data_builders.add_etc", *arguments]
        processes.append(subprocess.Popen(command))
        assert processes[0].wait() == -signal.SIGKILL
        assert not list(tmp_path.rglob("dataset_info.json"))
        run_command("data_builders.add_etc", *arguments, f"--gallery={tmp_path / 'page.html'}")
        output = capsys.readouterr()
        messages = [json.dumps(request["messages"]) for request in fake.requests]
        answered, lost, *repeated = messages[1:]
        assert len(repeated) == 2
        assert repeated[0] == lost
        assert answered not in repeated
        uninterrupted, counts = convert(
            folder,
            tmp_path / "whole",
            calibration=str(folder / "cameras.json"),
            endpoint=make_endpoint(url, tmp_path / "answers"),
        )
    path = pathlib.Path(output.out.strip())
    assert path.parts[-3:] == ("killed", "toy_robot", "1.0.0")
    assert f"items grasp_point: {counts.items['grasp_point']}" in output.err.splitlines()
    assert file_contents(path) == file_contents(uninterrupted)
    assert "take the cup" in (tmp_path / "page.html").read_text()


def test_other_settings_restart_an_unfinished_build(folder, tmp_path):
    partial = tmp_path / "toy_robot" / "incomplete.1.0.0"
    (partial / ".add_etc").mkdir(parents=True)
    (partial / "handmade-train.tfrecord-00000-of-00001").write_bytes(b"of another build")
    (partial / ".add_etc" / "settings.json").write_text("{}")
    path, _ = convert(folder, tmp_path)
    assert RLDSDataset(path, "train", verify_crc=True).num_episodes == 3
    assert not partial.exists()


def test_existing_dataset_is_kept_and_other_settings_are_an_error(folder, tmp_path, capsys):
    path, counts = convert(folder, tmp_path)
    assert counts.items["current"] > 0
    before = file_contents(path)
    assert convert(folder, tmp_path) == (path, ItemCounts())
    assert "already built" in capsys.readouterr().err
    message = "toy_robot/1.0.0 was built with other calibration, num_objects; delete it"
    with pytest.raises(UserError, match=message):
        convert(folder, tmp_path, num_objects=7, calibration=str(folder / "cameras.json"))
    assert file_contents(path) == before


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ("bridge_v3", "unknown .* 'bridge_v3', did you mean 'bridge_v2'"),
        (
            "bridge_v2",
            "cameras names 'observation/image_0', which .* mean 'observation/front'",
        ),
    ],
)
def test_wrong_adapter_is_an_error(folder, tmp_path, adapter, message):
    with pytest.raises(ValueError, match=message):
        add_etc(str(folder / "toy_robot"), str(tmp_path), AddEtcOptions(adapter=adapter))


def test_output_must_not_overwrite_the_source(folder):
    with pytest.raises(UserError, match="would overwrite the dataset itself"):
        convert(folder, folder)


def test_annotation_is_not_added_twice(calibrated, tmp_path):
    with pytest.raises(UserError, match="has steps/annotation, steps/etc, .* already"):
        add_etc(str(calibrated), str(tmp_path), AddEtcOptions())


def test_calibration_of_another_frame_is_an_error(folder, tmp_path):
    camera = CAMERA | {"pose": [5, 5, 1, 3.14, 0, 0]}
    calibration = tmp_path / "cameras.json"
    calibration.write_text(json.dumps({"cameras": {"front": camera}}))
    message = "gripper is in the image at 0% of the steps of 3 episodes.*observation/state"
    with pytest.raises(UserError, match=message):
        convert(folder, tmp_path, calibration=str(calibration))


def test_appended_features_extend_a_record():
    ints = tf.train.Feature(int64_list=tf.train.Int64List(value=range(300)))
    floats = tf.train.Feature(float_list=tf.train.FloatList(value=[0.5]))
    record = tf.train.Example(features=tf.train.Features(feature={"a": ints}))
    more = tf.train.Example(features=tf.train.Features(feature={"b": floats}))
    extended = records.append_features(record.SerializeToString(), more.SerializeToString())
    features = tf.train.Example.FromString(extended).features.feature
    assert list(features["a"].int64_list.value) == list(range(300))
    assert list(features["b"].float_list.value) == [0.5]
    with pytest.raises(ValueError, match=r"not a tf\.train\.Example"):
        records.append_features(b"\x12\x03abc", b"")


def test_command_reports_what_is_missing(tmp_path, monkeypatch):
    arguments = f"--data={tmp_path / 'none'}", f"--out={tmp_path}"
    with pytest.raises(SystemExit, match="error: no dataset: .*none does not exist"):
        run_command("data_builders.add_etc", *arguments)
    monkeypatch.delenv("OPENAI_MODEL", raising=False)
    with pytest.raises(SystemExit, match="error: .*OPENAI_MODEL"):
        run_command("data_builders.add_etc", *arguments, "--endpoint")


def test_missing_calibration_is_an_error(folder, tmp_path):
    with pytest.raises(UserError, match="no calibration file .*none.json"):
        convert(folder, tmp_path, calibration=str(tmp_path / "none.json"))
