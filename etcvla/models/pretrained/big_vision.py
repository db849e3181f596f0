"""PaliGemma as big_vision publishes it: an .npz whose arrays have our names and shapes, with or without `params/`."""

from __future__ import annotations

import functools
import zipfile
from typing import BinaryIO

import ml_dtypes
import numpy as np
from etils import epath

from etcvla.models.pretrained.hugging_face import backbone
from etcvla.models.pretrained.layout import Checkpoint, DecoderLayout, ParamEntry, sizes_of

FORMAT = "big_vision npz"


def open_checkpoint(path: epath.Path) -> Checkpoint:
    """Reads the headers. Raises ValueError if it is no .npz of plain arrays."""
    with _open_zip(path) as archive:
        tensors = {
            name.removesuffix(".npy"): _tensor(path, archive, name) for name in archive.namelist()
        }
    prefix = "params/" if any(name.startswith("params/") for name in tensors) else ""
    sizes = sizes_of({name.removeprefix(prefix): tensor.shape for name, tensor in tensors.items()})
    return Checkpoint(
        path,
        FORMAT,
        tensors,
        sizes,
        lambda shapes: [ParamEntry(prefix + p, p) for p in backbone(shapes)],
    )


def _tensor(path: epath.Path, archive: zipfile.ZipFile, name: str) -> DecoderLayout:
    with archive.open(name) as file:
        shape, fortran, dtype = _read_header(file, f"{path}: {name}")
    if dtype == np.dtype("V2"):  # numpy has no name for bfloat16
        dtype = np.dtype(ml_dtypes.bfloat16)
    return DecoderLayout(shape, dtype, functools.partial(_open_member, path, name), fortran)


def _open_zip(path: epath.Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path.open("rb"))
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is no .npz ({error}); was it fetched whole?") from error


def _read_header(file: BinaryIO, what: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(file)
    except ValueError as error:
        raise ValueError(f"{what} is no array: {error}") from error
    if dtype.hasobject:
        raise ValueError(f"{what} holds Python objects, expected numbers")
    return shape, fortran, dtype


def _open_member(path: epath.Path, name: str) -> BinaryIO:
    file = _open_zip(path).open(name)
    _read_header(file, name)
    return file
