"""Read RLDS datasets by frame: any step of any episode is one small read, without TensorFlow.

    dataset = RLDSDataset("data/metaworld_etc/1.0.0")
    dataset.frame(1234, ["observation/front", "language_instruction"])

`python -m etcvla.data.rlds DIRECTORY` prints the contents of a dataset.
"""

from __future__ import annotations

import argparse
import collections
import functools
import hashlib
import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from etcvla.data.cache import IndexCache, cache_folders
from etcvla.data.episodes import NO_BUFFERS, Episodes, PendingImages, is_vector
from etcvla.data.frame_index import check_crc, files_key, load_index, map_shards
from etcvla.data.records import (
    BYTES,
    FLOATS,
    INTS,
    Buffer,
    RecordError,
    read_element,
    read_floats,
    read_ints,
)
from etcvla.data.rlds_layout import Feature, find_shards, find_version, read_features, shard_lengths
from etcvla.data.shards import open_shard
from etcvla.data.storage import ByteRange, RemotePath, allow_open_files, as_path
from etcvla.errors import UserError
from etcvla.names import lookup

DAMAGED = {
    "raise": "stop with an error at damaged data",
    "skip": "leave damaged data out and count it",
}
log = logging.getLogger(__name__)


class _FlatValues(NamedTuple):
    """The flat values first .. last - 1 of a feature in an episode.

    Attributes:
      location: kind, start, size, count and first offset, as in `FrameIndex.locations`.
    """

    feature: Feature
    location: list[int]
    first: int
    last: int


