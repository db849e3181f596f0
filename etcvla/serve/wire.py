"""openpi's wire format, read without trust: msgpack with NumPy arrays in it.

An array is the map {b"__ndarray__": true, b"data": bytes, b"dtype": "|u1", b"shape": [..]}, a NumPy scalar the map
{b"__npgeneric__": true, b"data": value, b"dtype": ..} (openpi_client/msgpack_numpy.py). Nothing here can run code:
there is no pickle, no dtype is made from a stranger's words, and what a message makes grow is counted as it is read.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

MAX_TEXT = 16_384  # bytes of a string
MAX_ITEMS = 1024  # of a list or a map: a state has dozens of numbers, an array is bytes
MAX_PARTS = (
    256  # lists and maps of a message; an empty one takes a byte to send and some sixty to hold
)
MAX_RANK = 4
_KINDS = ("?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8")
DTYPES = {
    dtype.str: dtype
    for kind in _KINDS
    for order in "<>"
    for dtype in [np.dtype(kind).newbyteorder(order)]
}


def pack(message: Mapping[str, Any]) -> bytes:
    """The bytes of a message of plain values, arrays and NumPy scalars. Raises ValueError for other dtypes."""
    return msgpack.packb(message, default=_pack_array)


def unpack(data: bytes) -> dict[str, Any]:
    """The inverse of `pack`. Arrays are views into `data`, not copies, and cannot be written to.

    Raises ValueError saying what is wrong with it.
    """
    parts = itertools.count(1)

    def check(part):
        if next(parts) > MAX_PARTS:
            raise ValueError(f"more than {MAX_PARTS} lists and maps")
        return _unpack_map(part) if isinstance(part, dict) else part

    try:
        message = msgpack.unpackb(
            data,
            object_hook=check,
            list_hook=check,
            max_str_len=MAX_TEXT,
            max_ext_len=0,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
        )
    except (ValueError, TypeError, RecursionError) as error:
        why = str(error) or type(error).__name__  # msgpack's own say nothing more
        raise ValueError(f"the message is no msgpack as openpi's client packs it: {why}") from error
    if not isinstance(message, dict):
        raise ValueError(f"the message is {type(message).__name__}, expected a map")
    return message


def _pack_array(value):
    if not isinstance(value, np.ndarray | np.generic):
        raise ValueError(f"cannot send {type(value).__name__}")
    if value.dtype.str not in DTYPES:
        raise ValueError(f"cannot send values of dtype {value.dtype}")
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    return {
        b"__ndarray__": True,
        b"data": value.tobytes(),
        b"dtype": value.dtype.str,
        b"shape": value.shape,
    }


def _unpack_map(part: dict) -> Any:
    if part.get(b"__ndarray__"):
        return _array(part)
    if part.get(b"__npgeneric__"):
        return _scalar(part)
    named = [key for key in part if not isinstance(key, str)]
    if named:
        raise ValueError(f"a map has the key {named[0]!r}, expected text")
    return part


def _array(part: dict) -> np.ndarray:
    data, dtype, shape = (part.get(name) for name in (b"data", b"dtype", b"shape"))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"an array of dtype {_short(dtype)}, expected numbers")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_RANK
        or not all(type(n) is int and n >= 0 for n in shape)
    ):
        raise ValueError(f"an array of shape {_short(shape)}, expected at most {MAX_RANK} sizes")
    if not isinstance(data, bytes) or len(data) != math.prod(shape) * DTYPES[dtype].itemsize:
        found = f"{len(data)} bytes" if isinstance(data, bytes) else type(data).__name__
        raise ValueError(
            f"an array {dtype}{shape} of {found}, expected {math.prod(shape) * DTYPES[dtype].itemsize}"
        )
    return np.frombuffer(data, DTYPES[dtype]).reshape(shape)


def _scalar(part: dict) -> bool | int | float | str:
    value, dtype = part.get(b"data"), part.get(b"dtype")
    if (
        not isinstance(value, bool | int | float | str)
        or not isinstance(dtype, str)
        or not (dtype in DTYPES or re.fullmatch(r"[<>]U\d{1,6}", dtype))
    ):
        raise ValueError(
            f"a scalar {_short(value)} of dtype {_short(dtype)}, expected a number or text"
        )
    return value


def _short(value: Any) -> str:
    return repr(value)[:60]
