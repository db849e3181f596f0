"""openpi's wire format, read safely: msgpack with NumPy arrays.

An array is the map {b"__ndarray__": true, b"data": bytes, b"dtype": "|u1", b"shape": [..]}, a
NumPy scalar the map {b"__npgeneric__": true, b"data": value, b"dtype": ..}
(openpi_client/msgpack_numpy.py). Messages cannot run code: there is no pickle, and only the dtypes
of a fixed table are accepted. The sizes that a message announces are limited while it is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

from etcvla.errors import UserError

MAX_TEXT = 16_384  # bytes of a string
MAX_ITEMS = 1024  # of a list or a map: a state has dozens of numbers, an array is bytes
# Lists and maps of a message. An empty one takes one byte to send and about 60 bytes to hold.
MAX_CONTAINERS = 256
MAX_RANK = 4


# The accepted dtypes, by the name that NumPy writes.
_WIDE = ("i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8")
_NAMES = ("|b1", "|i1", "|u1", *(f"<{name}" for name in _WIDE), *(f">{name}" for name in _WIDE))
DTYPES = {name: np.dtype(name) for name in _NAMES}


def pack(message: Mapping[str, Any]) -> bytes:
    """Return the bytes of a message of plain values, arrays and NumPy scalars.

    Raises ValueError for other types and dtypes.
    """
    return msgpack.packb(message, default=_pack_array)


def unpack(data: bytes) -> dict[str, Any]:
    """Return the message of these bytes: the inverse of `pack`.

    Arrays are read-only views into `data`. Raises UserError for any other bytes.
    """
    containers = 0

    def _check_container(value: Any) -> Any:
        nonlocal containers
        containers += 1
        if containers > MAX_CONTAINERS:
            raise ValueError(f"more than {MAX_CONTAINERS} lists and maps")
        return _unpack_map(value) if isinstance(value, dict) else value

    try:
        message = msgpack.unpackb(
            data,
            object_hook=_check_container,
            list_hook=_check_container,
            max_str_len=MAX_TEXT,
            max_ext_len=0,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
        )
    except (ValueError, TypeError, RecursionError) as error:
        reason = str(error) or type(error).__name__  # some errors of msgpack have no text
        raise UserError(
            f"the message is not msgpack as openpi's client packs it: {reason}"
        ) from error
    if not isinstance(message, dict):
        raise UserError(f"the message is {type(message).__name__}, expected a map")
    return message


def _pack_array(value: Any) -> dict[bytes, Any]:
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


def _unpack_map(value: dict) -> Any:
    if value.get(b"__ndarray__"):
        return _unpack_array(value)
    if value.get(b"__npgeneric__"):
        return _unpack_scalar(value)
    for key in value:
        if not isinstance(key, str):
            raise ValueError(f"a map has the key {key!r}, expected text")
    return value


def _unpack_array(value: dict) -> np.ndarray:
    data = value.get(b"data")
    dtype = value.get(b"dtype")
    shape = value.get(b"shape")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"an array of dtype {dtype!r:.60}, expected numbers")
    if not _is_shape(shape):
        raise ValueError(f"an array of shape {shape!r:.60}, expected at most {MAX_RANK} sizes")
    size = math.prod(shape) * DTYPES[dtype].itemsize
    if not isinstance(data, bytes):
        raise ValueError(f"an array {dtype}{shape} of {type(data).__name__}, expected {size} bytes")
    if len(data) != size:
        raise ValueError(f"an array {dtype}{shape} of {len(data)} bytes, expected {size}")
    return np.frombuffer(data, DTYPES[dtype]).reshape(shape)


def _is_shape(shape: Any) -> bool:
    if not isinstance(shape, list) or len(shape) > MAX_RANK:
        return False
    return all(type(size) is int and size >= 0 for size in shape)


def _unpack_scalar(value: dict) -> bool | int | float | str:
    data = value.get(b"data")
    dtype = value.get(b"dtype")
    known_dtype = isinstance(dtype, str) and (
        dtype in DTYPES or re.fullmatch(r"[<>]U\d{1,6}", dtype)
    )
    if not isinstance(data, bool | int | float | str) or not known_dtype:
        raise ValueError(f"a scalar {data!r:.60} of dtype {dtype!r:.60}, expected a number or text")
    return data
