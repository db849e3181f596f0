"""Read the records of a dataset's file: parts of TFRecord's records, or ArrayRecord's whole ones.

A TFRecord file is a sequence of [uint64 size, uint32 crc(size), payload, uint32 crc(payload)],
little endian. ArrayRecord (https://github.com/google/array_record) is compressed and has its own
index. A record's position is its payload's offset in TFRecord, and its number in ArrayRecord.
"""

from __future__ import annotations

import collections
import struct
import threading
from collections.abc import Iterator, Sequence

import google_crc32c

from etcvla.data.records import Buffer, Peek, RecordError
from etcvla.data.storage import AnyPath, ByteRange, MappedFile, RemotePath, open_file
from etcvla.errors import UserError

HEADER_SIZE = 12
FOOTER_SIZE = 4
CACHED_RECORDS = 8  # decoded ArrayRecord records per file in memory; draws reuse an episode


def masked_crc(data: Buffer) -> int:
    """Return TFRecord's checksum: CRC-32C, rotated and offset.

    The mask keeps checksums of data that contain checksums useful.
    """
    crc = google_crc32c.value(bytes(data))
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


class TFRecordShard:
    """An uncompressed TFRecord file."""

    whole_records = False

    def __init__(self, path: AnyPath):
        self.path = path
        self._file = open_file(path)
        self.size = self._file.size

    def __reduce__(self):
        return TFRecordShard, (self.path,)

    def records(
        self, *, verify_crc: bool = False, damage: list[RecordError] | None = None
    ) -> Iterator[tuple[int, int, Buffer]]:
        """Yield (number, position, payload) of each record.

        Sizes are always checked against their checksums.

        Args:
          verify_crc: check the payloads too.
          damage: if given, errors are appended to it and damaged records are left out. The records
            after a damaged size cannot be located and are left out without an error of their own.

        Raises RecordError if the file is damaged and `damage` is not given.
        """
        offset = 0
        number = 0
        header = self._file.read([(0, HEADER_SIZE)])[0]
        while offset < self._file.size:
            try:
                size = self._payload_size(number, offset, header)
            except RecordError as error:
                _note(error, damage)
                return
            # Read the next header with the payload: a remote file then needs one request a record.
            length = size + FOOTER_SIZE + HEADER_SIZE
            data = self._file.read([(offset + HEADER_SIZE, length)])[0]
            payload = data[:size]
            header = data[size + FOOTER_SIZE :]
            if verify_crc and masked_crc(payload) != struct.unpack_from("<I", data, size)[0]:
                problem = "damaged payload (CRC mismatch)"
                _note(RecordError(self.path, number, offset, problem), damage)
            else:
                yield number, offset + HEADER_SIZE, payload
            offset += HEADER_SIZE + size + FOOTER_SIZE
            number += 1

    def _payload_size(self, number: int, offset: int, header: Buffer) -> int:
        """Return the payload's size from a record's header. Raises RecordError if it is damaged."""
        if len(header) < HEADER_SIZE:
            problem = "the file ends inside the record's header: truncated copy?"
            raise RecordError(self.path, number, offset, problem)
        size, crc = struct.unpack("<QI", header)
        if masked_crc(header[:8]) != crc:
            problem = "damaged header (CRC mismatch), or not an uncompressed TFRecord"
            raise RecordError(self.path, number, offset, problem)
        needed = HEADER_SIZE + size + FOOTER_SIZE
        left = self._file.size - offset
        if needed > left:
            problem = f"needs {needed} bytes, the file has {left} left: truncated copy?"
            raise RecordError(self.path, number, offset, problem)
        return size

    def peeker(self, position: int) -> Peek | None:
        """Return the `peek` of `records.locate_features` for a payload; None for remote files."""
        return self._file.peeker(position) if isinstance(self._file, MappedFile) else None

    def read(self, position: int, ranges: Sequence[ByteRange]) -> list[Buffer]:
        """Return the bytes of each range of the payload at `position`."""
        return self._file.read([(position + start, length) for start, length in ranges])


class ArrayRecordShard:
    """An ArrayRecord file; its records are read whole, and the last `CACHED_RECORDS` are cached.

    Raises UserError for a remote file, or if the array-record package is not installed.
    """

    whole_records = True

    def __init__(self, path: AnyPath):
        if isinstance(path, RemotePath):
            raise UserError(
                f"{path}: ArrayRecord files can only be read from local disks; "
                "copy the dataset, or use TFRecord"
            )
        try:
            from array_record.python.array_record_module import ArrayRecordReader
        except ImportError as error:
            raise UserError(f"{path} is an ArrayRecord file: pip install array-record") from error
        self.path = path
        self.size = path.stat().st_size
        self._reader = ArrayRecordReader(str(path))
        self._cache: collections.OrderedDict[int, bytes] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self):
        return ArrayRecordShard, (self.path,)

    def records(
        self, *, verify_crc: bool = False, damage: list[RecordError] | None = None
    ) -> Iterator[tuple[int, int, Buffer]]:
        """Yield records as `TFRecordShard.records`; the format's reader always checks checksums."""
        for number in range(self._reader.num_records()):
            try:
                yield number, number, self._payload(number)
            except RecordError as error:
                _note(error, damage)

    def peeker(self, position: int) -> None:
        """Return None: payloads are in memory."""

    def read(self, position: int, ranges: Sequence[ByteRange]) -> list[Buffer]:
        """Return the bytes of each range of the payload of record number `position`."""
        payload = memoryview(self._payload(position))
        return [payload[start : start + length] for start, length in ranges]

    def _payload(self, number: int) -> bytes:
        # The lock protects the reader, which is not thread-safe, and keeps two threads from
        # decoding the same record.
        with self._lock:
            if number not in self._cache:
                try:
                    (self._cache[number],) = self._reader.read([number])
                except (ValueError, RuntimeError, IndexError) as error:
                    problem = f"damaged ArrayRecord: {error}"
                    raise RecordError(self.path, number, 0, problem) from error
                if len(self._cache) > CACHED_RECORDS:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(number)
            return self._cache[number]


Shard = TFRecordShard | ArrayRecordShard


def open_shard(path: AnyPath) -> Shard:
    """Open a file of records; its name determines the format."""
    return ArrayRecordShard(path) if ".array_record-" in path.name else TFRecordShard(path)


def _note(error: RecordError, damage: list[RecordError] | None) -> None:
    """Append the error to `damage`; raise it if there is no such list."""
    if damage is None:
        raise error
    damage.append(error)
