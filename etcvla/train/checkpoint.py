"""Checkpoints by orbax: the training state, the EMA that others take, and all that a policy needs beside it.

A checkpoint holds three items: `train` (step, params, optimizer), `ema` (what the next stage and the policy read) and
`meta` (JSON: config, model, assets, lineage, versions). Orbax writes to a temporary name and renames, so a killed save
leaves the one before it.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

import etcvla
from etcvla.rules import path_str
from etcvla.train.step import TrainState

FORMAT = 1
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain")


def versions() -> dict[str, str]:
    """Of the packages that a run's numbers depend on."""
    return {"etcvla": etcvla.__version__, **{name: importlib.metadata.version(name) for name in _PACKAGES}}


@dataclasses.dataclass
class Checkpoints:
    """The checkpoints of one workdir.

    Args:
      keep: how many of them a run that saves keeps. None reads only: what another process is saving is left alone.
    """

    workdir: epath.PathLike
    keep: int | None = None

    def __post_init__(self):
        self.directory = epath.Path(self.workdir).resolve() / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=self.keep, create=False,
                                               cleanup_tmp_directories=self.keep is not None)
        handlers = {"train": ocp.StandardCheckpointHandler(), "ema": ocp.StandardCheckpointHandler(),
                    "meta": ocp.JsonCheckpointHandler()}
        self._manager = (ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)
                         if self.directory.exists() else None)

    def latest(self) -> int | None:
        """The newest complete checkpoint's step."""
        return self._manager.latest_step() if self._manager else None

    def save(self, state: TrainState, meta: dict) -> None:
        """Starts saving in the background; the previous save is awaited first.

        Raises OSError (disk full, read-only) when a save fails: the training state in memory stays intact.
        """
        if self._manager is None:
            self.directory.mkdir(parents=True, exist_ok=True)
            self.__post_init__()
        train = {"step": state.step, "params": state.params, "opt": state.opt}
        self._manager.save(int(state.step), args=ocp.args.Composite(
            train=ocp.args.StandardSave(train), ema=ocp.args.StandardSave(state.ema),
            meta=ocp.args.JsonSave({"format": FORMAT, "versions": versions(), **meta})))

    def wait(self) -> None:
        """Until everything is on disk."""
        if self._manager:
            self._manager.wait_until_finished()

    def restore(self, abstract: TrainState) -> TrainState:
        """The newest training state, placed as the abstract state's shardings say."""
        train = {"step": abstract.step, "params": abstract.params, "opt": abstract.opt}
        found = self._manager.restore(self.latest(), args=ocp.args.Composite(
            train=ocp.args.StandardRestore(train), ema=ocp.args.StandardRestore(abstract.ema)))
        return TrainState(ema=found.ema, **found.train)

    def meta(self) -> dict:
        """The newest checkpoint's JSON. Raises FileNotFoundError, or ValueError for a newer format."""
        if self.latest() is None:
            raise FileNotFoundError(f"no checkpoint in {self.directory}")
        meta = self._manager.restore(self.latest(), args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
        if meta["format"] > FORMAT:
            raise ValueError(f"{self.directory}: checkpoint format {meta['format']} is newer than this etcvla reads "
                             f"({FORMAT}); update etcvla")
        return meta

    def ema(self, abstract: Any) -> Any:
        """The newest EMA parameters, placed as `abstract` (a tree of ShapeDtypeStruct with shardings) says.

        Raises ValueError with sorted lists where the checkpoint's tree is another one.
        """
        saved = self._manager.item_metadata(self.latest())["ema"].tree
        check_tree(saved, abstract, str(self.directory))
        return self._manager.restore(self.latest(), args=ocp.args.Composite(
            ema=ocp.args.StandardRestore(abstract))).ema


def check_tree(found: Any, expected: Any, where: str) -> None:
    """Raises ValueError listing parameters that are missing, extra or of another shape in `found`."""
    found, expected = _shapes(found), _shapes(expected)
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    other = sorted(f"{k} {list(found[k])} instead of {list(expected[k])}" for k in found.keys() & expected.keys()
                   if found[k] != expected[k])
    if missing or extra or other:
        raise ValueError(f"{where} holds another model.\n  missing: {missing}\n  extra: {extra}\n  misshapen: {other}")


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))[0]
    return {path_str(path): tuple(np.shape(leaf) if not hasattr(leaf, "shape") else leaf.shape)
            for path, leaf in leaves}
