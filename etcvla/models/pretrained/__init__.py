"""Load and export released weights.

PaliGemma from Hugging Face and big_vision, pi0 and pi0.5 from openpi. The format is detected from
the files. Loading is strict: of the parameters that a kind of checkpoint has, none may be missing,
left over, or of another shape. Parameters that it never has (the action expert, for PaliGemma) are
reported, and the caller initializes them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from etcvla.errors import UserError
from etcvla.models.lora import merge
from etcvla.models.pretrained import big_vision, hugging_face, openpi
from etcvla.models.pretrained.layout import (
    ParamEntry,
    ReleasedCheckpoint,
    Shapes,
    Tensor,
    format_size,
)
from etcvla.models.siglip import resize_positions
from etcvla.models.types import Shape
from etcvla.models.vla import VLA, VLAConfig, init_params

log = logging.getLogger(__name__)
_POSITIONS = "img/pos_embedding"
_EMBEDDING = "llm/embedder/input_embedding"
_MAX_NAMES = 20  # names of a list in an error message


class MismatchError(UserError):
    """A checkpoint does not fit the model. The attributes are complete sorted lists."""

    def __init__(
        self,
        checkpoint: ReleasedCheckpoint,
        sizes: Sequence[str],
        missing: Iterable[str],
        extra: Iterable[str],
        misshapen: Iterable[str],
    ):
        self.missing = sorted(missing)
        self.extra = sorted(extra)
        self.misshapen = sorted(misshapen)
        lines = [f"{checkpoint.path} ({checkpoint.format}) does not fit the model."]
        if sizes:
            lines.append(f"  sizes: {', '.join(sizes)}")
        lines.append(f"  missing: {_shorten(self.missing)}")
        lines.append(f"  extra: {_shorten(self.extra)}")
        lines.append(f"  misshapen: {_shorten(self.misshapen)}")
        super().__init__("\n".join(lines))


def _shorten(names: list[str]) -> str:
    """Join the names, at most `_MAX_NAMES` of them."""
    if not names:
        return "none"
    text = ", ".join(names[:_MAX_NAMES])
    if len(names) > _MAX_NAMES:
        text += f" and {len(names) - _MAX_NAMES} more"
    return text


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What `load` read, as paths and shapes of parameters."""

    path: str
    format: str
    loaded: Shapes
    fresh: Shapes  # parameters that this kind of checkpoint never has
    notes: list[str]  # parameters that were adapted to the model

    def __str__(self) -> str:
        lines = [f"{self.path} ({self.format}): {format_size(self.loaded.values())} loaded"]
        if self.fresh:
            modules = sorted({path.rsplit("/", 1)[0] for path in self.fresh})
            size = format_size(self.fresh.values())
            lines.append(f"fresh, not in this kind of checkpoint: {size}: {', '.join(modules)}")
        return "\n  ".join([*lines, *self.notes])


def find(path: epath.PathLike) -> ReleasedCheckpoint | None:
    """Return the released checkpoint at a path, not yet read, or None if there is none.

    Raises: UserError for an incomplete checkpoint.
    """
    path = epath.Path(path).expanduser()
    if path.suffix == ".npz" and path.exists():
        return big_vision.open_checkpoint(path)
    if (path / hugging_face.MODEL).exists() or (path / hugging_face.INDEX).exists():
        return hugging_face.open_checkpoint(path)
    directory = openpi.find(path)
    return None if directory is None else openpi.open_checkpoint(directory)


def load(path: epath.PathLike, config: VLAConfig) -> tuple[dict, LoadReport]:
    """Read the parameters of a checkpoint into host memory in float32, piece by piece.

    Args:
      path: a Hugging Face directory, an .npz of big_vision, or openpi's `params` or a directory
        with it.
      config: config of the model.

    Returns: the tree of the parameters that this kind of checkpoint has, and a report.
    Raises: UserError if there is no checkpoint, MismatchError if it is of another model.
    """
    checkpoint = find(path)
    if checkpoint is None:
        raise UserError(
            f"{path} holds no released checkpoint: expected a directory with "
            f"{hugging_face.MODEL} (or its index), an .npz, or openpi's params"
        )
    shapes = parameter_shapes(config)
    entries = checkpoint.entries(shapes)
    notes = _check(checkpoint, entries, shapes, config)
    leaves = {}
    # The largest parameters come first, so that reading adds little to the peak of memory.
    for entry in sorted(entries, key=lambda entry: -math.prod(shapes[entry.path])):
        _read(checkpoint.tensors[entry.name], entry, leaves, shapes[entry.path])
    report = LoadReport(
        path=str(checkpoint.path),
        format=checkpoint.format,
        loaded={path: shapes[path] for path in leaves},
        fresh={path: shape for path, shape in shapes.items() if path not in leaves},
        notes=notes,
    )
    log.info("%s", report)
    return unflatten_dict(leaves, sep="/"), report


def parameter_shapes(config: VLAConfig) -> dict[str, Shape]:
    """Return the shape of every parameter of the model, by path."""
    tree = jax.eval_shape(functools.partial(init_params, VLA(config)))
    return {path: leaf.shape for path, leaf in flatten_dict(tree, sep="/").items()}


