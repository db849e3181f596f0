"""Save and read checkpoints, with orbax.

The checkpoints of a run are the folders `<workdir>/checkpoints/<step>`. Each holds three items:

- train: the step, the parameters and the state of the optimizer;
- ema: the moving average of the parameters, which the next stage and the policy read;
- meta: JSON with the config, the model, the assets, the lineage and the package versions.

Orbax writes to a temporary name and renames the finished folder, so a run that is killed while it
saves leaves the previous checkpoint intact. `files.json` records the sizes of a finished
checkpoint's files; a checkpoint whose files changed since then is damaged, and reading falls back
to the one before it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from etcvla.errors import UserError
from etcvla.files import write_atomically
from etcvla.provenance import run_versions
from etcvla.rules import path_str
from etcvla.train.hosts import all_hosts_agree
from etcvla.train.state import TrainState

log = logging.getLogger(__name__)
T = TypeVar("T")

FORMAT = 1
_SIZES_FILE = "files.json"


class ModelMismatchError(UserError):
    """The parameters of a checkpoint are not those of the model."""


class SavedCheckpoint:
    """A finished checkpoint on disk. Get one from `open_checkpoint` or `find_checkpoint`.

    If its arrays turn out to be damaged while they are read, this object moves on to the checkpoint
    before it and logs a warning.

    Args:
      folders: candidates, newest first; the first one is intact as far as the sizes of its files
        show.
    """

    def __init__(self, folders: Sequence[epath.Path]):
        self._folders = folders

    @property
    def folder(self) -> epath.Path:
        """The checkpoint's own folder, `<workdir>/checkpoints/<step>`."""
        return self._folders[0]

    @property
    def workdir(self) -> epath.Path:
        """The workdir of the run that saved it."""
        return self.folder.parent.parent

    @property
    def step(self) -> int:
        """The number of training steps before it was saved."""
        return int(self.folder.name)

    def meta(self) -> dict[str, Any]:
        """Return the checkpoint's JSON. Raises UserError if its format is newer than ours."""
        meta = json.loads((self.folder / "meta" / "metadata").read_text())
        if meta["format"] > FORMAT:
            raise UserError(
                f"{self.folder}: checkpoint format {meta['format']} is newer than this version of "
                f"etcvla reads ({FORMAT}); update etcvla"
            )
        return meta

    def ema_shapes(self) -> Any:
        """Return the shapes of the EMA parameters, a tree of ShapeDtypeStruct."""
        return self._read(_ema_shapes)

    def ema(self, abstract: Any) -> Any:
        """Read the EMA parameters.

        Args:
          abstract: ShapeDtypeStructs with the shardings that the arrays get.

        Raises ModelMismatchError with sorted lists if the trees differ, UserError if nothing is
        readable.
        """
        return self._read(lambda folder: _read_item(folder / "ema", abstract))

    def train_state(self, abstract: TrainState) -> TrainState:
        """Read the whole training state, with the shardings of `abstract`. Raises as `ema`."""

        def _read_state(folder: epath.Path) -> TrainState:
            train = _read_item(folder / "train", _train_item(abstract))
            ema = _read_item(folder / "ema", abstract.ema)
            return abstract.replace(ema=ema, **train)

        return self._read(_read_state)

    def content_hash(self) -> str:
        """Return the SHA-256 of what a policy reads: the file names and bytes of ema and meta."""
        digest = hashlib.sha256()
        files = [*_files(self.folder / "ema"), *_files(self.folder / "meta")]
        for path in sorted(files):
            digest.update(f"{path.relative_to(self.folder)}\n".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 24):
                    digest.update(block)
        return digest.hexdigest()

    def _read(self, read: Callable[[epath.Path], T]) -> T:
        """Return `read(folder)` for the newest folder that all processes can read."""
        directory = self.folder.parent
        while self._folders:
            error = None
            try:
                value = read(self.folder)
            except ModelMismatchError:
                raise
            except Exception as failure:  # orbax and tensorstore raise many types for damaged files
                error = failure
            if all_hosts_agree(error is None):
                return value
            _warn_of_damage(self.folder, error or "another process cannot read it")
            self._folders = _skip_damaged(self._folders[1:])
        raise UserError(f"no readable checkpoint in {directory}; train again from the start")


