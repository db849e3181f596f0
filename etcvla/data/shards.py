"""Read the records of a dataset's file: parts of TFRecord's records, or ArrayRecord's whole ones.

A TFRecord file is a sequence of [uint64 size, uint32 crc(size), payload, uint32 crc(payload)],
little endian. ArrayRecord (https://github.com/google/array_record) is compressed and has its own
index. A record's position is its payload's offset in TFRecord, and its number in ArrayRecord.
"""

from __future__ import annotations

import functools
import struct
import threading
from collections.abc import Callable, Iterator, Sequence

import google_crc32c

from etcvla.data.records import Buffer, Peek, RecordError
from etcvla.data.storage import AnyPath, ByteRange, MappedFile, RemotePath, open_file
from etcvla.errors import UserError

HEADER_SIZE = 12
FOOTER_SIZE = 4
Report = Callable[[RecordError], None]
CACHED_RECORDS = 8  # decoded ArrayRecord records per file in memory; draws reuse an episode


def masked_crc(data: Buffer) -> int:
    """Return TFRecord's checksum: CRC-32C, rotated and offset.

    The mask keeps checksums of data that contain checksums useful.
    """
    crc = google_crc32c.value(bytes(data))
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _raise(error: RecordError) -> None:
    raise error


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
        self, *, verify_crc: bool = False, report: Report = _raise
    ) -> Iterator[tuple[int, int, Buffer]]:
        """Yield (number, position, payload) of each record.

        Sizes are always checked against their checksums.

        Args:
          verify_crc: check the payloads too.
          report: called with the error of a damaged record, which is left out if it returns. The
            records after a damaged size cannot be located and are left out without an error.

        Raises RecordError if the file is damaged and `report` is not given.
        """
        offset = 0
        number = 0
        header = self._file.read([(0, HEADER_SIZE)])[0]
        while offset < self._file.size:
            try:
                size = self._payload_size(number, offset, header)
            except RecordError as error:
                report(error)
                return
            # Read the next header with the payload: a remote file then needs one request a record.
            length = size + FOOTER_SIZE + HEADER_SIZE
            data = self._file.read([(offset + HEADER_SIZE, length)])[0]
            payload = data[:size]
            header = data[size + FOOTER_SIZE :]
            if verify_crc and masked_crc(payload) != struct.unpack_from("<I", data, size)[0]:
                problem = "damaged payload (CRC mismatch)"
                report(RecordError.at(self.path, number, offset, problem))
            else:
                yield number, offset + HEADER_SIZE, payload
            offset += HEADER_SIZE + size + FOOTER_SIZE
            number += 1

    def _payload_size(self, number: int, offset: int, header: Buffer) -> int:
        """Return the payload's size from a record's header. Raises RecordError if it is damaged."""
        problem = "the file ends inside the record's header: truncated copy?"
        if len(header) == HEADER_SIZE:
            size, crc = struct.unpack("<QI", header)
            needed = HEADER_SIZE + size + FOOTER_SIZE
            left = self._file.size - offset
            if masked_crc(header[:8]) != crc:
                problem = "damaged header (CRC mismatch), or not an uncompressed TFRecord"
            elif needed <= left:
                return size
            else:
                problem = f"needs {needed} bytes, the file has {left} left: truncated copy?"
        raise RecordError.at(self.path, number, offset, problem)

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
        # The lock protects the reader, which is not thread-safe, and keeps two threads from
        # decoding the same record.
        self._lock = threading.Lock()
        self._payload = functools.lru_cache(CACHED_RECORDS)(self._payload)

    def __reduce__(self):
        return ArrayRecordShard, (self.path,)

    def records(
        self, *, verify_crc: bool = False, report: Report = _raise
    ) -> Iterator[tuple[int, int, Buffer]]:
        """Yield records as `TFRecordShard.records`; the format's reader always checks checksums."""
        for number in range(self._reader.num_records()):
            try:
                with self._lock:
                    payload = self._payload(number)
                yield number, number, payload
            except RecordError as error:
                report(error)

    def peeker(self, position: int) -> None:
        """Return None: payloads are in memory."""

    def read(self, position: int, ranges: Sequence[ByteRange]) -> list[Buffer]:
        """Return the bytes of each range of the payload of record number `position`."""
        with self._lock:
            payload = memoryview(self._payload(position))
        return [payload[start : start + length] for start, length in ranges]

    def _payload(self, number: int) -> bytes:
        try:
            return self._reader.read([number])[0]
        except (ValueError, RuntimeError, IndexError) as error:
            problem = f"damaged ArrayRecord: {error}"
            raise RecordError.at(self.path, number, 0, problem) from error


Shard = TFRecordShard | ArrayRecordShard


def open_shard(path: AnyPath) -> Shard:
    """Open a file of records; its name determines the format."""
    return ArrayRecordShard(path) if ".array_record-" in path.name else TFRecordShard(path)