def _check(
    checkpoint: ReleasedCheckpoint, entries: list[ParamEntry], shapes: Shapes, config: VLAConfig
) -> list[str]:
    """Compare the checkpoint with the model.

    Returns: notes on parameters that will be adapted.
    Raises: MismatchError if any parameter is missing, extra or of another shape, or any size
      differs.
    """
    missing = []
    misshapen = []
    notes = []
    for entry in entries:
        if entry.name not in checkpoint.tensors:
            missing.append(f"{entry.path} ({entry.name})")
            continue
        shape = checkpoint.tensors[entry.name].shape
        expected = entry.file_shape(shapes[entry.path])
        if shape == expected:
            continue
        label = f"{entry.path} ({checkpoint.actual_name(entry.name)})"
        note = _adaptation(entry.path, shape, expected, checkpoint.padding)
        if note:
            notes.append(f"{label}: {note}")
        else:
            misshapen.append(f"{label}: {list(shape)} instead of {list(expected)}")
    unused = checkpoint.tensors.keys() - {entry.name for entry in entries}
    extra = [checkpoint.actual_name(name) for name in unused]
    sizes = _different_sizes(checkpoint, config)
    if sizes or missing or extra or misshapen:
        raise MismatchError(checkpoint, sizes, missing, extra, misshapen)
    return notes


def _different_sizes(checkpoint: ReleasedCheckpoint, config: VLAConfig) -> list[str]:
    """Describe the fields of the config in which the checkpoint differs."""
    expected = flatten_dict(dataclasses.asdict(config), sep=".")
    expected["vlm.query_pre_attn_scalar"] = config.vlm.query_pre_attn_scalar or config.vlm.head_dim
    # The position table can be resized to another image size.
    expected["siglip.image_size"] = checkpoint.sizes.get("siglip.image_size")
    return [
        f"{field} {value} instead of {expected.get(field)}"
        for field, value in checkpoint.sizes.items()
        if value != expected.get(field)
    ]


def _adaptation(path: str, shape: Shape, expected: Shape, padding: int) -> str:
    """Describe how a tensor of another shape is adapted; "" if it cannot be."""
    if path == _EMBEDDING and shape == (expected[0] + padding, expected[1]):
        return f"its last {padding} rows, which pad the vocabulary, are left out"
    is_table = path == _POSITIONS and len(shape) == len(expected) and shape[-1] == expected[-1]
    if is_table and math.isqrt(shape[-2]) ** 2 == shape[-2]:
        return f"resized from {shape[-2]} to {expected[-2]} image tokens"
    return ""


def _read(tensor: Tensor, entry: ParamEntry, leaves: dict[str, np.ndarray], shape: Shape) -> None:
    """Read one tensor into its slice of `leaves`."""
    if entry.path == _POSITIONS:
        table = np.empty((1, *tensor.shape[-2:]), np.float32)
        tensor.read_into(entry.view(table))
        leaves[entry.path] = resize_positions(table, shape[1])
        return
    if entry.path not in leaves:
        leaves[entry.path] = np.empty(shape, np.float32)
    tensor.read_into(entry.view(leaves[entry.path]))


def export_hugging_face(
    params: Mapping,
    config: VLAConfig,
    directory: epath.PathLike,
    tokenizer_dir: epath.PathLike | None = None,
    *,
    shard_bytes: int = 5 << 30,
) -> None:
    """Write the vision-language model for transformers' PaliGemmaForConditionalGeneration.

    Args:
      params: all parameters. Adapters are merged, the expert is left out, and dtypes are kept.
      config: config of the model.
      directory: the directory to create.
      tokenizer_dir: directory from which the files of the tokenizer and the processor are copied.
      shard_bytes: largest size of a file.

    Raises: UserError if the directory exists, or transformers has no such model.
    """
    with new_directory(directory) as folder:
        merged = merge(params, config.adapters)
        tokenizer = None if tokenizer_dir is None else epath.Path(tokenizer_dir)
        hugging_face.export(merged, config, folder, tokenizer, shard_bytes)


def export_openpi(
    params: Mapping,
    config: VLAConfig,
    directory: epath.PathLike,
    norm_stats: Mapping[str, Mapping[str, Mapping]] | None = None,
) -> None:
    """Write a checkpoint for openpi's pi0 (or pi0.5): `params` and `assets/<name>/norm_stats.json`.

    Args:
      params: all parameters. Adapters are merged.
      config: config of the model.
      directory: the directory to create.
      norm_stats: asset name -> {"state" and "actions": {"mean", "std", "q01", "q99": float[A]}}.

    Raises: UserError if the directory exists, or openpi has no such model.
    """
    with new_directory(directory) as folder:
        openpi.export(merge(params, config.adapters), config, folder, norm_stats or {})


@contextlib.contextmanager
def new_directory(directory: epath.PathLike) -> Iterator[epath.Path]:
    """Create a directory that appears only when it is complete."""
    target = epath.Path(directory).expanduser()
    if "://" not in str(target):  # `resolve` would turn a bucket's URL into a local path
        target = target.resolve()
    if target.exists():
        raise UserError(f"{target} exists already; remove it or give another directory")
    partial = target.with_name(f"{target.name}.partial")
    if partial.exists():  # left by an export that was killed
        partial.rmtree()
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        partial.rmtree()
        raise
    partial.rename(target)
