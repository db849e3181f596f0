"""Checkpoints by orbax: the training state, the EMA that others take, and all that a policy needs beside it.

A checkpoint holds three items: `train` (step, params, optimizer), `ema` (what the next stage and the policy read) and
`meta` (JSON: config, model, assets, lineage, versions). Orbax writes to a temporary name and renames, so a killed save
leaves the one before it. Once it is there, the sizes of its files are noted beside them.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

import etcvla
from etcvla.rules import path_str
from etcvla.train.hosts import all_hosts_agree
from etcvla.train.state import TrainState

log = logging.getLogger(__name__)

FORMAT = 1
_FILES = "files.json"  # in each checkpoint: the sizes of all other files of it
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain")


def versions() -> dict[str, str]:
    """Of the packages that a run's numbers depend on."""
    return {
        "etcvla": etcvla.__version__,
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }


class Checkpoints:
    """The checkpoints of one workdir.

    One that is damaged (files that are missing or of another size than they were written with, JSON that is none, or
    whatever fails in reading) is told and passed over: the one before it counts then.

    Args:
      keep: how many of them a run that saves keeps. None reads only: what another process is saving is left alone.
      keep_every: so many steps apart, they are kept for good; 0 for none.

    Raises OSError for a bucket that does not answer.
    """

    def __init__(self, workdir: epath.PathLike, keep: int | None = None, keep_every: int = 0):
        self.directory = _absolute(epath.Path(workdir)) / "checkpoints"
        self._keep, self._keep_every = keep, keep_every
        self._damaged: set[int] = set()
        self._checked: set[int] = set()  # and found whole
        self._saving: int | None = None  # the step that is being written
        self._manager: ocp.CheckpointManager | None = None
        self._open()

    def _open(self) -> None:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep,
            keep_period=self._keep_every or None,
            create=False,
            cleanup_tmp_directories=self._keep is not None,
        )
        handlers = {
            "train": ocp.StandardCheckpointHandler(),
            "ema": ocp.StandardCheckpointHandler(),
            "meta": ocp.JsonCheckpointHandler(),
        }
        try:
            there = self.directory.exists()
        except Exception as error:  # a bucket's own errors are of many types
            raise OSError(f"{self.directory} cannot be reached: {error}") from error
        if there:
            self._manager = ocp.CheckpointManager(
                self.directory, options=options, item_handlers=handlers
            )

    def latest(self) -> int | None:
        """The newest whole checkpoint's step."""
        for step in sorted(self._manager.all_steps(), reverse=True) if self._manager else ():
            if step != self._saving and step not in self._damaged and self._whole(step):
                return step
        return None

    def _whole(self, step: int) -> bool:
        """Whether a checkpoint's files are as they were written, as far as their sizes tell."""
        if step in self._checked:  # asking a bucket for many sizes takes seconds
            return True
        folder = self.directory / str(step)
        try:
            json.loads((folder / "meta" / "metadata").read_text())
            known = json.loads((folder / _FILES).read_text()) if (folder / _FILES).exists() else {}
            wrong = sorted(
                name for name, size in known.items() if (folder / name).stat().length != size
            )
        except (OSError, ValueError) as error:
            wrong = [str(error)]
        if wrong:
            self._pass_over(step, f"not as written: {', '.join(wrong[:3])}")
            return False
        self._checked.add(step)
        return True

    def _pass_over(self, step: int, why: object) -> None:
        self._damaged.add(step)
        log.warning(
            "%s/%d is damaged (%s); taking the checkpoint before it", self.directory, step, why
        )

    def check_writable(self, state: TrainState) -> None:
        """Tries a small file, and asks the disk for the room that a checkpoint of these shapes takes.

        Raises OSError naming the directory.
        """
        probe = self.directory / f".probe_{jax.process_index()}"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            probe.write_text("written")
            probe.unlink()
        except Exception as error:  # a bucket's own errors are of many types
            raise OSError(
                f"no checkpoint can be written to {self.directory}: {error}. Point --config.workdir at a "
                "place that can be written"
            ) from error
        needed = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
        if "://" in str(self.directory):
            return
        if (free := shutil.disk_usage(self.directory).free) < needed:
            raise OSError(
                f"a checkpoint takes {needed / 2**30:.2f} GiB, and {self.directory} has room for "
                f"{free / 2**30:.2f} GiB; make room there, or point --config.workdir elsewhere"
            )

    def save(self, state: TrainState, meta: dict) -> None:
        """Starts saving in the background; the previous save is awaited first.

        Raises OSError (disk full, read-only) when this save or the previous one fails: the training state in memory
        and the checkpoints before stay as they are, and may be saved again.
        """
        self.wait()
        if self._manager is None:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._open()
        train = {
            "step": state.step,
            "params": state.params,
            "opt": state.opt,
            "skipped": state.skipped,
        }
        self._saving = int(state.step)
        with self._told():
            self._manager.save(
                self._saving,
                args=ocp.args.Composite(
                    train=ocp.args.StandardSave(train),
                    ema=ocp.args.StandardSave(state.ema),
                    meta=ocp.args.JsonSave({"format": FORMAT, "versions": versions(), **meta}),
                ),
            )

    def wait(self) -> None:
        """Until everything is on disk. Raises OSError as `save` does."""
        if self._saving is None:
            return
        with self._told():
            self._manager.wait_until_finished()
        step, self._saving = self._saving, None
        if jax.process_index() == 0:
            _note_sizes(self.directory / str(step))

    @contextlib.contextmanager
    def _told(self):
        """What goes wrong in a save is an OSError with the place; the next save starts anew."""
        try:
            yield
        except Exception as error:  # orbax and tensorstore have many types for a full disk
            step, self._saving = self._saving, None
            self._open()
            raise OSError(
                f"{self.directory}: the checkpoint of step {step} was not written: {error}. Those before it "
                "are whole: make room, or make it writable, and start again"
            ) from error

    def restore(self, abstract: TrainState) -> TrainState:
        """The newest training state that can be read, placed as the abstract state's shardings say.

        Damaged checkpoints are put aside (renamed), so that their steps can be saved again.

        Raises ValueError with sorted lists where the checkpoint's tree is another one, FileNotFoundError if none can
        be read.
        """
        state = self._first_that_reads(lambda step: self._state(step, abstract))
        if self._keep is not None and self._damaged:
            self._put_aside()
        return state

    def _state(self, step: int, abstract: TrainState) -> TrainState:
        train = {
            "step": abstract.step,
            "params": abstract.params,
            "opt": abstract.opt,
            "skipped": abstract.skipped,
        }
        saved = self._manager.item_metadata(step)
        check_tree(saved["train"].tree, train, f"{self.directory}/{step}")
        found = self._manager.restore(
            step,
            args=ocp.args.Composite(
                train=ocp.args.StandardRestore(train), ema=ocp.args.StandardRestore(abstract.ema)
            ),
        )
        return TrainState(ema=found.ema, **found.train)

    def _first_that_reads(self, read: Callable[[int], Any]) -> Any:
        while (step := self.latest()) is not None:
            try:
                found, error = read(step), None
            except OtherModelError:
                raise
            except Exception as failed:  # whatever orbax and tensorstore say of damaged files
                error = failed
            if all_hosts_agree(error is None):
                return found
            self._pass_over(step, error or "another process cannot read it")
        raise FileNotFoundError(f"no checkpoint that can be read in {self.directory}")

    def _put_aside(self) -> None:
        if jax.process_index() == 0:
            for step in self._damaged:
                aside = self.directory / f"{step}.damaged"
                if aside.exists():
                    aside.rmtree()
                (self.directory / str(step)).rename(aside)
        all_hosts_agree(True)  # nobody looks before
        self._damaged.clear()
        self._open()

    def meta(self) -> dict:
        """The newest checkpoint's JSON. Raises FileNotFoundError, or ValueError for a newer format."""
        if (step := self.latest()) is None:
            raise FileNotFoundError(f"no checkpoint in {self.directory}")
        meta = self._manager.restore(
            step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
        ).meta
        if meta["format"] > FORMAT:
            raise ValueError(
                f"{self.directory}: checkpoint format {meta['format']} is newer than this etcvla reads "
                f"({FORMAT}); update etcvla"
            )
        return meta

    def ema_shapes(self) -> Any:
        """Shapes of the newest EMA parameters, a tree of ShapeDtypeStruct."""
        return self._first_that_reads(
            lambda step: jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
                self._manager.item_metadata(step)["ema"].tree,
            )
        )

    def ema(self, abstract: Any) -> Any:
        """The newest EMA parameters that can be read, placed as `abstract` (ShapeDtypeStructs with shardings) says.

        Raises ValueError with sorted lists where the checkpoint's tree is another one.
        """

        def read(step):
            check_tree(self._manager.item_metadata(step)["ema"].tree, abstract, str(self.directory))
            return self._manager.restore(
                step, args=ocp.args.Composite(ema=ocp.args.StandardRestore(abstract))
            ).ema

        return self._first_that_reads(read)


