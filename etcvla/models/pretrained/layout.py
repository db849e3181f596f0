"""How parameters of ours lie in a file: which tensor holds which slice, in which order of axes.

A format is a list of `ParamEntry`. It serves both ways: reading and writing go through the same view of our array, whose
elements, in C order, are the tensor's bytes in the file. So both run piece by piece, without a copy of anything large.

Axis letters as in `etcvla.models.ops`; F is an MLP's width, I image tokens, V the vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO, Protocol

import numpy as np
from etils import epath

CHUNK = 16 << 20  # bytes that are in memory beside the arrays
Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class ParamEntry:
    """One tensor of a file.

    Args:
      name: in the file.
      path: of our parameter, `llm/layers/mlp/linear`.
      index: which slice of our parameter; () for all of it.
      pattern: the file's axes and ours, "(n h) d -> n d h": brackets join axes. "" where they are the same.
    """

    name: str
    path: str
    index: tuple[int, ...] = ()
    pattern: str = ""

    def view(self, leaf: np.ndarray) -> np.ndarray:
        """Our slice with the file's order of axes, those in brackets still apart."""
        leaf = leaf[self.index]
        if not self.pattern:
            return leaf
        file, ours = self.pattern.split(" -> ")
        return leaf.transpose([ours.split().index(axis) for axis in re.findall(r"\w+", file)])

    def file_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The tensor's shape in the file, of our parameter's shape."""
        sizes = iter(self.view(np.broadcast_to(np.int8(0), shape)).shape)
        if not self.pattern:
            return tuple(sizes)
        groups = re.findall(r"\([^)]*\)|\w+", self.pattern.split(" -> ")[0])
        return tuple(math.prod(next(sizes) for _ in group.split()) for group in groups)


class Tensor(Protocol):
    """One tensor of a checkpoint, not yet read."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def read_into(self, view: np.ndarray) -> None:
        """Fills the view with the tensor's first elements, cast to its dtype."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What lies at a path, not yet read.

    Args:
      tensors: by the names that `entries` uses.
      sizes: fields of our config that it tells, `vlm.width` and the like.
      entries: shapes of our parameters -> what of them this kind of checkpoint holds.
      actual: names in the file, where they are others.
      padding: rows that the embedding table may have beyond the vocabulary.
    """

    path: epath.Path
    format: str
    tensors: Mapping[str, Tensor]
    sizes: Mapping[str, float | int | None]
    entries: Callable[[Shapes], list[ParamEntry]]
    actual: Mapping[str, str] = dataclasses.field(default_factory=dict)
    padding: int = 0


@dataclasses.dataclass(frozen=True)
class DecoderLayout:
    """A `Tensor` whose elements lie one after another in a file.

    Args:
      open: gives the file at the tensor's first byte.
      fortran: the first axis is the fastest.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    open: Callable[[], BinaryIO]
    fortran: bool = False

    def read_into(self, view: np.ndarray) -> None:
        with self.open() as file:
            _fill(view.T if self.fortran else view, file, self.dtype)

    def same_as(self, other: DecoderLayout) -> bool:
        """Whether both hold the same numbers."""
        if self is other:
            return True
        if (self.shape, self.dtype) != (other.shape, other.dtype):
            return False
        with self.open() as a, other.open() as b:
            sizes = [CHUNK] * (math.prod(self.shape) * self.dtype.itemsize // CHUNK)
            rest = math.prod(self.shape) * self.dtype.itemsize % CHUNK
            return all(a.read(size) == b.read(size) for size in (*sizes, rest))


def _fill(view: np.ndarray, file: BinaryIO, dtype: np.dtype) -> None:
    for part in pieces(view, dtype.itemsize):
        data = file.read(part.size * dtype.itemsize)
        part[...] = np.frombuffer(data, dtype).reshape(part.shape)


def pieces(view: np.ndarray, itemsize: int):
    """Sub-arrays of at most `CHUNK` bytes that, one after another, are the view in C order."""
    if view.size * itemsize <= CHUNK:
        yield view
        return
    rows = len(view) * CHUNK // (view.size * itemsize)
    for start in range(0, len(view), max(rows, 1)):
        yield from [view[start : start + rows]] if rows else pieces(view[start], itemsize)


def write(view: np.ndarray, file: BinaryIO) -> None:
    """Appends the view's elements in C order."""
    for part in pieces(view, view.dtype.itemsize):
        file.write(part.tobytes())


# Where the sizes of a model show in its parameters: (field of the config, parameter, axis).
_GEMMA = (
    ("width", "attn/q_einsum{}/w", 2),
    ("depth", "attn/q_einsum{}/w", 0),
    ("mlp_dim", "mlp{}/linear", 1),
    ("num_heads", "attn/q_einsum{}/w", 1),
    ("num_kv_heads", "attn/kv_einsum{}/w", 2),
    ("head_dim", "attn/q_einsum{}/w", 3),
)
_BLOCK = "img/Transformer/encoderblock"
_SIZES = (
    ("siglip.width", "img/embedding/kernel", 3),
    ("siglip.depth", f"{_BLOCK}/LayerNorm_0/scale", 0),
    ("siglip.num_heads", f"{_BLOCK}/MultiHeadDotProductAttention_0/query/kernel", 2),
    ("siglip.mlp_dim", f"{_BLOCK}/MlpBlock_0/Dense_0/kernel", 2),
    ("siglip.patch", "img/embedding/kernel", 0),
    *(
        (f"{stream}.{field}", "llm/layers/" + path.format(suffix), axis)
        for stream, suffix in (("vlm", ""), ("expert", "_1"))
        for field, path, axis in _GEMMA
    ),
    ("vocab_size", "llm/embedder/input_embedding", 0),
    ("state_dim", "state_proj/kernel", 0),
    ("action_dim", "action_out_proj/kernel", 1),
)


def sizes_of(shapes: Shapes) -> dict[str, int]:
    """The fields of a `VLAConfig` that the shapes of (some of) its parameters tell, `vlm.width` and the like."""
    return {
        field: shapes[path][axis]
        for field, path, axis in _SIZES
        if len(shapes.get(path, ())) > axis
    }
