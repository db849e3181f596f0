"""TFRecord files of tf.train.Example, located rather than parsed.

A file is a run of [uint64 size, uint32 crc(size), payload, uint32 crc(payload)], little endian. A payload is
protobuf: Example > Features > map<name, Feature>, where a Feature is one list of bytes, floats or varints. Every level
carries its length, so the place of each value is found by hopping from length to length; nothing between is touched.
"""

from __future__ import annotations

import mmap
import resource
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np

BYTES, FLOATS, INTS = 1, 2, 3  # field numbers of tf.train.Feature's oneof
ROW_LENGTHS = "/ragged_row_lengths_"  # TFDS: how many values each step of a nested sequence has
Buffer = mmap.mmap | bytes


class RecordError(ValueError):
    """A record that is truncated, damaged or not what it should be; names file, record and byte offset."""

    def __init__(self, path: Path | str, record: int, offset: int, problem: str):
        super().__init__(f"{path}, record {record} (byte {offset}): {problem}")


class Values(NamedTuple):
    """Where one feature's values lie; `start` and `size` are bytes in the file.

    `marks` are, for a list of bytes, the offset of each element's length prefix; for row lengths, the running sum of
    the lengths from 0; else empty.
    """

    kind: int
    start: int
    size: int
    count: int
    marks: list[int]


def open_buffer(path: Path | str) -> Buffer:
    """The file as a read-only memory map; it costs address space, not memory."""
    with open(path, "rb") as file:
        file.seek(0, 2)
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if file.tell() else b""


def allow_open_files(count: int) -> None:
    """Raises this process's soft limit on open files by need: a memory map holds its file open, public datasets have
    thousands of files, and the usual limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    want = count + 1024
    if soft != resource.RLIM_INFINITY and soft < want:
        limit = want if hard == resource.RLIM_INFINITY else min(want, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def masked_crc(data: bytes) -> int:
    """TFRecord's checksum: CRC-32C, rotated and offset so that checksums of checksums stay useful."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def record_spans(path: Path | str, buffer: Buffer, *, verify_crc: bool = False) -> Iterator[tuple[int, int]]:
    """(offset, size) of each payload. Sizes are always checked against their CRC, payloads on request.

    Raises RecordError where the file is truncated or damaged.
    """
    position, number = 0, 0
    while position < len(buffer):
        if position + 12 > len(buffer):
            raise RecordError(path, number, position, "the file ends inside the record's header: truncated copy?")
        size, crc = struct.unpack_from("<QI", buffer, position)
        if masked_crc(buffer[position:position + 8]) != crc:
            raise RecordError(path, number, position, "damaged header (CRC mismatch), or not an uncompressed TFRecord")
        start = position + 12
        if start + size + 4 > len(buffer):
            raise RecordError(path, number, position, f"needs {size + 16} bytes, the file has {len(buffer) - position} "
                                                      "left: truncated copy?")
        if verify_crc and masked_crc(buffer[start:start + size]) != struct.unpack_from("<I", buffer, start + size)[0]:
            raise RecordError(path, number, position, "damaged payload (CRC mismatch)")
        yield start, size
        position, number = start + size + 4, number + 1


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


def read_element(buffer: Buffer, mark: int) -> bytes:
    """One element of a list of bytes, by its mark."""
    size, start = read_varint(buffer, mark)
    return buffer[start:start + size]


def read_floats(buffer: Buffer, start: int, count: int) -> np.ndarray:
    """float32[count], a view into the file."""
    return np.frombuffer(buffer, "<f4", count, start)


def read_ints(buffer: Buffer, start: int, size: int) -> np.ndarray:
    """int64[n] of n packed varints that fill `size` bytes."""
    raw = np.frombuffer(buffer, np.uint8, size, start)
    last = raw < 128
    if last.all():
        return raw.astype(np.int64)
    ends = np.flatnonzero(last) + 1
    begins = np.concatenate([[0], ends[:-1]])
    place = np.arange(size) - np.repeat(begins, ends - begins)
    bits = (raw & 127).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.bitwise_or.reduceat(bits, begins).view(np.int64)


def locate_features(buffer: Buffer, start: int, size: int) -> dict[str, Values]:
    """Where each feature of the tf.train.Example in buffer[start:start + size] lies.

    Raises ValueError or IndexError if it is no tf.train.Example.
    """
    located = {}
    for _, *features in _fields(buffer, start, start + size):
        for _, *entry in _fields(buffer, *features):
            spans = {number: (begin, end) for number, begin, end in _fields(buffer, *entry)}
            name = buffer[slice(*spans[1])].decode()
            located[name] = _locate(buffer, *spans[2], is_lengths=ROW_LENGTHS in name)
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


def _locate(buffer: Buffer, start: int, end: int, *, is_lengths: bool) -> Values:
    spans = list(_fields(buffer, start, end))
    if not spans:
        return Values(0, start, 0, 0, [])
    kind, start, end = spans[-1]
    if kind == BYTES:
        marks = _element_marks(buffer, start, end)
        return Values(kind, start, end - start, len(marks), marks)
    start, end = _packed(buffer, start, end)
    if kind == FLOATS:
        return Values(kind, start, end - start, (end - start) // 4, [])
    if is_lengths:
        splits = [0, *np.cumsum(read_ints(buffer, start, end - start)).tolist()]
        return Values(kind, start, end - start, len(splits) - 1, splits)
    count = np.count_nonzero(np.frombuffer(buffer, np.uint8, end - start, start) < 128)
    return Values(kind, start, end - start, int(count), [])


def _element_marks(buffer: Buffer, position: int, end: int) -> list[int]:
    # The inner loop of indexing: one-byte lengths, which most texts have, are read without a call.
    marks = []
    while position < end:
        if buffer[position] != 10:
            raise ValueError(f"a list of bytes holds something else at byte {position}")
        marks.append(position + 1)
        size = buffer[position + 1]
        position += 2
        if size > 127:
            size, position = read_varint(buffer, position - 1)
        position += size
    if position != end:
        raise ValueError(f"a list of bytes overruns its message at byte {end}")
    return marks


def _packed(buffer: Buffer, start: int, end: int) -> tuple[int, int]:
    if start == end:
        return start, end
    size, first = read_varint(buffer, start + 1)
    if buffer[start] != 10 or first + size != end:
        raise ValueError(f"numbers at byte {start} are not one packed list, as TensorFlow writes them")
    return first, end
