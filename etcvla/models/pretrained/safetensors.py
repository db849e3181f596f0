"""Reading and writing safetensors: eight bytes of length, a JSON header, the tensors one after another.

In a few lines of our own, since the library maps or copies whole files, and what is mapped counts as memory.
"""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Mapping, Sequence
from typing import BinaryIO

import ml_dtypes
import numpy as np
from etils import epath

from etcvla.models.pretrained.layout import DecoderLayout, write

DTYPES = {
    name: np.dtype(dtype)
    for name, dtype in {
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
    }.items()
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read(path: epath.Path) -> dict[str, DecoderLayout]:
    """The tensors of a file by name. Raises ValueError if it is no whole safetensors file."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
        if not 0 < length <= size - 8:
            raise ValueError(
                f"{path} is no safetensors file, or was not fetched whole ({size} bytes)"
            )
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise ValueError(f"{path} is no safetensors file: its header is no JSON") from error
    header.pop("__metadata__", None)
    end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if end > size:
        raise ValueError(
            f"{path} has {size} bytes where its header speaks of {end}: fetch it again"
        )
    return {name: _tensor(path, name, entry, 8 + length) for name, entry in header.items()}


def _tensor(path: epath.Path, name: str, entry: Mapping, start: int) -> DecoderLayout:
    if entry["dtype"] not in DTYPES:
        raise ValueError(
            f"{path}: {name} has dtype {entry['dtype']}, expected one of {sorted(DTYPES)}"
        )
    return DecoderLayout(
        tuple(entry["shape"]),
        DTYPES[entry["dtype"]],
        functools.partial(_open_at, path, start + entry["data_offsets"][0]),
    )


def _open_at(path: epath.Path, offset: int) -> BinaryIO:
    file = path.open("rb")
    file.seek(offset)
    return file


def save(
    path: epath.Path, tensors: Mapping[str, tuple[Sequence[int], Sequence[np.ndarray]]]
) -> None:
    """Writes tensors: name -> (shape, arrays whose elements, one after another, are the tensor's)."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (shape, parts) in tensors.items():
        start, end = end, end + sum(part.nbytes for part in parts)
        header[name] = {
            "dtype": _NAMES[parts[0].dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for _, parts in tensors.values():
            for part in parts:
                write(part, file)
