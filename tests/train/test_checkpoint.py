"""Saving and reading checkpoints, also damaged ones, and disks that cannot be written."""

import json
import logging
import shutil
import time
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from etcvla.errors import UserError
from etcvla.train import checkpoint
from etcvla.train.checkpoint import (
    CheckpointWriter,
    check_writable,
    find_checkpoint,
    open_checkpoint,
    set_aside_newer,
)
from etcvla.train.state import TrainState
from tests.train.full_disk import limit_file_size

META = {"config": {"seed": 0}}


def make_state(step):
    rng = np.random.default_rng(step)
    weights = jnp.asarray(rng.normal(size=(64, 64)), jnp.float32)
    params = {"a": {"w": weights}, "b": jnp.float32(step)}
    return TrainState(
        step=jnp.int32(step),
        params=params,
        ema=params,
        opt={"a": {"w": ()}, "b": {"mu": jnp.ones(3)}},
        skipped=jnp.int32(0),
    )


ABSTRACT = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), make_state(0)
)


def save(workdir, *steps, keep=3, keep_every=0):
    writer = CheckpointWriter(workdir, keep, keep_every)
    for step in steps:
        writer.save(make_state(step), META)
    writer.wait()
    return writer


def assert_same(actual, expected):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def array_files(folder):
    """The files of a checkpoint's arrays, largest first."""
    files = [path for path in folder.rglob("d/*") if path.is_file()]
    return sorted(files, key=lambda path: -path.stat().st_size)


def truncate_array(folder):
    path = array_files(folder / "train")[0]
    path.write_bytes(path.read_bytes()[:100])


def delete_array(folder):
    array_files(folder / "ema")[0].unlink()


def overwrite_arrays(folder):
    """Keep the sizes of the files: only reading them shows the damage."""
    for path in array_files(folder):
        path.write_bytes(bytes(path.stat().st_size))


def truncate_meta(folder):
    path = folder / "meta" / "metadata"
    path.write_text(path.read_text()[:20])


@pytest.mark.parametrize("damage", [truncate_array, delete_array, overwrite_arrays, truncate_meta])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, caplog, damage):
    save(tmp_path, 4, 6)
    damage(tmp_path / "checkpoints" / "6")
    assert open_checkpoint(tmp_path).step == (6 if damage is overwrite_arrays else 4)
    with caplog.at_level(logging.WARNING):
        saved = open_checkpoint(tmp_path)
        assert_same(saved.train_state(ABSTRACT), make_state(4))
    assert "/checkpoints/6 is damaged (" in caplog.text
    assert "using the checkpoint before it" in caplog.text
    assert saved.step == 4
    assert saved.meta()["config"] == META["config"]
    assert_same(open_checkpoint(tmp_path).ema(ABSTRACT.ema), make_state(4).ema)


def test_damaged_steps_can_be_saved_again(tmp_path):
    save(tmp_path, 4, 6)
    overwrite_arrays(tmp_path / "checkpoints" / "6")
    set_aside_newer(tmp_path, 4)
    save(tmp_path, 5, 6)
    assert_same(open_checkpoint(tmp_path).train_state(ABSTRACT), make_state(6))
    assert (tmp_path / "checkpoints" / "6.damaged").is_dir()


def test_reading_renames_nothing_and_fails_without_an_intact_checkpoint(tmp_path):
    save(tmp_path, 4, 6)
    overwrite_arrays(tmp_path / "checkpoints" / "6")
    assert_same(open_checkpoint(tmp_path).train_state(ABSTRACT), make_state(4))
    assert not (tmp_path / "checkpoints" / "6.damaged").exists()
    overwrite_arrays(tmp_path / "checkpoints" / "4")
    with pytest.raises(UserError, match="no readable checkpoint in .*checkpoints"):
        open_checkpoint(tmp_path).train_state(ABSTRACT)


def test_one_checkpoint_of_a_workdir_is_opened_by_its_folder(tmp_path):
    save(tmp_path, 4, 6)
    saved = open_checkpoint(tmp_path / "checkpoints" / "4")
    assert saved.step == 4
    assert saved.workdir == tmp_path
    assert_same(saved.ema(ABSTRACT.ema), make_state(4).ema)
    assert jax.tree.map(lambda x: x.shape, saved.ema_shapes()) == {"a": {"w": (64, 64)}, "b": ()}


