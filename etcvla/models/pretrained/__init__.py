"""Released weights in and out: PaliGemma from Hugging Face and big_vision, pi0 and pi0.5 from openpi.

What lies at a path is found out by looking. Loading is strict: of the parameters that this kind of checkpoint has, none
may be missing, none left over, none of another shape. What it never has (the action expert, of a PaliGemma) is for the
caller to make, and reported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from etcvla.models.lora import merge
from etcvla.models.pretrained import big_vision, hugging_face, openpi
from etcvla.models.pretrained.layout import Checkpoint, ParamEntry, Shapes
from etcvla.models.siglip import resize_positions
from etcvla.models.vla import VLA, VLAConfig, init_params

log = logging.getLogger(__name__)
_POSITIONS, _EMBEDDING = "img/pos_embedding", "llm/embedder/input_embedding"
_SHOWN = 20  # names of a list in an error


class MismatchError(ValueError):
    """A checkpoint that does not fit the model; `missing`, `extra` and `misshapen` are the whole sorted lists."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        sizes: list[str],
        missing: list[str],
        extra: list[str],
        misshapen: list[str],
    ):
        self.missing, self.extra, self.misshapen = missing, extra, misshapen
        lines = [f"{checkpoint.path} ({checkpoint.format}) does not fit the model."]
        lines += [f"  sizes: {', '.join(sizes)}"] if sizes else []
        lines += [
            f"  {name}: {_shown(found)}"
            for name, found in (("missing", missing), ("extra", extra), ("misshapen", misshapen))
        ]
        super().__init__("\n".join(lines))


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more if names else "none"


@dataclasses.dataclass(frozen=True)
class Found:
    """What `load` found: parameters (paths and shapes) that were loaded, and those that this kind never has."""

    path: str
    format: str
    loaded: Shapes
    fresh: Shapes
    notes: tuple[str, ...]  # what was made to fit

    def __str__(self) -> str:
        lines = [f"{self.path} ({self.format}): {_count(self.loaded)} loaded"]
        if self.fresh:
            modules = sorted({path.rsplit("/", 1)[0] for path in self.fresh})
            lines.append(
                f"fresh, as this kind of checkpoint never has them: {_count(self.fresh)}: "
                f"{', '.join(modules)}"
            )
        return "\n  ".join([*lines, *self.notes])


def _count(shapes: Shapes) -> str:
    return f"{sum(map(math.prod, shapes.values())):,} parameters in {len(shapes)} arrays"


def find(path: epath.PathLike) -> Checkpoint | None:
    """The released checkpoint at a path, not yet read, or None if there is none.

    Raises ValueError or FileNotFoundError for one that is not whole.
    """
    path = epath.Path(path).expanduser()
    if path.suffix == ".npz" and path.exists():
        return big_vision.open_checkpoint(path)
    if (path / hugging_face.MODEL).exists() or (path / hugging_face.INDEX).exists():
        return hugging_face.open_checkpoint(path)
    folder = openpi.find(path)
    return folder and openpi.open_checkpoint(folder)


def load(path: epath.PathLike, config: VLAConfig, dtype: Any = np.float32) -> tuple[dict, Found]:
    """Reads a checkpoint's parameters into host memory, piece by piece.

    Args:
      path: a Hugging Face directory, a big_vision .npz, or openpi's `params` directory (or what holds it).
      config: the model's, whose parameters these must be.
      dtype: of all parameters.

    Returns: the tree of those parameters that this kind of checkpoint has, and a report.
    Raises FileNotFoundError if nothing is there, MismatchError if it is another model's.
    """
    checkpoint = find(path)
    if checkpoint is None:
        raise FileNotFoundError(
            f"{path} holds no released checkpoint: expected a directory with "
            f"{hugging_face.MODEL} (or its index), an .npz, or openpi's params"
        )
    shapes = parameter_shapes(config)
    entries = checkpoint.entries(shapes)
    notes = _check(checkpoint, entries, shapes, config)
    leaves = {}
    for entry in sorted(entries, key=lambda entry: -math.prod(shapes[entry.path])):
        _read(checkpoint, entry, leaves, shapes, np.dtype(dtype))
    fresh = {path: shape for path, shape in shapes.items() if path not in leaves}
    found = Found(
        str(checkpoint.path),
        checkpoint.format,
        {path: shapes[path] for path in leaves},
        fresh,
        notes,
    )
    log.info("%s", found)
    return unflatten_dict(leaves, sep="/"), found


