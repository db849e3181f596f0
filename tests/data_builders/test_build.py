"""Builds that are killed, run out of disk, meet another one, or are made by Beam or by TFDS's own command."""

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

from data_builders.common.build import made_by, prepare, whole
from etcvla.data.rlds import RLDSDataset
from tests.data_builders.tiny_robot import Builder, TinyConfig

SHAPES = ("--train=150", "--val=2", "--image_size=32")


def shapes(out, limit="exec", around=()):
    """The shapes builder's command as a process, after the shell's `limit`, which the command `around` starts."""
    command = [sys.executable, "-m", "data_builders.shapes_vqa", f"--out={out}", *SHAPES]
    return subprocess.Popen(
        [*around, "bash", "-c", f'{limit} "$@"', "", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def record_files(directory):
    return {file.name: file.read_bytes() for file in Path(directory).rglob("*.tfrecord*")}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Four episodes, and what their files hold."""
    directory = prepare(Builder, TinyConfig(count=3), str(tmp_path_factory.mktemp("plain")))
    return directory, record_files(directory)


def test_a_killed_build_starts_clean(tmp_path):
    killed = shapes(tmp_path)
    begun = "shapes_vqa/*/incomplete.*/"
    while not list(tmp_path.glob(begun)):
        assert killed.poll() is None, killed.stderr.read()
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert list(tmp_path.glob(begun))
    assert not list(tmp_path.glob("shapes_vqa/*/1.0.0"))
    with pytest.raises(ValueError, match="no dataset: .* has no features.json"):
        RLDSDataset(next(tmp_path.glob("shapes_vqa/*/")))
    again = shapes(tmp_path)
    out, log = again.communicate()
    assert again.returncode == 0, log
    assert "which a killed build left" in log
    assert not list(tmp_path.glob(begun))
    assert RLDSDataset(out.strip()).num_episodes == 150


def told_of(log, out):
    """The last line of a failed build's log, if it names the dataset and where it was to be."""
    last = log.strip().splitlines()[-1]
    name = "shapes_vqa/train150_val2_image_size32/1.0.0"
    assert last.startswith(
        f"error: {name}: building {out}/{name} failed, and what was made of it is removed: "
    )
    return last


def test_a_file_that_must_not_grow_is_named_and_removed(tmp_path):
    full = shapes(tmp_path, limit="ulimit -f 40; exec")  # of kilobytes a file
    _, log = full.communicate()
    assert full.returncode == 1
    assert "File too large" in told_of(log, tmp_path)
    assert not list(tmp_path.glob("shapes_vqa/*/*1.0.0"))
    assert not record_files(tmp_path)


def test_a_full_disk_is_named_and_left_as_it_was(tmp_path):
    apart = (
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
    )  # mounts of its own, gone with the process
    mount = f"mount -t tmpfs -o size=160k tmpfs {tmp_path}"
    try:
        subprocess.run([*apart, "sh", "-c", mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system may be mounted here")
    full = shapes(
        tmp_path, around=apart, limit=f"{mount}; trap 'find {tmp_path} -size +0 -type f' EXIT;"
    )
    left, log = full.communicate()
    assert full.returncode == 1
    assert "No space left on device" in told_of(log, tmp_path)
    assert not [
        file for file in left.split() if not file.endswith(("/.config/metadata.json", ".lock"))
    ]


def test_two_builds_do_not_meet(tmp_path):
    target = tmp_path / "tiny_robot" / "tiny" / "1.0.0"
    target.parent.mkdir(parents=True)
    (target.parent / "incomplete.ABC_1.0.0").mkdir()
    with open(target.parent / ".1.0.0.lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(OSError, match=f"another process is building {target}"):
            prepare(Builder, TinyConfig(), str(tmp_path))
        assert (target.parent / "incomplete.ABC_1.0.0").exists()
    assert prepare(Builder, TinyConfig(), str(tmp_path)) == target
    assert not (target.parent / "incomplete.ABC_1.0.0").exists()


def test_a_directory_is_whole_or_not_there(tmp_path):
    with pytest.raises(RuntimeError), whole(tmp_path / "a" / "1.0.0") as made:
        (made / "file").write_text("half")
        raise RuntimeError
    assert [path.name for path in (tmp_path / "a").iterdir()] == [".1.0.0.lock"]
    with whole(tmp_path / "a" / "1.0.0") as made:
        (made / "file").write_text("all")
    assert (tmp_path / "a" / "1.0.0" / "file").read_text() == "all"


def test_metadata_says_how_it_was_made(plain):
    made = json.loads((plain[0] / "metadata.json").read_text())
    assert made["config"] == {"name": "tiny", "count": 3, "acted": True}
    assert made["seeds"] == "the episode's index"
    assert set(made["versions"]) == {"numpy", "tensorflow-datasets"}
    assert len(made["commit"].removesuffix("-dirty")) == 40 or made["commit"].startswith("etcvla ")


def test_metadata_keeps_names_of_files_and_no_folders_of_this_machine():
    made = made_by(
        {"demos": "/elsewhere/drawer.hdf5", "tasks": ["reach"], "empty": ""},
        ("no-such-package",),
        "none",
    )
    assert made["config"] == {"demos": "drawer.hdf5", "tasks": ["reach"]}
    assert made["versions"]["no-such-package"] == "unknown"


def test_records_are_the_same_bytes_in_any_process(plain):
    records = [
        record
        for file in plain[0].glob("*.tfrecord*")
        for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator()
    ]
    assert len(records) == 4
    for record in (
        records
    ):  # protobuf itself would write them in an order that differs from process to process
        assert record == tf.train.Example.FromString(record).SerializeToString(deterministic=True)


def test_beam_writes_the_same_bytes(plain, tmp_path):
    pytest.importorskip("apache_beam")
    directory = prepare(Builder, TinyConfig(count=3), str(tmp_path), ["runner=DirectRunner"])
    assert record_files(directory) == plain[1]
    assert (
        json.loads((directory / "dataset_info.json").read_text())["splits"]
        == json.loads((plain[0] / "dataset_info.json").read_text())["splits"]
    )


def tfds_build(builder, out, **config):
    """What `tfds build` makes of the builder's folder."""
    pytest.importorskip("apache_beam")
    pytest.importorskip("mlcroissant")
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "tensorflow_datasets.scripts.cli.main",
            "build",
            root / "data_builders" / builder,
            f"--data_dir={out}",
            f"--config={json.dumps(config)}",
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert run.returncode == 0, run.stderr
    return RLDSDataset(next(out.glob(f"{builder}/*/1.0.0")))


def test_tfds_own_command_builds_meta_world(tmp_path):
    built = tfds_build(
        "metaworld_etc",
        tmp_path,
        tasks=["drawer-open"],
        episodes=1,
        held_out=0,
        image_size=32,
        noise=[0, 0],
    )
    assert built.directory.parts[-2].startswith("source_drawer-open_1ep")
    assert built.num_episodes == 1
    assert built.metadata(0)["task"] == "drawer-open"


def test_tfds_own_command_builds_what_has_no_config_of_its_own(tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.jpg")
    talk = [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a cup"}]
    (tmp_path / "talks.json").write_text(
        json.dumps([{"id": "one", "image": "a.jpg", "conversations": talk}])
    )
    built = tfds_build(
        "mm_llava", tmp_path, json=str(tmp_path / "talks.json"), images=str(tmp_path), val=0.0
    )
    assert built.directory.parts[-2] == "talks"
    assert built.frame(0, ["etc/answer"])["etc/answer"] == ["a cup"]