def test_a_missing_checkpoint_is_named(tmp_path):
    save(tmp_path, 4)
    for path in (tmp_path / "other", tmp_path / "checkpoints" / "5", tmp_path / "checkpoints"):
        assert find_checkpoint(path) is None
        with pytest.raises(UserError, match=f"no checkpoint in {path}"):
            open_checkpoint(path)


def test_the_content_hash_covers_what_a_policy_reads(tmp_path):
    save(tmp_path / "a", 1)
    save(tmp_path / "b", 2)
    first = open_checkpoint(tmp_path / "a").content_hash()
    assert first == open_checkpoint(tmp_path / "a").content_hash()
    assert first != open_checkpoint(tmp_path / "b").content_hash()
    truncate_array(tmp_path / "a" / "checkpoints" / "1")
    (tmp_path / "a" / "checkpoints" / "1" / "files.json").unlink()
    assert first == open_checkpoint(tmp_path / "a").content_hash()


def test_the_newest_and_every_nth_checkpoint_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 4, 5, 6, 7, 8, keep=2, keep_every=3)
    steps = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert steps == [3, 6, 7, 8]


def test_only_a_writer_deletes_unfinished_checkpoints(tmp_path):
    """A policy may read a workdir while a run saves; the next run deletes leftovers."""
    read, written = (
        tmp_path / name / "checkpoints" / "3.orbax-checkpoint-tmp" for name in ("read", "written")
    )
    read.mkdir(parents=True)
    written.mkdir(parents=True)
    assert find_checkpoint(tmp_path / "read") is None
    CheckpointWriter(tmp_path / "written", keep=1)
    for _ in range(500):  # orbax deletes in the background
        if not written.exists():
            break
        time.sleep(0.02)
    assert read.exists() and not written.exists()


def test_a_full_disk_fails_the_save_only(tmp_path):
    writer = save(tmp_path, 4)
    state = make_state(6)
    message = r"checkpoints: the checkpoint of step 6 was not written: .*make room"
    with limit_file_size(2000), pytest.raises(UserError, match=message):
        writer.save(state, META)
        writer.wait()
    assert open_checkpoint(tmp_path).step == 4
    writer.save(state, META)
    writer.wait()
    assert_same(open_checkpoint(tmp_path).train_state(ABSTRACT), state)


def test_a_directory_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    message = "cannot write checkpoints to .*/file/run/checkpoints.*--config.workdir"
    with pytest.raises(UserError, match=message):
        check_writable(tmp_path / "file" / "run", ABSTRACT)
    check_writable(tmp_path / "run", ABSTRACT)
    assert not any((tmp_path / "run" / "checkpoints").iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(1000))
    message = "a checkpoint takes 0.00 GiB, but .*/run/checkpoints has room for 0.00 GiB"
    with pytest.raises(UserError, match=message):
        check_writable(tmp_path / "run", ABSTRACT)


def test_an_unreachable_bucket_is_named(monkeypatch):
    """The file system's own error does not name the path, and the URL is not a local path."""

    def fail(self):
        raise ConnectionError("Cannot connect to host storage.googleapis.com:443")

    monkeypatch.setattr(type(epath.Path("gs://no-bucket")), "exists", fail)
    message = "^gs://no-bucket/run/checkpoints cannot be reached: Cannot connect to host"
    with pytest.raises(UserError, match=message):
        find_checkpoint("gs://no-bucket/run")


def test_a_checkpoint_of_a_newer_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    save(tmp_path, 1)
    monkeypatch.undo()
    message = r"format 2 is newer than this version of etcvla reads \(1\); update etcvla"
    with pytest.raises(UserError, match=message):
        open_checkpoint(tmp_path).meta()


def test_parameters_of_another_model_are_refused_with_lists(tmp_path):
    save(tmp_path, 1)
    params = {
        "a": {"w": jax.ShapeDtypeStruct((7,), jnp.float32)},
        "renamed": ABSTRACT.params["b"],
    }
    with pytest.raises(UserError) as error:
        open_checkpoint(tmp_path).ema(params)
    assert str(error.value).splitlines()[1:] == [
        "  missing: ['renamed']",
        "  extra: ['b']",
        "  wrong shape: ['a/w [64, 64] instead of [7]']",
    ]
    with pytest.raises(UserError, match=r"(?s)missing: \['params/renamed'\]"):
        open_checkpoint(tmp_path).train_state(ABSTRACT.replace(params=params))


def test_file_sizes_are_recorded(tmp_path):
    save(tmp_path, 1)
    folder = tmp_path / "checkpoints" / "1"
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "files.json"]
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    assert json.loads((folder / "files.json").read_text()) == sizes