def parameter_shapes(config: VLAConfig) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter of the model."""
    tree = jax.eval_shape(functools.partial(init_params, VLA(config)))
    return {path: leaf.shape for path, leaf in flatten_dict(tree, sep="/").items()}


def _check(
    checkpoint: Checkpoint, entries: list[ParamEntry], shapes: Shapes, config: VLAConfig
) -> tuple[str, ...]:
    """Raises MismatchError unless all is there, nothing else is, and shapes are as expected; returns what is not."""
    tensors, names = checkpoint.tensors, {entry.name for entry in entries}
    notes, misshapen = [], []
    for entry in entries:
        found = tensors[entry.name].shape if entry.name in tensors else None
        expected = entry.file_shape(shapes[entry.path])
        if found in (None, expected):
            continue
        note = _fits(entry.path, found, expected, checkpoint.padding)
        (notes if note else misshapen).append(
            f"{entry.path} ({checkpoint.actual.get(entry.name, entry.name)}): "
            + (note or f"{list(found)} instead of {list(expected)}")
        )
    missing = sorted(
        f"{entry.path} ({entry.name})" for entry in entries if entry.name not in tensors
    )
    extra = sorted(checkpoint.actual.get(name, name) for name in tensors.keys() - names)
    other = [
        f"{field} {value} instead of {_size(config, field)}"
        for field, value in checkpoint.sizes.items()
        if value != _size(config, field) and field != "siglip.image_size"
    ]
    if missing or extra or misshapen or other:
        raise MismatchError(checkpoint, other, missing, extra, sorted(misshapen))
    return tuple(notes)


def _size(config: VLAConfig, field: str) -> float | None:
    """A field of the config, "vlm.width"; None where the model has no such part."""
    value = functools.reduce(
        lambda part, name: part and getattr(part, name), field.split("."), config
    )
    return config.vlm.head_dim if field == "vlm.query_pre_attn_scalar" and not value else value


def _fits(path: str, found: tuple[int, ...], expected: tuple[int, ...], padding: int) -> str:
    """How a tensor of another shape is made to fit, "" if it is not."""
    if path == _EMBEDDING and found == (expected[0] + padding, expected[1]):
        return f"its last {padding} rows, which pad the vocabulary, were left out"
    if path == _POSITIONS and found[-1:] == expected[-1:] and len(found) == len(expected):
        tokens = found[-2]
        return (
            f"resized from {tokens} to {expected[-2]} image tokens"
            if math.isqrt(tokens) ** 2 == tokens
            else ""
        )
    return ""


def _read(
    checkpoint: Checkpoint,
    entry: ParamEntry,
    leaves: dict[str, np.ndarray],
    shapes: Shapes,
    dtype: np.dtype,
) -> None:
    tensor, shape = checkpoint.tensors[entry.name], shapes[entry.path]
    if entry.path == _POSITIONS:
        found = np.empty((1, *tensor.shape[-2:]), dtype)
        tensor.read_into(entry.view(found))
        leaves[entry.path] = resize_positions(found, shape[1])
        return
    if entry.path not in leaves:
        leaves[entry.path] = np.empty(shape, dtype)
    tensor.read_into(entry.view(leaves[entry.path]))


def export_hugging_face(
    params: Mapping,
    config: VLAConfig,
    directory: epath.PathLike,
    tokenizer_dir: epath.PathLike | None = None,
    *,
    shard_bytes: int = 5 << 30,
) -> None:
    """Writes the vision-language model as a directory that transformers' PaliGemmaForConditionalGeneration loads.

    Args:
      params: ours, whole; adapters are merged and the expert is left out. Written in their own dtype.
      tokenizer_dir: where the tokenizer's and processor's files are copied from.
      shard_bytes: a file's size, at which the next begins.

    Raises FileExistsError if the directory is there.
    """
    with _new_directory(directory) as folder:
        hugging_face.export(
            merge(params, config.adapters),
            config,
            folder,
            tokenizer_dir and epath.Path(tokenizer_dir),
            shard_bytes,
        )


def export_openpi(
    params: Mapping,
    config: VLAConfig,
    directory: epath.PathLike,
    norm_stats: Mapping[str, Mapping[str, Mapping]] | None = None,
) -> None:
    """Writes a checkpoint that openpi's pi0 (or pi0.5) takes: `params`, and `assets/<name>/norm_stats.json`.

    Args:
      params: ours, whole; adapters are merged.
      norm_stats: asset name -> {"state" and "actions": {"mean", "std", "q01", "q99": float[A]}}.

    Raises ValueError for a model that openpi does not have, FileExistsError if the directory is there.
    """
    with _new_directory(directory) as folder:
        openpi.export(merge(params, config.adapters), config, folder, norm_stats or {})


@contextlib.contextmanager
def _new_directory(directory: epath.PathLike) -> Iterator[epath.Path]:
    """A directory that is there whole or not at all."""
    target = epath.Path(directory).expanduser()
    target = (
        target if "://" in str(target) else target.resolve()
    )  # which would make a local path of a bucket's
    if target.exists():
        raise FileExistsError(f"{target} is there already; remove it or give another directory")
    partial = target.with_name(f"{target.name}.partial")
    if partial.exists():  # of an export that was killed
        partial.rmtree()
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        partial.rmtree()
        raise
    partial.rename(target)
