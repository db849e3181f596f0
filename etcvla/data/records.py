"""A tf.train.Example, located rather than parsed.

A payload is protobuf: Example > Features > map<name, Feature>, where a Feature is one list of bytes, floats or varints.
Every level carries its length, so the place of each value is found by hopping from length to length; nothing between
is touched. All offsets count from the payload's start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from etcvla.data.storage import AnyPath

BYTES, FLOATS, INTS = 1, 2, 3  # field numbers of tf.train.Feature's oneof
ROW_LENGTHS = "/ragged_row_lengths_"  # TFDS: how many values each step of a nested sequence has
FAR = 4096  # bytes; elements of this size lie on memory pages of their own
Buffer = memoryview | bytes


class RecordError(ValueError):
    """A record that is truncated, damaged or not what it should be; names file, record and byte offset."""

    def __init__(self, path: AnyPath | str, record: int, offset: int, problem: str):
        super().__init__(f"{path}, record {record} (byte {offset}): {problem}")

    def __reduce__(self):
        return RecordError.saying, (str(self),)

    @classmethod
    def saying(cls, message: str) -> RecordError:
        """One whose message is known already."""
        error = cls.__new__(cls)
        error.args = (message,)
        return error


class Values(NamedTuple):
    """Where one feature's values lie; `start` and `size` are bytes of the payload.

    `marks` are, for a list of bytes, the offset of each element's length prefix; for row lengths, the running sum of
    the lengths from 0; else empty.
    """

    kind: int
    start: int
    size: int
    count: int
    marks: list[int]


def read_varint(buffer: Buffer, position: int) -> tuple[int, int]:
    """(value, position after it)."""
    value = shift = 0
    while True:
        byte = buffer[position]
        value |= (byte & 127) << shift
        position += 1
        if byte < 128:
            return value, position
        shift += 7


def read_element(data: Buffer, mark: int = 0) -> Buffer:
    """The element of a list of bytes whose length prefix lies at `mark`."""
    size, start = read_varint(data, mark)
    return data[start : start + size]


def read_floats(data: Buffer) -> np.ndarray:
    """float32[n], a view."""
    return np.frombuffer(data, "<f4")


def read_ints(data: Buffer) -> np.ndarray:
    """int64[n] of n packed varints."""
    raw = np.frombuffer(data, np.uint8)
    last = raw < 128
    if last.all():
        return raw.astype(np.int64)
    ends = np.flatnonzero(last) + 1
    begins = np.concatenate([[0], ends[:-1]])
    place = np.arange(len(raw)) - np.repeat(begins, ends - begins)
    bits = (raw & 127).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.bitwise_or.reduceat(bits, begins).view(np.int64)


def locate_features(
    buffer: Buffer, peek: Callable[[int], bytes] | None = None
) -> dict[str, Values]:
    """Where each feature of a tf.train.Example lies.

    Args:
      peek: the four bytes from a place on, as `buffer` has them, by a way that is faster where far ones are wanted.

    Raises ValueError or IndexError if it is no tf.train.Example.
    """
    located = {}
    for _, *features in _fields(buffer, 0, len(buffer)):
        for _, *entry in _fields(buffer, *features):
            spans = {number: (begin, end) for number, begin, end in _fields(buffer, *entry)}
            name = bytes(buffer[slice(*spans[1])]).decode()
            located[name] = _locate(buffer, *spans[2], peek, is_lengths=ROW_LENGTHS in name)
    return located


def _fields(buffer: Buffer, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, start, end) of a message whose fields are all length-delimited, as all around tf.train.Feature."""
    while position < end:
        tag, position = read_varint(buffer, position)
        size, position = read_varint(buffer, position)
        if tag & 7 != 2 or position + size > end:
            raise ValueError(f"unexpected field {tag} of {size} bytes at byte {position}")
        yield tag >> 3, position, position + size
        position += size


def _locate(
    buffer: Buffer, start: int, end: int, peek: Callable[[int], bytes] | None, *, is_lengths: bool
) -> Values:
    spans = list(_fields(buffer, start, end))
    if not spans:
        return Values(0, start, 0, 0, [])
    kind, start, end = spans[-1]
    if kind == BYTES:
        marks = _element_marks(buffer, start, end, peek)
        return Values(kind, start, end - start, len(marks), marks)
    start, end = _packed(buffer, start, end)
    if kind == FLOATS:
        return Values(kind, start, end - start, (end - start) // 4, [])
    if is_lengths:
        splits = [0, *np.cumsum(read_ints(buffer[start:end])).tolist()]
        return Values(kind, start, end - start, len(splits) - 1, splits)
    count = np.count_nonzero(np.frombuffer(buffer[start:end], np.uint8) < 128)
    return Values(kind, start, end - start, int(count), [])


def _element_marks(
    buffer: Buffer, position: int, end: int, peek: Callable[[int], bytes] | None
) -> list[int]:
    # The inner loop of indexing: lengths of up to three bytes, which nearly all texts and images have, without a call.
    marks, size = [], 0
    while position < end:
        head = buffer[position : position + 4] if size < FAR or peek is None else peek(position)
        if head[0] != 10:
            raise ValueError(f"a list of bytes holds something else at byte {position}")
        position += 1
        marks.append(position)
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
    return marks


def _packed(buffer: Buffer, start: int, end: int) -> tuple[int, int]:
    if start == end:
        return start, end
    size, first = read_varint(buffer, start + 1)
    if buffer[start] != 10 or first + size != end:
        raise ValueError(
            f"numbers at byte {start} are not one packed list, as TensorFlow writes them"
        )
    return first, end
