"""The frame index: the location of each value of each episode.

It is built in one pass over a split's files and kept on disk.

Axes: E records (episodes), K columns (features as named on disk), M offsets.
"""

from __future__ import annotations

import array
import dataclasses
import itertools
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

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
    versions = map_files(file_version, paths)
    shards = [[path.name, *version] for path, version in zip(paths, versions, strict=True)]
    return {"version": cache.VERSION, "shards": shards}


def load_index(
    shards: Sequence[Shard], index_cache: cache.IndexCache, *, processes: int | None = None
) -> FrameIndex:
    """Load the index of files from the cache, or build and cache it.

    Damaged records are left out and noted in `FrameIndex.damaged`.

    Args:
      processes: for local files; None: as many as are useful for their size.
    """
    if processes is None:
        is_large = sum(shard.size for shard in shards) >= PARALLEL_BYTES
        processes = min(os.cpu_count() or 1, len(shards)) if is_large else 1

    def _build() -> cache.Entry:
        index = _merge(map_files(_index_shard, shards, processes=processes))
        about = {"columns": index.columns, "damaged": index.damaged}
        return about, [index.records, index.locations, index.offsets]

    about, arrays = index_cache.get("index", _build)
    return FrameIndex(about["columns"], *arrays, about["damaged"])


def map_files(
    function: Callable[[Any], T], files: Sequence[AnyPath | Shard], *, processes: int = 1
) -> list[T]:
    """Return [function(file) for file in files], for remote files by threads.

    Args:
      files: paths or open files.
      processes: number of processes for local files.
    """
    if isinstance(getattr(files[0], "path", files[0]), RemotePath):
        with ThreadPoolExecutor(REMOTE_THREADS) as pool:
            return list(pool.map(function, files))
    if processes == 1:
        return list(map(function, files))
    # Spawn processes: JAX's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    chunksize = max(1, len(files) // (8 * processes))
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        return list(pool.map(function, files, chunksize=chunksize))


class _ShardIndex(NamedTuple):
    """The index of one file.

    Attributes:
      records: (number, position, payload size) of each record.
      locations: for each record by feature name, kind, start, size, count and first offset.
      offsets: int64[M].
      damaged: the problem of each record that is left out.
    """

    records: list[tuple[int, int, int]]
    locations: list[dict[str, tuple[int, ...]]]
    offsets: np.ndarray
    damaged: list[str]


def _index_shard(shard: Shard) -> _ShardIndex:
    records = []
    locations = []
    offsets = array.array("q")
    damage: list[RecordError] = []
    for number, position, payload in shard.records(report=damage.append):
        try:
            features = locate_features(payload, shard.peeker(position))
        except (ValueError, IndexError, KeyError) as error:
            problem = f"not a tf.train.Example ({error})"
            damage.append(RecordError.at(shard.path, number, position, problem))
            continue
        record_locations = {}
        for name, location in features.items():
            record_locations[name] = (*location[:4], len(offsets))
            offsets.extend(location.offsets)
        records.append((number, position, len(payload)))
        locations.append(record_locations)
    return _ShardIndex(records, locations, np.array(offsets, np.int64), list(map(str, damage)))


def _merge(indices: Sequence[_ShardIndex]) -> FrameIndex:
    """Merge the indices of a split's files, in order."""
    all_locations = list(itertools.chain.from_iterable(index.locations for index in indices))
    names = sorted(set().union(*all_locations))
    columns = {name: column for column, name in enumerate(names)}
    locations = np.full((len(all_locations), len(columns), 5), -1, np.int64)
    records = []
    damaged = []
    num_offsets = 0
    for shard, index in enumerate(indices):
        for record, record_locations in zip(index.records, index.locations, strict=True):
            for name, location in record_locations.items():
                locations[len(records), columns[name]] = location
                locations[len(records), columns[name], 4] += num_offsets
            records.append((shard, *record))
        num_offsets += len(index.offsets)
        damaged += index.damaged
    offsets = np.concatenate([index.offsets for index in indices])
    return FrameIndex(
        columns, np.array(records, np.int64).reshape(-1, 4), locations, offsets, damaged
    )