def find_checkpoint(path: epath.PathLike) -> SavedCheckpoint | None:
    """Return the checkpoint at a path, or None if there is none.

    Args:
      path: a workdir, for its newest intact checkpoint, or the folder of one checkpoint in a
        workdir, `<workdir>/checkpoints/<step>`. Local, or a bucket's URL.

    Raises UserError for a bucket that does not answer.
    """
    path = _absolute(path)
    if path.name.isdigit() and path.parent.name == "checkpoints":
        directory = path.parent
    else:
        directory = path / "checkpoints"
    try:
        folders = ocp.utils.checkpoint_steps_paths(directory)
    except Exception as error:  # clients of buckets raise many types
        raise UserError(f"{directory} cannot be reached: {error}") from error
    folders = [folder for folder in folders if folder.name.isdigit()]
    if directory == path.parent:
        folders = [folder for folder in folders if folder.name == path.name]
    folders.sort(key=lambda folder: int(folder.name), reverse=True)
    intact = _skip_damaged(folders)
    return SavedCheckpoint(intact) if intact else None


def open_checkpoint(path: epath.PathLike) -> SavedCheckpoint:
    """Return the checkpoint at a path, as `find_checkpoint`. Raises UserError if there is none."""
    checkpoint = find_checkpoint(path)
    if checkpoint is None:
        raise UserError(
            f"no checkpoint in {path}: expected the workdir of a training run that has saved one, "
            "or a folder <workdir>/checkpoints/<step>"
        )
    return checkpoint


class CheckpointWriter:
    """Saves the checkpoints of a run, in the background.

    Opening one deletes the unfinished checkpoints that a killed run left behind.

    Args:
      keep: the number of newest checkpoints to keep.
      keep_every: also keep checkpoints this many steps apart forever; 0 for none.
    """

    def __init__(self, workdir: epath.PathLike, keep: int, keep_every: int = 0):
        self.directory = _absolute(workdir) / "checkpoints"
        self._keep = keep
        self._keep_every = keep_every
        self._saving: int | None = None  # step of the checkpoint that is being written
        self._open()

    def _open(self) -> None:
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=self._keep,
                keep_period=self._keep_every or None,
                cleanup_tmp_directories=True,
            ),
        )

    def save(self, state: TrainState, meta: Mapping[str, Any]) -> None:
        """Start to save, after the previous save has finished.

        Raises UserError (disk full, read-only) if this save or the previous one fails. The training
        state and the earlier checkpoints stay intact then, and `save` may be called again.
        """
        self.wait()
        self._saving = int(state.step)
        meta = {"format": FORMAT, "versions": run_versions(), **meta}
        with self._explain_failure():
            self._manager.save(
                self._saving,
                args=ocp.args.Composite(
                    train=ocp.args.StandardSave(_train_item(state)),
                    ema=ocp.args.StandardSave(state.ema),
                    meta=ocp.args.JsonSave(meta),
                ),
            )

    def wait(self) -> None:
        """Wait until everything is on disk. Raises UserError as `save`."""
        if self._saving is None:
            return
        with self._explain_failure():
            self._manager.wait_until_finished()
        if jax.process_index() == 0:
            _record_sizes(self.directory / str(self._saving))
        self._saving = None

    @contextlib.contextmanager
    def _explain_failure(self) -> Iterator[None]:
        """Raise UserError, which names the directory, if a save fails; prepare the next save."""
        try:
            yield
        except Exception as error:  # orbax and tensorstore raise many types for a full disk
            step = self._saving
            self._saving = None
            self._open()
            raise UserError(
                f"{self.directory}: the checkpoint of step {step} was not written: {error}. "
                "Earlier checkpoints are intact: make room or make the directory writable, and "
                "start again"
            ) from error


def check_writable(workdir: epath.PathLike, state: TrainState) -> None:
    """Write a small file, and check that the disk has room for a checkpoint of this state's shapes.

    Raises UserError naming the directory.
    """
    directory = _absolute(workdir) / "checkpoints"
    probe = directory / f".probe_{jax.process_index()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.write_text("written")
        probe.unlink()
    except Exception as error:  # clients of buckets raise many types
        raise UserError(
            f"cannot write checkpoints to {directory}: {error}. Set --config.workdir to a writable "
            "directory"
        ) from error
    if "://" in str(directory):
        return
    needed = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise UserError(
            f"a checkpoint takes {needed / 2**30:.2f} GiB, but {directory} has room for "
            f"{free / 2**30:.2f} GiB; make room, or set --config.workdir to another disk"
        )


