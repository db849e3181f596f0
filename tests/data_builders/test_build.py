"""Builds that are killed, that run out of disk space, and that Beam or TFDS's own command runs."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tensorflow as tf
from PIL import Image

from data_builders.common.build import prepare
from data_builders.common.folders import atomic_folder
from data_builders.common.metadata import build_metadata
from etcvla.data.rlds import RLDSDataset
from etcvla.errors import UserError
from tests.data_builders.tiny_robot import Builder, TinyConfig

SHAPES_FLAGS = ("--episodes=150", "--val_episodes=2", "--image_size=32")
SHAPES_NAME = "shapes_vqa/150ep_2val_32px/1.0.0"
PARTIAL = "shapes_vqa/*/incomplete.*/"


def start_shapes_build(out, limit="exec", prefix=()):
    """Start the shapes builder as a process.

    Args:
      limit: shell command before the builder's.
      prefix: command that starts the shell.
    """
    command = [sys.executable, "-m", "data_builders.shapes_vqa", f"--out={out}", *SHAPES_FLAGS]
    return subprocess.Popen(
        [*prefix, "bash", "-c", f'{limit} "$@"', "", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def record_files(directory):
    return {file.name: file.read_bytes() for file in Path(directory).rglob("*.tfrecord*")}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """(folder, record files) of a dataset of four episodes."""
    directory = prepare(Builder, TinyConfig(count=3), str(tmp_path_factory.mktemp("plain")))
    return directory, record_files(directory)


def test_killed_build_restarts_clean(tmp_path):
    killed = start_shapes_build(tmp_path)
    while not list(tmp_path.glob(PARTIAL)):
        assert killed.poll() is None, killed.stderr.read()
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert list(tmp_path.glob(PARTIAL))
    assert not list(tmp_path.glob("shapes_vqa/*/1.0.0"))
    with pytest.raises(UserError, match="no dataset: .* has no features.json"):
        RLDSDataset(next(tmp_path.glob("shapes_vqa/*/")))
    restarted = start_shapes_build(tmp_path)
    out, log = restarted.communicate()
    assert restarted.returncode == 0, log
    assert "removing the partial folder" in log
    assert not list(tmp_path.glob(PARTIAL))
    assert RLDSDataset(out.strip()).num_episodes == 150


def check_failure(process, log, out, reason):
    """Check that the last line of the log names the dataset, its folder and the reason."""
    assert process.returncode == 1
    last = log.strip().splitlines()[-1]
    message = (
        f"error: building {SHAPES_NAME} in {out}/{SHAPES_NAME} failed, partial files are removed"
    )
    assert last.startswith(message)
    assert reason in last


def test_file_size_limit_is_reported_and_partial_files_are_removed(tmp_path):
    process = start_shapes_build(tmp_path, limit="ulimit -f 40; exec")  # kilobytes per file
    _, log = process.communicate()
    check_failure(process, log, tmp_path, "File too large")
    assert not list(tmp_path.glob("shapes_vqa/*/*1.0.0"))
    assert not record_files(tmp_path)


def test_full_disk_is_reported_and_partial_files_are_removed(tmp_path):
    # The process has its own mounts, which end with it.
    prefix = ("unshare", "--user", "--map-root-user", "--mount")
    mount = f"mount -t tmpfs -o size=160k tmpfs {tmp_path}"
    try:
        subprocess.run([*prefix, "sh", "-c", mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a file system is not allowed here")
    list_files = f"trap 'find {tmp_path} -size +0 -type f' EXIT"
    process = start_shapes_build(tmp_path, prefix=prefix, limit=f"{mount}; {list_files};")
    remaining, log = process.communicate()
    check_failure(process, log, tmp_path, "No space left on device")
    for file in remaining.split():
        assert file.endswith(("/.config/metadata.json", ".lock"))


def test_second_build_of_the_same_dataset_fails(tmp_path):
    target = tmp_path / "tiny_robot" / "tiny" / "1.0.0"
    target.parent.mkdir(parents=True)
    partial = target.parent / "incomplete.ABC_1.0.0"
    partial.mkdir()
    with open(target.parent / ".1.0.0.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=f"another process is building {target}"):
            prepare(Builder, TinyConfig(), str(tmp_path))
        assert partial.exists()
    assert prepare(Builder, TinyConfig(), str(tmp_path)) == target
    assert not partial.exists()


def test_atomic_folder_is_complete_or_absent(tmp_path):
    path = tmp_path / "a" / "1.0.0"
    with pytest.raises(RuntimeError), atomic_folder(path) as partial:
        (partial / "file").write_text("half")
        raise RuntimeError
    assert [entry.name for entry in (tmp_path / "a").iterdir()] == [".1.0.0.lock"]
    with atomic_folder(path) as partial:
        (partial / "file").write_text("all")
    assert (path / "file").read_text() == "all"


def test_metadata_records_config_seeding_and_versions(plain):
    metadata = json.loads((plain[0] / "metadata.json").read_text())
    assert metadata["config"] == {"name": "tiny", "count": 3, "has_actions": True}
    assert metadata["seeding"] == "the episode's index"
    assert set(metadata["package_versions"]) == {"numpy", "tensorflow-datasets"}
    assert len(metadata["commit"]) == 40 or metadata["commit"] == "unknown"


def test_metadata_has_file_names_without_folders():
    config = {"data": "/elsewhere/drawer.hdf5", "tasks": ["reach"], "empty": ""}
    metadata = build_metadata(config, ("no-such-package",), "none")
    assert metadata["config"] == {"data": "drawer.hdf5", "tasks": ["reach"]}
    assert metadata["package_versions"]["no-such-package"] == "not installed"


def test_record_bytes_do_not_depend_on_the_process(plain):
    records = []
    for file in plain[0].glob("*.tfrecord*"):
        records += tf.data.TFRecordDataset(str(file)).as_numpy_iterator()
    assert len(records) == 4
    for record in records:
        # The order in which protobuf itself writes features differs from process to process.
        example = tf.train.Example.FromString(record)
        assert record == example.SerializeToString(deterministic=True)


def test_beam_writes_the_same_bytes(plain, tmp_path):
    pytest.importorskip("apache_beam")
    directory = prepare(Builder, TinyConfig(count=3), str(tmp_path), ["runner=DirectRunner"])
    assert record_files(directory) == plain[1]
    splits = []
    for folder in (directory, plain[0]):
        splits.append(json.loads((folder / "dataset_info.json").read_text())["splits"])
    assert splits[0] == splits[1]


def tfds_build(builder, out, **config):
    """Run `tfds build` on a builder's folder and open the dataset."""
    pytest.importorskip("apache_beam")
    pytest.importorskip("mlcroissant")
    root = Path(__file__).parents[2]
    command = [
        sys.executable,
        "-m",
        "tensorflow_datasets.scripts.cli.main",
        "build",
        root / "data_builders" / builder,
        f"--data_dir={out}",
        f"--config={json.dumps(config)}",
    ]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr
    return RLDSDataset(next(out.glob(f"{builder}/*/1.0.0")))


def test_tfds_build_builds_metaworld(tmp_path):
    config = {
        "tasks": ["drawer-open"],
        "episodes": 1,
        "held_out": 0,
        "image_size": 32,
        "noise": [0, 0],
    }
    dataset = tfds_build("metaworld_etc", tmp_path, **config)
    assert dataset.directory.parts[-2].startswith("source_drawer-open_1ep")
    assert dataset.num_episodes == 1
    assert dataset.metadata(0)["task"] == "drawer-open"


def test_tfds_build_builds_llava(tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.jpg")
    turns = [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a cup"}]
    entries = [{"id": "one", "image": "a.jpg", "conversations": turns}]
    (tmp_path / "talks.json").write_text(json.dumps(entries))
    config = {"data": str(tmp_path / "talks.json"), "images": str(tmp_path), "held_out": 0.0}
    dataset = tfds_build("mm_llava", tmp_path, **config)
    assert dataset.directory.parts[-2] == "talks"
    assert dataset.frame(0, ["etc/answer"])["etc/answer"] == ["a cup"]
