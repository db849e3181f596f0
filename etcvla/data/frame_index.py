"""The frame index: where each value of each episode lies, built in one pass over a split's files and kept on disk.

Axes: E records (episodes), K columns (features as named on disk), M marks.
"""

from __future__ import annotations

import array
import dataclasses
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from etcvla.data import cache
from etcvla.data.records import RecordError, locate_features
from etcvla.data.shards import Shard
from etcvla.data.storage import AnyPath, RemotePath, file_version

# Starting processes takes about a second, in which one process indexes some gigabytes of mapped files.
PARALLEL_BYTES = 8 << 30
REMOTE_THREADS = 16  # files under way at once; they wait for the network
T = TypeVar("T")


@dataclasses.dataclass
class FrameIndex:
    """Places of all values of a split.

    records: int64[E, 4]; shard, record number in it, place (see `shards`) and size of the payload.
    values: int64[E, K, 5]; kind, start, size, count (see `records.Values`), first mark; kind -1 where absent.
    marks: int64[M]; of all features, one after another.
    damaged: what is wrong with the records that are left out.
    """

    columns: dict[str, int]
    records: np.ndarray
    values: np.ndarray
    marks: np.ndarray
    damaged: list[str]


def files_key(shards: Sequence[AnyPath]) -> dict:
    """What tells these files, as they are now, from others; for `cache.IndexCache`."""
    stamps = map_shards(
        file_version, shards, workers=1 if not isinstance(shards[0], RemotePath) else None
    )
    return {
        "version": cache.VERSION,
        "shards": [[path.name, *mark] for path, mark in zip(shards, stamps, strict=True)],
    }


def load_index(
    shards: Sequence[Shard], kept: cache.IndexCache, *, workers: int | None = None
) -> FrameIndex:
    """The index of `shards`: the kept one, else built and kept. Damaged records are left out and noted.

    Args:
      workers: processes (threads for remote files) that build it; None: as many as pay.
    """
    found = kept.load("index")
    if found is None:
        index = _merge(
            map_shards(
                _index_shard, shards, workers=workers, size=sum(shard.size for shard in shards)
            )
        )
        kept.save(
            "index",
            [index.records, index.values, index.marks],
            columns=index.columns,
            damaged=index.damaged,
        )
        return index
    about, (records, values, marks) = found
    return FrameIndex(about["columns"], records, values, marks, about["damaged"])


def map_shards(
    function: Callable[[Any], T],
    shards: Sequence[AnyPath | Shard],
    *,
    workers: int | None = None,
    size: int = 0,
) -> list[T]:
    """[function(shard) for each path or open file], by several processes (threads for remote files) where that pays.

    Args:
      workers: how many; None: by `size`, the bytes of all files.
    """
    remote = isinstance(getattr(shards[0], "path", shards[0]), RemotePath)
    if workers is None:
        workers = REMOTE_THREADS if remote else 1 if size < PARALLEL_BYTES else os.cpu_count() or 1
    workers = min(workers, len(shards))
    if workers == 1:
        return [function(path) for path in shards]
    with _pool(workers, remote) as pool:
        return list(
            pool.map(
                function, shards, chunksize=1 if remote else max(1, len(shards) // (8 * workers))
            )
        )


def _pool(workers: int, remote: bool) -> Executor:
    # Spawned, as JAX's threads do not survive a fork.
    return (
        ThreadPoolExecutor(workers)
        if remote
        else ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    )


def check_crc(shard: Shard) -> list[tuple[int, str]]:
    """(record number, what is wrong) of the records of a file whose payload does not match its checksum."""
    damage: list[RecordError] = []
    good = {number for number, *_ in shard.records(verify_crc=True, damage=damage)}
    bad = sorted(set(range(max(good, default=-1) + len(damage) + 1)) - good)
    return [(number, str(error)) for number, error in zip(bad, damage, strict=False)]


def _index_shard(shard: Shard) -> FrameIndex:
    columns: dict[str, int] = {}
    records, rows, marks, damage = [], [], array.array("q"), []
    for number, place, payload in shard.records(damage=damage):
        try:
            features = locate_features(payload, shard.peeker(place))
        except (ValueError, IndexError, KeyError) as error:
            damage.append(
                RecordError(shard.path, number, place, f"not a tf.train.Example ({error})")
            )
            continue
        row = {}
        for name, value in features.items():
            row[columns.setdefault(name, len(columns))] = (*value[:4], len(marks))
            marks.extend(value.marks)
        records.append((0, number, place, len(payload)))
        rows.append(row)
    values = np.full((len(rows), len(columns), 5), -1, np.int64)
    for e, row in enumerate(rows):
        values[e, list(row)] = list(row.values())
    return FrameIndex(
        columns,
        np.array(records, np.int64).reshape(-1, 4),
        values,
        np.array(marks, np.int64),
        [str(error) for error in damage],
    )


def _merge(parts: Sequence[FrameIndex]) -> FrameIndex:
    columns = {
        name: k for k, name in enumerate(sorted({name for part in parts for name in part.columns}))
    }
    records = np.concatenate([part.records + [shard, 0, 0, 0] for shard, part in enumerate(parts)])
    values = np.full((len(records), len(columns), 5), -1, np.int64)
    first, first_mark = 0, 0
    for part in parts:
        last = first + len(part.records)
        values[first:last, [columns[name] for name in part.columns]] = part.values + [
            0,
            0,
            0,
            0,
            first_mark,
        ]
        first, first_mark = last, first_mark + len(part.marks)
    return FrameIndex(
        columns,
        records,
        values,
        np.concatenate([part.marks for part in parts]),
        [problem for part in parts for problem in part.damaged],
    )