def set_aside_newer(workdir: epath.PathLike, step: int) -> None:
    """Rename checkpoints after `step` to `<step>.damaged`, so that their steps can be saved again.

    Every process of a run calls it, with the step that training starts from.
    """
    directory = _absolute(workdir) / "checkpoints"
    if jax.process_index() == 0:
        for folder in ocp.utils.checkpoint_steps_paths(directory):
            if not folder.name.isdigit() or int(folder.name) <= step:
                continue
            target = directory / f"{folder.name}.damaged"
            if target.exists():
                target.rmtree()
            folder.rename(target)
    all_hosts_agree(True)  # the other processes wait for process 0


def check_tree(saved: Any, expected: Any, source: str, fix: str = "") -> None:
    """Raise ModelMismatchError if parameters are missing, extra or of another shape in `saved`.

    Args:
      source: where `saved` is from, for the message.
      fix: what the user can do, for the message.
    """
    saved_shapes = _shapes(saved)
    expected_shapes = _shapes(expected)
    missing = sorted(expected_shapes.keys() - saved_shapes.keys())
    extra = sorted(saved_shapes.keys() - expected_shapes.keys())
    wrong_shape = []
    for name in sorted(saved_shapes.keys() & expected_shapes.keys()):
        if saved_shapes[name] != expected_shapes[name]:
            wrong_shape.append(f"{name} {saved_shapes[name]} instead of {expected_shapes[name]}")
    if missing or extra or wrong_shape:
        raise ModelMismatchError(
            f"{source} has the parameters of another model.\n"
            f"  missing: {missing}\n  extra: {extra}\n  wrong shape: {wrong_shape}\n{fix}".rstrip()
        )


def _shapes(tree: Any) -> dict[str, list[int]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {path_str(path): list(np.shape(leaf)) for path, leaf in leaves}


def _train_item(state: TrainState) -> dict[str, Any]:
    item = {
        "step": state.step,
        "params": state.params,
        "opt": state.opt,
        "skipped": state.skipped,
    }
    if state.start_rows is not None:
        item["start_rows"] = state.start_rows
    return item


def _read_item(folder: epath.Path, abstract: Any) -> Any:
    handler = ocp.StandardCheckpointHandler()
    check_tree(handler.metadata(folder).tree, abstract, str(folder))
    return handler.restore(folder, args=ocp.args.StandardRestore(abstract))


def _ema_shapes(folder: epath.Path) -> Any:
    tree = ocp.StandardCheckpointHandler().metadata(folder / "ema").tree
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def _skip_damaged(folders: Sequence[epath.Path]) -> Sequence[epath.Path]:
    """Drop damaged checkpoints from the start of a list, up to the first intact one."""
    for index, folder in enumerate(folders):
        damage = _damage(folder)
        if not damage:
            return folders[index:]
        _warn_of_damage(folder, damage)
    return []


def _damage(folder: epath.Path) -> str:
    """Describe which files of a checkpoint changed since it was written; "" if none did."""
    sizes_file = folder / _SIZES_FILE
    changed = []
    try:
        json.loads((folder / "meta" / "metadata").read_text())
        sizes = json.loads(sizes_file.read_text()) if sizes_file.exists() else {}
        for name, size in sizes.items():
            if (folder / name).stat().length != size:
                changed.append(name)
    except (OSError, ValueError) as error:
        return str(error)
    return f"files of another size: {', '.join(changed[:3])}" if changed else ""


def _warn_of_damage(folder: epath.Path, damage: object) -> None:
    log.warning("%s is damaged (%s); using the checkpoint before it", folder, damage)


def _absolute(path: epath.PathLike) -> epath.Path:
    """Return an absolute path, as orbax needs it.

    `resolve` alone would turn the URL gs://b into the local path $PWD/gs:/b.
    """
    path = epath.Path(path)
    return path if "://" in str(path) else path.resolve()


def _record_sizes(folder: epath.Path) -> None:
    """Write the sizes of a finished checkpoint's files next to them."""
    sizes = {str(path.relative_to(folder)): path.stat().length for path in _files(folder)}
    write_atomically(folder / _SIZES_FILE, json.dumps(sizes))


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    """Yield the files in a folder and in the folders below it, sorted by name."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _files(path)
        else:
            yield path
