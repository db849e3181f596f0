"""Checkpoints that are damaged, cannot be written, or are to be kept: nothing whole is ever lost."""

import json
import logging
import shutil
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from etcvla.train import checkpoint
from etcvla.train.checkpoint import Checkpoints
from etcvla.train.state import TrainState
from tests.train.full_disk import files_up_to

META = {"config": {"seed": 0}}


def state(step):
    rng = np.random.default_rng(step)
    tree = {"a": {"w": jnp.asarray(rng.normal(size=(64, 64)), jnp.float32)}, "b": jnp.float32(step)}
    return TrainState(
        step=jnp.int32(step),
        params=tree,
        ema=tree,
        opt={"a": {"w": ()}, "b": {"mu": jnp.ones(3)}},
        skipped=jnp.int32(0),
    )


ABSTRACT = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0)
)


def saved(workdir, *steps, **options):
    checkpoints = Checkpoints(workdir, **{"keep": 3, **options})
    for step in steps:
        checkpoints.save(state(step), META)
    checkpoints.wait()
    return checkpoints


def assert_same(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def files(folder):
    """The data of a checkpoint, largest first."""
    return sorted(
        (path for path in folder.rglob("d/*") if path.is_file()),
        key=lambda path: -path.stat().st_size,
    )


def cut(folder):
    path = files(folder / "train")[0]
    path.write_bytes(path.read_bytes()[:100])


def lose(folder):
    files(folder / "ema")[0].unlink()


def scramble(folder):
    for path in files(folder / "train"):  # as long as before: it shows in reading only
        path.write_bytes(bytes(path.stat().st_size))


def tear_meta(folder):
    path = folder / "meta" / "metadata"
    path.write_text(path.read_text()[:20])


@pytest.mark.parametrize("damage", [cut, lose, scramble, tear_meta])
def test_the_one_before_is_taken_where_the_newest_is_damaged(tmp_path, caplog, damage):
    saved(tmp_path, 4, 6)
    damage(tmp_path / "checkpoints" / "6")
    reader = Checkpoints(tmp_path)
    assert reader.latest() == (6 if damage is scramble else 4)
    with caplog.at_level(logging.WARNING):
        checkpoints = Checkpoints(tmp_path, keep=3)
        assert_same(checkpoints.restore(ABSTRACT), state(4))
    assert (
        "/checkpoints/6 is damaged (" in caplog.text
        and "taking the checkpoint before it" in caplog.text
    )
    assert checkpoints.latest() == 4 and checkpoints.meta()["config"] == META["config"]
    checkpoints.save(state(5), META)  # its step, and those before it, can be saved again
    checkpoints.save(state(6), META)
    checkpoints.wait()
    assert_same(Checkpoints(tmp_path).restore(ABSTRACT), state(6))
    assert (tmp_path / "checkpoints" / "6.damaged").is_dir()


def test_who_only_reads_moves_nothing(tmp_path):
    saved(tmp_path, 4, 6)
    scramble(tmp_path / "checkpoints" / "6")
    assert_same(Checkpoints(tmp_path).restore(ABSTRACT), state(4))
    assert not (tmp_path / "checkpoints" / "6.damaged").exists()
    cut(tmp_path / "checkpoints" / "4")
    with pytest.raises(FileNotFoundError, match="no checkpoint that can be read in .*checkpoints"):
        Checkpoints(tmp_path).restore(ABSTRACT)


def test_some_are_kept_by_number_and_some_for_good(tmp_path):
    saved(tmp_path, 1, 2, 3, 4, 5, 6, 7, 8, keep=2, keep_every=3)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [3, 6, 7, 8]


def test_a_full_disk_costs_the_save_and_nothing_else(tmp_path):
    checkpoints, now = saved(tmp_path, 4), state(6)
    told = r"checkpoints: the checkpoint of step 6 was not written: .*make room"
    with files_up_to(2000), pytest.raises(OSError, match=told):
        checkpoints.save(now, META)
        checkpoints.wait()
    assert Checkpoints(tmp_path).latest() == 4
    checkpoints.save(now, META)
    checkpoints.wait()
    assert_same(checkpoints.restore(ABSTRACT), state(6))


def test_a_place_that_cannot_be_written_is_named_before_training(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        OSError, match="no checkpoint can be written to .*/file/run/checkpoints.*--config.workdir"
    ):
        Checkpoints(tmp_path / "file" / "run", keep=1).check_writable(ABSTRACT)
    checkpoints = Checkpoints(tmp_path / "run", keep=1)
    checkpoints.check_writable(ABSTRACT)
    assert not any((tmp_path / "run" / "checkpoints").iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(1000))
    with pytest.raises(
        OSError, match="a checkpoint takes 0.00 GiB, and .*/run/checkpoints has room for 0.00 GiB"
    ):
        checkpoints.check_writable(ABSTRACT)


def test_a_bucket_that_does_not_answer_is_named(monkeypatch):
    """Its filesystem's own error says of no place; and it is no local folder of that name."""

    def silent(self):
        raise ConnectionError("Cannot connect to host storage.googleapis.com:443")

    monkeypatch.setattr(type(epath.Path("gs://no-bucket")), "exists", silent)
    with pytest.raises(
        OSError, match="^gs://no-bucket/run/checkpoints cannot be reached: Cannot connect to host"
    ):
        Checkpoints("gs://no-bucket/run")


def test_a_newer_versions_checkpoint_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    saved(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(
        ValueError,
        match=r"checkpoint format 2 is newer than this etcvla reads \(1\); update etcvla",
    ):
        Checkpoints(tmp_path).meta()


def test_another_models_state_is_refused_with_lists(tmp_path):
    saved(tmp_path, 1)
    params = {"a": ABSTRACT.params["a"], "c": ABSTRACT.params["b"]}
    with pytest.raises(ValueError, match=r"(?s)missing: \['params/c'\].*extra: \['params/b'\]"):
        Checkpoints(tmp_path).restore(ABSTRACT.replace(params=params))


def test_sizes_are_noted_beside_what_was_written(tmp_path):
    saved(tmp_path, 1)
    folder = tmp_path / "checkpoints" / "1"
    known = json.loads((folder / "files.json").read_text())
    assert known == {
        str(path.relative_to(folder)): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and path.name != "files.json"
    }
