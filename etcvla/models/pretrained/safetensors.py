"""Read and write safetensors files: eight bytes of length, a JSON header, then the tensors.

The `safetensors` library is not used. It maps the whole file into memory for reading, where mapped
pages count as memory of the process, and it needs all tensors in memory for writing; 3 billion
parameters in float32 are 12 GB. It also does not read from a bucket. This module reads and writes
piece by piece through `epath`.
"""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from etils import epath

from etcvla.errors import UserError
from etcvla.models.pretrained.layout import FileTensor, write

DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": ml_dtypes.bfloat16,
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


def read(path: epath.Path) -> dict[str, FileTensor]:
    """Return the tensors of a file by name, not yet read.

    Raises: UserError if it is not a complete safetensors file.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        if not 0 < length <= size - 8:
            raise UserError(
                f"{path} ({size} bytes) is not a safetensors file, or its download is incomplete"
            )
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise UserError(f"{path} is not a safetensors file: its header is not JSON") from error
    header.pop("__metadata__", None)
    start = 8 + length
    end = start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if end > size:
        raise UserError(f"{path} has {size} bytes, its header describes {end}: download it again")
    return {name: _tensor(path, name, entry, start) for name, entry in header.items()}


def _tensor(path: epath.Path, name: str, entry: Mapping[str, Any], start: int) -> FileTensor:
    """Return one tensor, given its entry in the header and the offset of the data."""
    if entry["dtype"] not in DTYPES:
        raise UserError(
            f"{path}: {name} has dtype {entry['dtype']}, expected one of {sorted(DTYPES)}"
        )
    open_file = functools.partial(_open_at, path, start + entry["data_offsets"][0])
    return FileTensor(tuple(entry["shape"]), np.dtype(DTYPES[entry["dtype"]]), open_file)


def _open_at(path: epath.Path, offset: int) -> BinaryIO:
    file = path.open("rb")
    file.seek(offset)
    return file


def save(
    path: epath.Path, tensors: Mapping[str, tuple[Sequence[int], Sequence[np.ndarray]]]
) -> None:
    """Write tensors to a file.

    Args:
      path: the file.
      tensors: name -> (shape, arrays whose concatenated elements are those of the tensor).
    """
    header = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, arrays) in tensors.items():
        start = end
        end = start + sum(array.nbytes for array in arrays)
        header[name] = {
            "dtype": _NAMES[arrays[0].dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for _, arrays in tensors.values():
            for array in arrays:
                write(array, file)
