"""The frame index: the location of each value of each episode.

It is built in one pass over a split's files and kept on disk.

Axes: E records (episodes), K columns (features as named on disk), M offsets.
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

# Starting processes takes about a second, in which one process indexes gigabytes of mapped files.
PARALLEL_BYTES = 8 << 30
REMOTE_THREADS = 16  # files read at once; the threads wait for the network
T = TypeVar("T")


@dataclasses.dataclass
class FrameIndex:
    """The locations of all values of a split.

    Attributes:
      columns: column numbers by feature name.
      records: int64[E, 4]: shard, record number in it, position (see `shards`), payload size.
      locations: int64[E, K, 5]: kind, start, size, count (see `records.FeatureLocation`) and the
        position of the first offset in `offsets`; kind -1 where the feature is absent.
      offsets: int64[M]: the offsets of all features, one after another.
      damaged: the problem of each record that is left out.
    """

    columns: dict[str, int]
    records: np.ndarray
    locations: np.ndarray
    offsets: np.ndarray
    damaged: list[str]


def files_key(paths: Sequence[AnyPath]) -> dict:
    """Return the values that identify files and their present content, for `cache.IndexCache`."""
    is_remote = isinstance(paths[0], RemotePath)
    versions = map_shards(file_version, paths, workers=None if is_remote else 1)
    shards = [[path.name, *version] for path, version in zip(paths, versions, strict=True)]
    return {"version": cache.VERSION, "shards": shards}


def load_index(
    shards: Sequence[Shard], index_cache: cache.IndexCache, *, workers: int | None = None
) -> FrameIndex:
    """Load the index of files from the cache, or build and cache it.

    Damaged records are left out and noted in `FrameIndex.damaged`.

    Args:
      workers: as of `map_shards`.
    """
    entry = index_cache.load("index")
    if entry is not None:
        about, (records, locations, offsets) = entry
        return FrameIndex(about["columns"], records, locations, offsets, about["damaged"])
    total_size = sum(shard.size for shard in shards)
    index = _merge(map_shards(_index_shard, shards, workers=workers, size=total_size))
    index_cache.save(
        "index",
        [index.records, index.locations, index.offsets],
        columns=index.columns,
        damaged=index.damaged,
    )
    return index


def map_shards(
    function: Callable[[Any], T],
    shards: Sequence[AnyPath | Shard],
    *,
    workers: int | None = None,
    size: int = 0,
) -> list[T]:
    """Return [function(shard) for shard in shards], in parallel where that is faster.

    Remote files use threads, local files processes.

    Args:
      shards: paths or open files.
      workers: number of threads or processes; None: decide by `size`.
      size: bytes of all files.
    """
    is_remote = isinstance(getattr(shards[0], "path", shards[0]), RemotePath)
    if workers is None:
        workers = _default_workers(is_remote, size)
    workers = min(workers, len(shards))
    if workers == 1:
        return [function(shard) for shard in shards]
    chunksize = 1 if is_remote else max(1, len(shards) // (8 * workers))
    with _make_pool(workers, is_remote) as pool:
        return list(pool.map(function, shards, chunksize=chunksize))


def _default_workers(is_remote: bool, size: int) -> int:
    if is_remote:
        return REMOTE_THREADS
    if size < PARALLEL_BYTES:
        return 1
    return os.cpu_count() or 1


def _make_pool(workers: int, is_remote: bool) -> Executor:
    if is_remote:
        return ThreadPoolExecutor(workers)
    # Spawn processes: JAX's threads do not survive a fork.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def check_crc(shard: Shard) -> list[tuple[int, str]]:
    """Return (record number, problem) of each record whose payload fails its checksum."""
    damage: list[RecordError] = []
    good = {number for number, *_ in shard.records(verify_crc=True, damage=damage)}
    last = max(good, default=-1) + len(damage)
    bad = sorted(set(range(last + 1)) - good)
    return [(number, str(error)) for number, error in zip(bad, damage, strict=False)]


def _index_shard(shard: Shard) -> FrameIndex:
    """Index one file; its shard number is 0 in the result."""
    columns: dict[str, int] = {}
    records = []
    rows: list[dict[int, tuple]] = []  # by record: column -> location
    offsets = array.array("q")
    damage: list[RecordError] = []
    for number, position, payload in shard.records(damage=damage):
        try:
            features = locate_features(payload, shard.peeker(position))
        except (ValueError, IndexError, KeyError) as error:
            problem = f"not a tf.train.Example ({error})"
            damage.append(RecordError(shard.path, number, position, problem))
            continue
        row = {}
        for name, location in features.items():
            column = columns.setdefault(name, len(columns))
            row[column] = (*location[:4], len(offsets))
            offsets.extend(location.offsets)
        records.append((0, number, position, len(payload)))
        rows.append(row)
    locations = np.full((len(rows), len(columns), 5), -1, np.int64)
    for e, row in enumerate(rows):
        locations[e, list(row)] = list(row.values())
    return FrameIndex(
        columns,
        np.array(records, np.int64).reshape(-1, 4),
        locations,
        np.array(offsets, np.int64),
        [str(error) for error in damage],
    )


def _merge(indices: Sequence[FrameIndex]) -> FrameIndex:
    """Merge the indices of a split's files, in order."""
    names: set[str] = set()
    damaged: list[str] = []
    for index in indices:
        names.update(index.columns)
        damaged += index.damaged
    columns = {name: column for column, name in enumerate(sorted(names))}
    records = np.concatenate([index.records for index in indices])
    records[:, 0] = np.repeat(np.arange(len(indices)), [len(index.records) for index in indices])
    locations = np.full((len(records), len(columns), 5), -1, np.int64)
    first = 0
    num_offsets = 0
    for index in indices:
        last = first + len(index.records)
        index.locations[..., 4] += num_offsets
        locations[first:last, [columns[name] for name in index.columns]] = index.locations
        first = last
        num_offsets += len(index.offsets)
    offsets = np.concatenate([index.offsets for index in indices])
    return FrameIndex(columns, records, locations, offsets, damaged)
