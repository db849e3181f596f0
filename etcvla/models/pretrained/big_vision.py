"""PaliGemma as published by big_vision: an .npz file.

Its arrays have our names and shapes, with or without a prefix `params/`.
"""

from __future__ import annotations

import functools
import zipfile
from typing import BinaryIO

import ml_dtypes
import numpy as np
from etils import epath

from etcvla.errors import UserError
from etcvla.models.pretrained.hugging_face import backbone
from etcvla.models.pretrained.layout import (
    FileTensor,
    ParamEntry,
    ReleasedCheckpoint,
    Shapes,
    sizes_of,
)

FORMAT = "big_vision npz"


def open_checkpoint(path: epath.Path) -> ReleasedCheckpoint:
    """Read the headers.

    Raises: UserError if the file is not an .npz of plain arrays.
    """
    tensors = {}
    with _open_zip(path) as archive:
        for member in archive.namelist():
            tensors[member.removesuffix(".npy")] = _tensor(path, archive, member)
    prefix = "params/" if any(name.startswith("params/") for name in tensors) else ""
    shapes = {name.removeprefix(prefix): tensor.shape for name, tensor in tensors.items()}

    def _entries(shapes: Shapes) -> list[ParamEntry]:
        return [ParamEntry(prefix + param, param) for param in backbone(shapes)]

    return ReleasedCheckpoint(path, FORMAT, tensors, sizes_of(shapes), _entries)


def _tensor(path: epath.Path, archive: zipfile.ZipFile, member: str) -> FileTensor:
    with archive.open(member) as file:
        shape, fortran, dtype = _read_header(file, f"{path}: {member}")
    if dtype == np.dtype("V2"):  # NumPy has no name for bfloat16
        dtype = np.dtype(ml_dtypes.bfloat16)
    return FileTensor(shape, dtype, functools.partial(_open_member, path, member), fortran)


def _open_zip(path: epath.Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path.open("rb"))
    except zipfile.BadZipFile as error:
        raise UserError(
            f"{path} is not an .npz file ({error}), or its download is incomplete"
        ) from error


def _read_header(file: BinaryIO, name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of an array: its shape, whether its order is Fortran's, and its dtype."""
    try:
        if np.lib.format.read_magic(file) == (1, 0):
            header = np.lib.format.read_array_header_1_0(file)
        else:
            header = np.lib.format.read_array_header_2_0(file)
    except ValueError as error:
        raise UserError(f"{name} is not an array: {error}") from error
    shape, fortran, dtype = header
    if dtype.hasobject:
        raise UserError(f"{name} holds Python objects, expected numbers")
    return shape, fortran, dtype


def _open_member(path: epath.Path, member: str) -> BinaryIO:
    """Open an array of the archive at its first element."""
    file = _open_zip(path).open(member)
    _read_header(file, member)
    return file