class RLDSDataset(Episodes):
    """One split of a dataset on disk (TFRecord or ArrayRecord by TFDS), read by a frame index.

    Frames are numbered through the split, episodes in file order. Reading TFRecord uses no locks
    and no shared state, so any number of threads may share a dataset. Pickling it (for worker
    processes) saves its arguments only. A dataset without steps (image and text) has episodes of
    one step.

    Attributes (the others as of `Episodes`):
      skipped: by problem, the number of records, episodes and frames that were left out.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        split: str = "train",
        *,
        cache_dir: str | Path | None = None,
        verify_crc: bool = False,
        damaged: str = "raise",
        episodes: Sequence[int] | None = None,
    ):
        """Open the split; the first time, build and cache its frame index.

        Args:
          directory: the version folder, or its parent if that has one version; a path or a URL
            (gs://, s3://).
          cache_dir: where the index and columns are cached; by default a hidden folder beside the
            data, or `cache.INDEX_FOLDER` if that is not writable.
          verify_crc: check every record's payload against its checksum (reads all data once).
          damaged: what happens at records that are damaged or do not match features.json; a name
            of `DAMAGED`.
          episodes: read only these episodes, as episodes 0, 1, ...

        Raises:
          UserError: there is no such dataset, split or file, features.json is invalid, or no
            episode is left.
          RecordError: a record is damaged, or an episode is empty or does not match features.json.
        """
        lookup(DAMAGED, damaged, "data.on_damaged")
        self._arguments = {
            "split": split,
            "cache_dir": cache_dir,
            "damaged": damaged,
            "episodes": episodes,
        }
        self.directory = find_version(as_path(directory))
        self.split = split
        self.damaged = damaged
        self.features, self._metadata = read_features(self.directory)
        self._paths = find_shards(self.directory, split)
        self.skipped: collections.Counter[str] = collections.Counter()
        self._known_problems: set[str] = set()
        folders = cache_folders(self.directory, split, cache_dir)
        split_cache = IndexCache(folders, files_key(self._paths))
        self._open_shards(split_cache)
        all_records = len(self._index.records)
        self._records = _select(all_records, episodes)  # int64[E], record of each episode
        if verify_crc:
            self._records = self._records[~np.isin(self._records, self._bad_crc())]
        self.set_lengths(self._check_episodes())
        self.cache = split_cache
        if len(self._records) != all_records:
            digest = hashlib.sha256(self._records.tobytes()).hexdigest()[:16]
            self.cache = split_cache.below(digest)

    def _open_shards(self, split_cache: IndexCache) -> None:
        """Open the files and load their index."""
        allow_open_files(len(self._paths))
        self._shards = map_shards(open_shard, self._paths, workers=self._io_workers)
        self.whole_records = self._shards[0].whole_records
        self._index = load_index(self._shards, split_cache)
        for problem in self._index.damaged:
            self._raise_or_skip("damaged records", RecordError.from_message(problem))
        if not self._index.damaged:
            self._check_shard_lengths()

    def __reduce__(self):
        make = functools.partial(RLDSDataset, self.directory, **self._arguments, verify_crc=False)
        return make, ()

    def steps(
        self,
        episode: int,
        start: int,
        stop: int,
        names: Sequence[str],
        buffers: Mapping[str, np.ndarray] = NO_BUFFERS,
        pending: PendingImages | None = None,
    ) -> dict[str, np.ndarray | list]:
        """Read steps by one read of the file; see `Episodes.steps`."""
        features = [self.feature(name) for name in names]
        values = self._read(features, episode, start, stop, buffers, pending)
        return dict(zip(names, values, strict=True))

    def frames(
        self,
        frames: Sequence[int],
        names: Sequence[str],
        buffers: Mapping[str, Sequence[np.ndarray]] = NO_BUFFERS,
        pending: Sequence[PendingImages] | None = None,
    ) -> list[dict[str, Any]]:
        """Read frames, locating cached vectors, texts and images of all of them at once."""
        columns, other_names = self._cached_columns(names)
        features = [self.feature(name) for name in other_names]
        if not all(feature.is_plain and feature.kind in ("image", "text") for feature in features):
            return super().frames(frames, names, buffers, pending)
        episode_array, step_array = self.locate_all(frames)
        elements = self._elements(features, episode_array, step_array)
        episodes = episode_array.tolist()
        steps = step_array.tolist()
        values = []
        for i, frame in enumerate(frames):
            frame_values = {name: column[frame] for name, column in columns.items()}
            for feature, element in zip(features, elements[i], strict=True):
                buffer = buffers[feature.name][i] if feature.name in buffers else None
                decode = functools.partial(
                    self._decode, feature, episodes[i], steps[i], element, buffer
                )
                if pending is not None and buffer is not None and feature.shape == buffer.shape:
                    pending[i].append(decode)
                    frame_values[feature.name] = buffer
                else:
                    frame_values[feature.name] = decode()
            values.append(frame_values)
        return values

    def _elements(
        self, features: Sequence[Feature], episodes: np.ndarray, steps: np.ndarray
    ) -> list[list[Buffer]]:
        """Read the encoded values of features with one byte string per step.

        Args:
          episodes, steps: int64[N].

        Returns: for each of N steps, the bytes of each feature.
        """
        records = self._records[episodes]
        ranges = [self._element_ranges(feature, episodes, steps).tolist() for feature in features]
        shards, _, positions, _ = self._index.records[records].T.tolist()
        elements = []
        for i, shard in enumerate(shards):
            data = self._shards[shard].read(positions[i], [of_steps[i] for of_steps in ranges])
            elements.append(list(map(read_element, data)))
        return elements

    def _element_ranges(
        self, feature: Feature, episodes: np.ndarray, steps: np.ndarray
    ) -> np.ndarray:
        """Return the byte range of a feature's element at each step, int64[N, 2]."""
        locations = self._locations(feature.path, self._records[episodes])
        kind, start, size, count, first_offset = locations.T
        for i in np.flatnonzero(kind != BYTES).tolist():
            step = int(steps[i])
            self._read([feature], int(episodes[i]), step, step + 1)  # raises a RecordError
        offsets = self._index.offsets
        begin = offsets[first_offset + steps]
        next_offset = offsets[np.minimum(first_offset + steps + 1, len(offsets) - 1)]
        end = np.where(steps + 1 < count, next_offset - 1, start + size)
        return np.stack([begin, end - begin], axis=1)

    def column(self, name: str) -> np.ndarray | list:
        """Read a feature of all frames; see `Episodes.column`."""
        feature = self.feature(name)
        is_uncached_vector = (
            feature.is_plain and is_vector(feature) and self.cached_column(name) is None
        )
        if is_uncached_vector and not self.whole_records:
            locations = self._locations(feature.path, self._records)
            if (locations[:, 0] == FLOATS).all():
                return self._cache_column(name, self._all_floats(feature, locations))
        return super().column(name)

    def _all_floats(self, feature: Feature, locations: np.ndarray) -> np.ndarray:
        """Read a vector of all frames by one read of each file, dtype[num_frames, ...].

        Args:
          locations: int64[E, 5].
        """
        shards, _, positions, _ = self._index.records[self._records].T
        ranges = np.stack([positions + locations[:, 1], locations[:, 2]], axis=1)
        data: list[Buffer] = [b""] * len(locations)
        for shard in np.unique(shards).tolist():
            episodes = np.flatnonzero(shards == shard)
            values = self._shards[shard].read(0, ranges[episodes].tolist())
            for episode, episode_data in zip(episodes.tolist(), values, strict=True):
                data[episode] = episode_data
        return read_floats(b"".join(data)).astype(feature.dtype).reshape(-1, *feature.shape)

    def metadata(self, episode: int) -> dict[str, Any]:
        """Return an episode's features: texts str, tensors dtype[shape], lists where ragged."""
        return {
            name: self._episode_value(feature, episode)
            for name, feature in self._metadata.items()
            if feature.kind != "other"
        }

    def where(self, episode: int) -> tuple[Path, int, int]:
        """Return (file, record number in it, position in it) of an episode."""
        shard, number, position, _ = self._index.records[self._records[episode]].tolist()
        return self._paths[shard], number, position

    def skip(self, reason: str, problem: Exception | str) -> None:
        """Count data that is left out, each problem once; log the first of each reason."""
        if not self.skipped[reason]:
            log.warning(
                "%s, split %s: leaving out %s; the first: %s",
                self.directory,
                self.split,
                reason,
                problem,
            )
        if str(problem) not in self._known_problems:
            self.skipped[reason] += 1
            self._known_problems.add(str(problem))

    def _raise_or_skip(self, reason: str, error: Exception) -> None:
        if self.damaged == "raise":
            raise error
        self.skip(reason, error)

    def _episode_value(self, feature: Feature, episode: int) -> Any:
        """Read an episode feature."""
        stored = self._location(feature, feature.count_path, episode)[3]
        if feature.ragged:
            is_nested = feature.list_paths or not feature.width
            count = stored if is_nested else stored // feature.width
            return self._read([feature], episode, 0, count)[0]
        if feature.width and stored != feature.width:
            raise RecordError(
                *self.where(episode),
                f"{feature.path} has {stored} values instead of {feature.width}",
            )
        return self._read([feature], episode, 0, 1)[0][0]

    def _read(
        self,
        features: Sequence[Feature],
        episode: int,
        start: int,
        stop: int,
        buffers: Mapping[str, np.ndarray] = NO_BUFFERS,
        pending: PendingImages | None = None,
    ) -> list[np.ndarray | list]:
        """Read the entries start .. stop - 1 of each feature's outermost list by one file read.

        For a dataset without steps, a list is read as a whole.

        Returns: per feature, an array for a tensor that is not a list, else a list.
        """
        shard, _, position, _ = self._index.records[self._records[episode]].tolist()
        slices = []
        splits_by_level = []
        ranges = []
        for feature in features:
            location = self._location(feature, feature.values_path, episode)
            splits, first, last = self._flat_bounds(feature, episode, start, stop)
            flat_values = _FlatValues(feature, location, first, last)
            slices.append(flat_values)
            splits_by_level.append(splits)
            ranges.append(self._byte_range(flat_values, episode))
        data = self._shards[shard].read(position, ranges)
        results = []
        for flat_values, splits, value_data in zip(slices, splits_by_level, data, strict=True):
            feature = flat_values.feature
            buffer = buffers.get(feature.name)
            values = self._parse(flat_values, episode, value_data, buffer, pending)
            results.append(values if feature.is_plain else _nest(feature, splits, values))
        return results

    def _flat_bounds(
        self, feature: Feature, episode: int, start: int, stop: int
    ) -> tuple[list[list[int]], int, int]:
        """Return (running sums of the list lengths at each level, first, last) of entries.

        `first` and `last` bound the entries' values in the column of flat values.
        """
        if feature.is_plain:
            return [], start, stop
        if feature.is_record_list:
            stored = self._location(feature, feature.count_path, episode)[3]
            start = 0
            stop = stored if feature.list_paths else stored // max(1, feature.width)
        splits_by_level = []
        for path in feature.list_paths:
            first_offset = self._location(feature, path, episode)[4]
            splits = self._index.offsets[first_offset + start : first_offset + stop + 1].tolist()
            splits_by_level.append(splits)
            start = splits[0]
            stop = splits[-1]
        return splits_by_level, start, stop

    def _byte_range(self, flat_values: _FlatValues, episode: int) -> ByteRange:
        """Return the bytes of the payload that contain flat values."""
        feature, (kind, start, size, count, first_offset), first, last = flat_values
        if count and (kind == BYTES) != (feature.encoding != "none"):
            raise RecordError(
                *self.where(episode), f"{feature.path} has another type than in features.json"
            )
        if kind == BYTES and first < last:
            offsets = self._index.offsets
            begin = int(offsets[first_offset + first])
            end = int(offsets[first_offset + last]) - 1 if last < count else start + size
            return begin, end - begin
        if kind == FLOATS and feature.width:
            return start + 4 * feature.width * first, 4 * feature.width * (last - first)
        return start, size

    def _parse(
        self,
        flat_values: _FlatValues,
        episode: int,
        data: Buffer,
        buffer: np.ndarray | None,
        pending: PendingImages | None,
    ) -> np.ndarray | list:
        """Return flat values from the bytes of their range; for images see `Episodes.steps`."""
        feature, location, first, last = flat_values
        if feature.encoding != "none":
            return self._parse_bytes(flat_values, episode, data, buffer, pending)
        is_float = location[0] == FLOATS
        numbers = read_floats(data) if is_float else read_ints(data)
        if not feature.width:
            return feature.shaped(numbers.astype(feature.dtype))[None]
        if not is_float:
            numbers = numbers[feature.width * first : feature.width * last]
        return numbers.astype(feature.dtype).reshape(last - first, *feature.shape)

    def _parse_bytes(
        self,
        flat_values: _FlatValues,
        episode: int,
        data: Buffer,
        buffer: np.ndarray | None,
        pending: PendingImages | None,
    ) -> np.ndarray | list:
        """Decode the elements of a list of bytes."""
        feature, location, first, last = flat_values
        element_offsets = [0]
        if last - first != 1:
            first_offset = location[4]
            offsets = self._index.offsets[first_offset + first : first_offset + last]
            element_offsets = (offsets - offsets[:1]).tolist()
        fits = buffer is not None and len(buffer) == len(element_offsets)
        decodes = []
        for i, offset in enumerate(element_offsets):
            element = read_element(data, offset)
            element_buffer = buffer[i] if fits else None
            decodes.append(
                functools.partial(
                    self._decode, feature, episode, first + i, element, element_buffer
                )
            )
        if fits and pending is not None and feature.shape == buffer.shape[1:]:
            pending += decodes
            return buffer
        values = [decode() for decode in decodes]
        return np.stack(values) if feature.kind == "tensor" and values else values

    def _decode(
        self, feature: Feature, episode: int, number: int, data: Buffer, buffer: np.ndarray | None
    ) -> Any:
        """Decode value `number` of a feature in an episode. Raises RecordError if it is damaged."""
        try:
            return feature.decode(data, buffer)
        except Exception as error:  # each decoder raises its own errors at damaged data
            problem = f"{feature.path}, value {number} does not decode: {error}"
            raise RecordError(*self.where(episode), problem) from error

    def _location(self, feature: Feature, path: str, episode: int) -> list[int]:
        """Return (kind, start, size, count, first offset) of a feature's column in an episode."""
        if feature.kind == "other":
            raise UserError(f"{feature.path} of {self.directory} has a type that cannot be read")
        column = self._index.columns.get(path)
        if column is not None:
            location = self._index.locations[self._records[episode], column].tolist()
            if location[0] >= 0:
                return location
        raise RecordError(*self.where(episode), f"{path} is missing, but features.json has it")

    def _locations(self, path: str, records: np.ndarray) -> np.ndarray:
        """Return the location of a column in each record, int64[E, 5]; -1 where it is absent."""
        if path not in self._index.columns:
            return np.full((len(records), 5), -1)
        return self._index.locations[records, self._index.columns[path]]

    def _check_episodes(self) -> np.ndarray:
        """Compare the episodes with features.json and leave out those that do not match.

        Returns: the lengths of the episodes that are left, int64[E].
        """
        lengths = np.full(len(self._records), -1)
        good = np.ones(len(self._records), bool)
        if not any(feature.in_steps for feature in self.features.values()):
            lengths[:] = 1
        for feature in self.features.values():
            if feature.kind == "other" or not feature.width:
                continue
            if feature.in_steps:
                width = 1 if feature.ragged else feature.width
                kinds, counts = self._locations(feature.count_path, self._records)[:, [0, 3]].T
                lengths = np.where((lengths < 0) & (kinds >= 0), counts // width, lengths)
                fits = (kinds < 0) | (counts == lengths * width)
                problem = "disagrees with the other features about the number of steps"
                good = self._keep_fitting(good, fits, feature, problem)
            if feature.list_paths:
                good = self._check_lists(feature, good)
        for episode in np.flatnonzero(good & (lengths < 1)).tolist():
            problem = f'episode {episode} has no steps; leave it out by episodes= or damaged="skip"'
            self._raise_or_skip("empty episodes", RecordError(*self.where(episode), problem))
        good &= lengths > 0
        self._records = self._records[good]
        if not len(self._records):
            raise UserError(
                f"{self.directory}, split {self.split}: no episodes; use another split or dataset"
            )
        return lengths[good]

    def _check_lists(self, feature: Feature, good: np.ndarray) -> np.ndarray:
        """Leave out episodes whose list lengths do not add up to the entries of the next level.

        Args:
          good: bool[E], the episodes that are not left out yet.
        """
        paths = [*feature.list_paths, feature.values_path]
        for path, inner_path in itertools.pairwise(paths):
            kind, _, _, count, first_offset = self._locations(path, self._records).T
            entries = self._locations(inner_path, self._records)[:, 3]
            is_stored = kind == INTS
            total = self._index.offsets[np.where(is_stored, first_offset + count, 0)]
            width = feature.width if inner_path == feature.values_path else 1
            fits = ~is_stored | (entries == total * width)
            problem = "has another number of values than its row lengths"
            good = self._keep_fitting(good, fits, feature, problem)
        return good

    def _keep_fitting(
        self, good: np.ndarray, fits: np.ndarray, feature: Feature, problem: str
    ) -> np.ndarray:
        """Report the good episodes that do not fit. Returns: bool[E], good & fits."""
        for episode in np.flatnonzero(good & ~fits).tolist():
            self._raise_or_skip(
                "episodes that do not match features.json",
                RecordError(*self.where(episode), f"{feature.path} {problem}"),
            )
        return good & fits

    def _bad_crc(self) -> np.ndarray:
        """Return the records whose payload does not match its checksum, int64[n]."""
        problems = {}
        damage_by_shard = map_shards(check_crc, self._shards, workers=self._io_workers)
        for shard, damage in enumerate(damage_by_shard):
            for number, problem in damage:
                problems[shard, number] = problem
        bad = []
        for record, (shard, number) in enumerate(self._index.records[:, :2].tolist()):
            if (shard, number) in problems:
                error = RecordError.from_message(problems[shard, number])
                self._raise_or_skip("damaged records", error)
                bad.append(record)
        return np.array(bad, np.int64)

    @property
    def _io_workers(self) -> int | None:
        """Workers that open or check files: many for remote files, one process for local ones."""
        return None if isinstance(self.directory, RemotePath) else 1

    def _check_shard_lengths(self) -> None:
        """Compare the number of records with dataset_info.json.

        Nothing else shows that a file was cut at the border of a record.
        """
        expected = shard_lengths(self.directory, self.split)
        lengths = np.bincount(self._index.records[:, 0], minlength=len(self._paths)).tolist()
        if expected is not None and expected != lengths:
            error = UserError(
                f"{self.directory}, split {self.split}: the files have {lengths} episodes, but "
                f"dataset_info.json says {expected}: incomplete copy?"
            )
            self._raise_or_skip("incomplete files", error)


def _nest(
    feature: Feature, splits_by_level: list[list[int]], values: np.ndarray | list
) -> np.ndarray | list:
    """Cut flat values into nested lists at the running sums of `RLDSDataset._flat_bounds`."""
    for splits in reversed(splits_by_level):
        origin = splits[0]
        values = [
            values[start - origin : stop - origin] for start, stop in itertools.pairwise(splits)
        ]
    return [values] if feature.is_record_list else values


def _select(total: int, episodes: Sequence[int] | None) -> np.ndarray:
    """Return the record numbers of the episodes to read, int64[E]."""
    if episodes is None:
        return np.arange(total)
    selected = np.asarray(episodes, np.int64).reshape(-1)
    if len(selected) and (selected.min() < 0 or selected.max() >= total):
        raise IndexError(
            f"episodes= has {selected.min()} .. {selected.max()}, "
            f"but the split has episodes 0 .. {total - 1}"
        )
    return selected


def describe(dataset: Episodes) -> str:
    """Return a table of a dataset's features with the values of the first frame and episode."""
    lengths = dataset.lengths
    lines = [f"{dataset!r} ({lengths.min()} to {lengths.max()} per episode)"]
    for name, feature in dataset.features.items():
        shape = "x".join("?" if size is None else str(size) for size in feature.shape)
        kind = f"{feature.kind}{' list' if feature.ragged else ''}"
        value = ""
        if feature.kind != "other":
            value = _short_text(dataset.frame(0, [name])[name])
        lines.append(f"  {name:<32} {kind:<12} {feature.dtype!s:<8} {shape:<10} {value}")
    lines.append("first episode:")
    lines += [f"  {name:<32} {_short_text(value)}" for name, value in dataset.metadata(0).items()]
    return "\n".join(lines)


def _short_text(value: Any) -> str:
    """Return a value as text of at most 60 characters; an image as its mean color."""
    if isinstance(value, np.ndarray) and value.ndim == 3 and value.dtype == np.uint8:
        return "mean RGB " + " ".join(f"{mean:.0f}" for mean in value.mean((0, 1)))
    if isinstance(value, np.ndarray):
        text = np.array2string(value, precision=3, threshold=8)
    else:
        text = repr(value.item() if isinstance(value, np.generic) else value)
    text = " ".join(text.split())
    return text if len(text) < 60 else text[:57] + "..."


def main() -> None:
    """Print the contents of the dataset that the command line names."""
    parser = argparse.ArgumentParser(description="Print the contents of an RLDS dataset.")
    parser.add_argument("directory", help="version folder of the dataset, or its parent")
    parser.add_argument("--split", default="train", help="name of the split")
    parser.add_argument("--cache_dir", help="folder of the frame index (default: beside the data)")
    arguments = parser.parse_args()
    try:
        dataset = RLDSDataset(arguments.directory, arguments.split, cache_dir=arguments.cache_dir)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    print(describe(dataset))


if __name__ == "__main__":
    main()
