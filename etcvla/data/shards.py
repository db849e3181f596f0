"""One file of a dataset as records: TFRecord, whose records are read in parts, or ArrayRecord, which gives them whole.

A TFRecord file is a run of [uint64 size, uint32 crc(size), payload, uint32 crc(payload)], little endian. ArrayRecord
(https://github.com/google/array_record) is compressed and has an index of its own; a record's place is its number.
"""

from __future__ import annotations

import collections
import struct
import threading
from collections.abc import Callable, Iterator, Sequence

import google_crc32c

from etcvla.data.records import Buffer, RecordError
from etcvla.data.storage import AnyPath, ByteRange, MappedFile, RemotePath, open_file

HEADER, FOOTER = 12, 4
KEPT = 8  # decoded ArrayRecord records a file that stay in memory: draws of one episode come one after another


def masked_crc(data: Buffer) -> int:
    """TFRecord's checksum: CRC-32C, rotated and offset so that checksums of checksums stay useful."""
    crc = google_crc32c.value(bytes(data))
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


class TFRecordShard:
    """An uncompressed TFRecord file. A record's place is its payload's offset."""

    whole_records = False

    def __init__(self, path: AnyPath):
        self.path, self._file = path, open_file(path)
        self.size = self._file.size

    def __reduce__(self):
        return TFRecordShard, (self.path,)

    def records(
        self, *, verify_crc: bool = False, damage: list[RecordError] | None = None
    ) -> Iterator[tuple[int, int, Buffer]]:
        """(number, place, payload) of each record. Sizes are checked against their CRC, payloads on request.

        Raises RecordError where the file is damaged; with `damage` that is noted there and the record left out. What
        follows a damaged size cannot be found, and is left out with it.
        """
        position, number = 0, 0
        header = self._file.read([(0, HEADER)])[0]
        while position < self._file.size:
            try:
                size = self._size(number, position, header)
            except RecordError as error:
                if damage is None:
                    raise
                damage.append(error)
                return
            # The next header comes with the payload: a remote file answers one request a record.
            data = self._file.read([(position + HEADER, size + FOOTER + HEADER)])[0]
            payload, header = data[:size], data[size + FOOTER :]
            if verify_crc and masked_crc(payload) != struct.unpack_from("<I", data, size)[0]:
                error = RecordError(self.path, number, position, "damaged payload (CRC mismatch)")
                if damage is None:
                    raise error
                damage.append(error)
            else:
                yield number, position + HEADER, payload
            position, number = position + HEADER + size + FOOTER, number + 1

    def _size(self, number: int, position: int, header: Buffer) -> int:
        if len(header) < HEADER:
            raise RecordError(
                self.path,
                number,
                position,
                "the file ends inside the record's header: truncated copy?",
            )
        size, crc = struct.unpack("<QI", header)
        if masked_crc(header[:8]) != crc:
            raise RecordError(
                self.path,
                number,
                position,
                "damaged header (CRC mismatch), or not an uncompressed TFRecord",
            )
        need, left = HEADER + size + FOOTER, self._file.size - position
        if need > left:
            raise RecordError(
                self.path,
                number,
                position,
                f"needs {need} bytes, the file has {left} left: truncated copy?",
            )
        return size

    def peeker(self, place: int) -> Callable[[int], bytes] | None:
        """As `records.locate_features` takes it, for the payload at `place`."""
        return self._file.peeker(place) if isinstance(self._file, MappedFile) else None

    def read(self, place: int, spans: Sequence[ByteRange]) -> list[Buffer]:
        """The bytes of each (offset, length) of the payload at `place`."""
        return self._file.read([(place + start, size) for start, size in spans])


class ArrayRecordShard:
    """An ArrayRecord file. A record's place is its number; it is read whole, and the last few are kept."""

    whole_records = True

    def __init__(self, path: AnyPath):
        if isinstance(path, RemotePath):
            raise ValueError(
                f"{path}: ArrayRecord files are read from local disks only; copy it, or use TFRecord"
            )
        try:
            from array_record.python.array_record_module import ArrayRecordReader
        except ImportError as error:
            raise RuntimeError(
                f"{path} is an ArrayRecord file: pip install array-record"
            ) from error
        self.path, self.size, self._reader = path, path.stat().st_size, ArrayRecordReader(str(path))
        self._kept: collections.OrderedDict[int, bytes] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self):
        return ArrayRecordShard, (self.path,)

    def records(
        self, *, verify_crc: bool = False, damage: list[RecordError] | None = None
    ) -> Iterator[tuple[int, int, Buffer]]:
        """As `TFRecordShard.records`; checksums are always checked, by the format's own reader."""
        for number in range(self._reader.num_records()):
            try:
                yield number, number, self._payload(number)
            except RecordError as error:
                if damage is None:
                    raise
                damage.append(error)

    def peeker(self, place: int) -> None:
        """As `TFRecordShard.peeker`: there is none."""

    def read(self, place: int, spans: Sequence[ByteRange]) -> list[Buffer]:
        """As `TFRecordShard.read`."""
        payload = memoryview(self._payload(place))
        return [payload[start : start + size] for start, size in spans]

    def _payload(self, number: int) -> bytes:
        with self._lock:  # the reader is not safe to share, and a second thread would decode the same record again
            if number not in self._kept:
                try:
                    (self._kept[number],) = self._reader.read([number])
                except (ValueError, RuntimeError, IndexError) as error:
                    raise RecordError(
                        self.path, number, 0, f"damaged ArrayRecord: {error}"
                    ) from error
                if len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(number)
            return self._kept[number]


Shard = TFRecordShard | ArrayRecordShard


def open_shard(path: AnyPath) -> Shard:
    """The file as records, by the format in its name."""
    return ArrayRecordShard(path) if ".array_record-" in path.name else TFRecordShard(path)
