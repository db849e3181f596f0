"""Locate the values of a tf.train.Example without parsing it.

A record's payload is protobuf: Example > Features > map<name, Feature>, where a Feature is one
list of bytes, floats or varints. Every level starts with its length, so each value is located by
skipping from length to length without reading what is between. All offsets count from the
payload's start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from etcvla.errors import UserError

if TYPE_CHECKING:
    from etcvla.data.storage import AnyPath

# Field numbers of tf.train.Feature's oneof.
BYTES = 1
FLOATS = 2
INTS = 3
ROW_LENGTHS = "/ragged_row_lengths_"  # in TFDS's names of the lengths of nested sequences
PAGE_SIZE = 4096  # bytes; a larger element fills memory pages of its own
Buffer = memoryview | bytes
Peek = Callable[[int], bytes]  # offset -> the four bytes there


class RecordError(UserError):
    """A record that is truncated, damaged or does not have the expected content.

    The message names the file, the record's number and its byte offset.
    """

    @classmethod
    def at(cls, path: AnyPath, record: int, offset: int, problem: str) -> RecordError:
        """Return the error of a problem at a record."""
        return cls(f"{path}, record {record} (byte {offset}): {problem}")


class FeatureLocation(NamedTuple):
    """The location of one feature's values in a payload.

    Attributes:
      kind: BYTES, FLOATS or INTS; 0 for a feature without a list.
      start, size: bytes of the payload.
      count: number of values.
      offsets: for a list of bytes, the offset of each element's length prefix; for row lengths, the
        running sum of the lengths from 0 on; else empty.
    """

    kind: int
    start: int
    size: int
    count: int
    offsets: list[int]


def read_varint(buffer: Buffer, position: int) -> tuple[int, int]:
    """Read a varint. Returns: (value, position after it)."""
    value = 0
    shift = 0
    while True:
        byte = buffer[position]
        value |= (byte & 127) << shift
        position += 1
        if byte < 128:
            return value, position
        shift += 7


def read_element(data: Buffer, offset: int = 0) -> Buffer:
    """Return the element of a list of bytes whose length prefix is at `offset`."""
    size, start = read_varint(data, offset)
    return data[start : start + size]


def read_floats(data: Buffer) -> np.ndarray:
    """Return packed floats as a view, float32[n]."""
    return np.frombuffer(data, "<f4")


def read_ints(data: Buffer) -> np.ndarray:
    """Return n packed varints as int64[n]."""
    raw = np.frombuffer(data, np.uint8)
    is_last_byte = raw < 128
    if is_last_byte.all():
        return raw.astype(np.int64)
    ends = np.flatnonzero(is_last_byte) + 1
    begins = np.concatenate([[0], ends[:-1]])
    byte_in_varint = np.arange(len(raw)) - np.repeat(begins, ends - begins)
    bits = (raw & 127).astype(np.uint64) << (7 * byte_in_varint).astype(np.uint64)
    return np.bitwise_or.reduceat(bits, begins).view(np.int64)


def locate_features(buffer: Buffer, peek: Peek | None = None) -> dict[str, FeatureLocation]:
    """Locate each feature of a tf.train.Example.

    Args:
      peek: reads four bytes of `buffer`, faster than `buffer` itself at offsets far apart.

    Raises ValueError or IndexError if the buffer is not a tf.train.Example.
    """
    locations = {}
    for _, features_start, features_end in _fields(buffer, 0, len(buffer)):
        for _, entry_start, entry_end in _fields(buffer, features_start, features_end):
            bounds = {}
            for number, start, end in _fields(buffer, entry_start, entry_end):
                bounds[number] = (start, end)
            key_start, key_end = bounds[1]
            value_start, value_end = bounds[2]
            name = bytes(buffer[key_start:key_end]).decode()
            is_lengths = ROW_LENGTHS in name
            locations[name] = _locate(buffer, value_start, value_end, peek, is_lengths=is_lengths)
    return locations


def _fields(buffer: Buffer, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (field number, start, end) of a message with length-delimited fields only.

    The messages around a tf.train.Feature have no other fields.
    """
    while position < end:
        tag, position = read_varint(buffer, position)
        size, position = read_varint(buffer, position)
        if tag & 7 != 2 or position + size > end:
            raise ValueError(f"unexpected field {tag} of {size} bytes at byte {position}")
        yield tag >> 3, position, position + size
        position += size


def _locate(
    buffer: Buffer, start: int, end: int, peek: Peek | None, *, is_lengths: bool
) -> FeatureLocation:
    """Locate the values of the tf.train.Feature at start .. end."""
    lists = list(_fields(buffer, start, end))
    if not lists:
        return FeatureLocation(0, start, 0, 0, [])
    kind, start, end = lists[-1]
    if kind == BYTES:
        offsets = _element_offsets(buffer, start, end, peek)
        return FeatureLocation(kind, start, end - start, len(offsets), offsets)
    start, end = _packed(buffer, start, end)
    size = end - start
    if kind == FLOATS:
        return FeatureLocation(kind, start, size, size // 4, [])
    if is_lengths:
        splits = [0, *np.cumsum(read_ints(buffer[start:end])).tolist()]
        return FeatureLocation(kind, start, size, len(splits) - 1, splits)
    count = np.count_nonzero(np.frombuffer(buffer[start:end], np.uint8) < 128)
    return FeatureLocation(kind, start, size, int(count), [])


def _element_offsets(buffer: Buffer, position: int, end: int, peek: Peek | None) -> list[int]:
    """Return the offset of each element's length prefix in a list of bytes.

    This is the inner loop of indexing: it decodes lengths of up to three bytes, which nearly all
    texts and images have, without a function call.
    """
    offsets = []
    size = 0
    while position < end:
        use_peek = peek is not None and size >= PAGE_SIZE
        head = peek(position) if use_peek else buffer[position : position + 4]
        if head[0] != 10:
            raise ValueError(f"a list of bytes has another field at byte {position}")
        position += 1
        offsets.append(position)
        size = head[1]
        if size > 127:
            if head[2] < 128:
                size += (head[2] << 7) - (1 << 7)
                position += 1
            elif head[3] < 128:
                size += (head[2] << 7) + (head[3] << 14) - (1 << 7) - (1 << 14)
                position += 2
            else:
                size, position = read_varint(buffer, position)
                position -= 1
        position += size + 1
    if position != end:
        raise ValueError(f"a list of bytes overruns its message at byte {end}")
    return offsets


def _packed(buffer: Buffer, start: int, end: int) -> tuple[int, int]:
    """Return the bounds of the packed numbers in the list at start .. end."""
    if start == end:
        return start, end
    size, first = read_varint(buffer, start + 1)
    if buffer[start] != 10 or first + size != end:
        raise ValueError(f"the numbers at byte {start} are not packed as TensorFlow packs them")
    return first, end