def _absolute(path: epath.Path) -> epath.Path:
    """What orbax asks for. `resolve` would make a local path of a bucket's: gs://b is $PWD/gs:/b to it."""
    return path if "://" in str(path) else path.resolve()


def _note_sizes(folder: epath.Path) -> None:
    """Writes the sizes of a finished checkpoint's files beside them."""
    sizes = {str(path.relative_to(folder)): path.stat().length for path in _walk(folder)}
    temporary = folder / f"{_FILES}.tmp"
    temporary.write_text(json.dumps(sizes))
    temporary.rename(folder / _FILES)


def _walk(folder: epath.Path) -> Iterator[epath.Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


class OtherModelError(ValueError):
    """A checkpoint of another model than the one that asks for it."""


def check_tree(found: Any, expected: Any, where: str) -> None:
    """Raises ValueError listing parameters that are missing, extra or of another shape in `found`."""
    found, expected = _shapes(found), _shapes(expected)
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    other = sorted(
        f"{k} {list(found[k])} instead of {list(expected[k])}"
        for k in found.keys() & expected.keys()
        if found[k] != expected[k]
    )
    if missing or extra or other:
        raise OtherModelError(
            f"{where} holds another model.\n  missing: {missing}\n  extra: {extra}\n  misshapen: "
            f"{other}"
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))[0]
    return {
        path_str(path): tuple(np.shape(leaf) if not hasattr(leaf, "shape") else leaf.shape)
        for path, leaf in leaves
    }
