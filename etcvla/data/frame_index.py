"""The frame index: where each value of each episode lies, built in one pass over a split's files and kept on disk.

Axes: E records (episodes), K columns (features as named on disk), M marks.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from etcvla.data.records import Buffer, RecordError, locate_features, record_spans

VERSION = 1
log = logging.getLogger(__name__)


@dataclasses.dataclass
class FrameIndex:
    """Places of all values of a split.

    records: int64[E, 3]; file number, byte offset and size of the payload.
    values: int64[E, K, 5]; kind, start, size, count (see `records.Values`), first mark; kind -1 where absent.
    marks: int64[M]; of all features, one after another.
    """

    columns: dict[str, int]
    records: np.ndarray
    values: np.ndarray
    marks: np.ndarray


def load_index(shards: Sequence[Path], buffers: Sequence[Buffer], cache: Path) -> FrameIndex:
    """The index of `shards`, from `cache` if that was made from these files as they are now, else built and cached.

    Raises RecordError for truncated or damaged records. A cache that cannot be written costs time only, and is logged.
    """
    key = {"version": VERSION, "shards": [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in shards]}
    index = _load(cache, key)
    if index is None:
        index = _merge([_index_shard(path, buffer) for path, buffer in zip(shards, buffers, strict=True)])
        _save(index, cache, key)
    return index


def _index_shard(path: Path, buffer: Buffer) -> FrameIndex:
    columns: dict[str, int] = {}
    records, rows, marks = [], [], array.array("q")
    for number, (offset, size) in enumerate(record_spans(path, buffer)):
        try:
            features = locate_features(buffer, offset, size)
        except (ValueError, IndexError, KeyError) as error:
            raise RecordError(path, number, offset, f"not a tf.train.Example ({error})") from error
        row = {}
        for name, value in features.items():
            row[columns.setdefault(name, len(columns))] = (*value[:4], len(marks))
            marks.extend(value.marks)
        records.append((0, offset, size))
        rows.append(row)
    values = np.full((len(rows), len(columns), 5), -1, np.int64)
    for e, row in enumerate(rows):
        values[e, list(row)] = list(row.values())
    return FrameIndex(columns, np.array(records, np.int64).reshape(-1, 3), values, np.array(marks, np.int64))


def _merge(parts: Sequence[FrameIndex]) -> FrameIndex:
    columns = {name: k for k, name in enumerate(sorted({name for part in parts for name in part.columns}))}
    records = np.concatenate([part.records + [shard, 0, 0] for shard, part in enumerate(parts)])
    values = np.full((len(records), len(columns), 5), -1, np.int64)
    first, first_mark = 0, 0
    for part in parts:
        last = first + len(part.records)
        values[first:last, [columns[name] for name in part.columns]] = part.values + [0, 0, 0, 0, first_mark]
        first, first_mark = last, first_mark + len(part.marks)
    return FrameIndex(columns, records, values, np.concatenate([part.marks for part in parts]))


def _save(index: FrameIndex, path: Path, key: dict) -> None:
    header = json.dumps({**key, "columns": index.columns}).encode()
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            for value in (np.frombuffer(header, np.uint8), index.records, index.values, index.marks):
                np.save(file, value)
        os.replace(partial, path)
    except OSError as error:
        log.warning("the frame index is not kept, so that it is built again next time: %s. Pass cache_dir=.", error)
        with contextlib.suppress(OSError):
            partial.unlink()


def _load(path: Path, key: dict) -> FrameIndex | None:
    """None if the index is missing, unreadable, or of other files than `key` says."""
    try:
        with open(path, "rb") as file:
            header = json.loads(np.load(file).tobytes())
            if {name: header.get(name) for name in key} != key:
                return None
            return FrameIndex(header["columns"], *(_map_array(file) for _ in range(3)))
    except (OSError, ValueError, KeyError, EOFError):
        return None


def _map_array(file) -> np.ndarray:
    # Mapped rather than loaded: the marks of a hundred million images are shared by all workers of a host.
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    offset, size = file.tell(), int(np.prod(shape)) * dtype.itemsize
    values = np.asarray(np.memmap(file, dtype, "r", offset, shape)) if size else np.zeros(shape, dtype)
    file.seek(offset + size)
    return values
