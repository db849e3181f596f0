"""The layout of our parameters in a file: which tensor holds which slice, with which order of axes.

A format is a list of `ParamEntry`. Reading and writing use the same view of our array, whose
elements in C order are the tensor's bytes in the file. Both therefore work piece by piece, without
a copy of anything large.

Axes as in `etcvla.models.types`, in lower case.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import BinaryIO, Protocol

import numpy as np
from etils import epath

from etcvla.models.types import Shape

CHUNK = 16 << 20  # bytes that are in memory at a time, besides the parameters
Shapes = Mapping[str, Shape]  # by path of the parameter
TABLES = tomllib.loads(pathlib.Path(__file__).with_name("tables.toml").read_text())


@dataclasses.dataclass(frozen=True)
class ParamEntry:
    """One tensor of a file.

    Args:
      name: name in the file.
      path: our parameter, e.g. `llm/layers/mlp/linear`.
      index: slice of our parameter; () for all of it.
      pattern: the axes in the file and ours, e.g. "(n h) d -> n d h". Parentheses join axes. "" if
        they are equal.
    """

    name: str
    path: str
    index: Shape = ()
    pattern: str = ""

    def view(self, leaf: np.ndarray) -> np.ndarray:
        """Return our slice with the file's order of axes; joined axes are still separate."""
        leaf = leaf[self.index]
        if not self.pattern:
            return leaf
        file_pattern, our_pattern = self.pattern.split(" -> ")
        our_axes = our_pattern.split()
        return leaf.transpose([our_axes.index(axis) for axis in re.findall(r"\w+", file_pattern)])

    def file_shape(self, shape: Sequence[int]) -> Shape:
        """Return the shape of the tensor in the file, given the shape of our parameter."""
        view_shape = self.view(np.broadcast_to(np.int8(0), shape)).shape
        if not self.pattern:
            return view_shape
        sizes = iter(view_shape)
        file_pattern, _ = self.pattern.split(" -> ")
        file_shape = []
        for group in re.findall(r"\([^)]*\)|\w+", file_pattern):
            file_shape.append(math.prod(next(sizes) for _ in group.split()))
        return tuple(file_shape)


class Tensor(Protocol):
    """One tensor of a checkpoint, not yet read."""

    shape: Shape
    dtype: np.dtype

    def read_into(self, view: np.ndarray) -> None:
        """Fill the view with the first elements of the tensor, cast to the view's dtype."""


@dataclasses.dataclass(frozen=True)
class ReleasedCheckpoint:
    """A checkpoint that has been recognized but not yet read.

    Args:
      path: the file or directory.
      format: name of the format, for messages.
      tensors: tensors by the names that `entries` uses.
      sizes: fields of our config that the checkpoint specifies, such as `vlm.width`.
      entries: function from the shapes of our parameters to the entries that this kind of
        checkpoint has.
      actual: names in the file, where they differ from those of `tensors`.
      padding: number of rows that the embedding table may have beyond the vocabulary.
    """

    path: epath.Path
    format: str
    tensors: Mapping[str, Tensor]
    sizes: Mapping[str, float | int | None]
    entries: Callable[[Shapes], list[ParamEntry]]
    actual: Mapping[str, str] = dataclasses.field(default_factory=dict)
    padding: int = 0

    def actual_name(self, name: str) -> str:
        """Return a tensor's name in the file."""
        return self.actual.get(name, name)


@dataclasses.dataclass(frozen=True)
class FileTensor:
    """A `Tensor` whose elements are contiguous in a file.

    Args:
      shape: shape in the file.
      dtype: dtype in the file.
      open: opens the file at the first byte of the tensor.
      fortran: whether the order is Fortran's (the first axis varies fastest).
    """

    shape: Shape
    dtype: np.dtype
    open: Callable[[], BinaryIO]
    fortran: bool = False

    def read_into(self, view: np.ndarray) -> None:
        """Fill the view; see `Tensor`."""
        if self.fortran:
            view = view.T
        with self.open() as file:
            for piece in pieces(view, self.dtype.itemsize):
                data = file.read(piece.size * self.dtype.itemsize)
                piece[...] = np.frombuffer(data, self.dtype).reshape(piece.shape)

    def equals(self, other: FileTensor) -> bool:
        """Return whether both tensors hold the same numbers."""
        if self is other:
            return True
        if (self.shape, self.dtype) != (other.shape, other.dtype):
            return False
        remaining = math.prod(self.shape) * self.dtype.itemsize
        with self.open() as a, other.open() as b:
            while remaining:
                size = min(CHUNK, remaining)
                if a.read(size) != b.read(size):
                    return False
                remaining -= size
        return True


def pieces(view: np.ndarray, itemsize: int) -> Iterator[np.ndarray]:
    """Yield sub-arrays of at most `CHUNK` bytes that make up the view in C order."""
    size = view.size * itemsize
    if size <= CHUNK:
        yield view
        return
    rows = len(view) * CHUNK // size
    if rows:
        for start in range(0, len(view), rows):
            yield view[start : start + rows]
    else:
        for row in view:
            yield from pieces(row, itemsize)


def write(view: np.ndarray, file: BinaryIO) -> None:
    """Append the elements of the view in C order."""
    for piece in pieces(view, view.dtype.itemsize):
        file.write(piece.tobytes())


def sizes_of(shapes: Shapes) -> dict[str, int]:
    """Return the fields of a `VLAConfig` that the shapes of (some of) its parameters show."""
    sizes = {}
    for field, (path, axis) in TABLES["sizes"].items():
        shape = shapes.get(path, ())
        if len(shape) > axis:
            sizes[field] = shape[axis]
    return sizes


def format_size(shapes: Collection[Shape]) -> str:
    """Return the number of parameters and arrays with these shapes, for messages."""
    size = sum(math.prod(shape) for shape in shapes)
    return f"{size:,} parameters in {len(shapes)} arrays"
