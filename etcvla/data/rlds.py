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
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from etcvla.data.cache import IndexCache, cache_folders
from etcvla.data.episodes import Episodes, is_vector
from etcvla.data.frame_index import files_key, load_index, map_files
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
from etcvla.data.storage import ByteRange, allow_open_files, as_path
from etcvla.errors import UserError
from etcvla.names import lookup

DAMAGED = {
    "raise": "stop with an error at damaged data",
    "skip": "leave damaged data out and count it",
}
log = logging.getLogger(__name__)


class _StoredValues(NamedTuple):
    """Where the values first .. last - 1 of a feature are in an episode's record.

    Attributes:
      kind: `FLOATS`, `INTS` or `BYTES`, as in `FrameIndex.locations`.
      first, last: the values' numbers in the column of flat values.
      splits: for each level of lists, the running sums of the list lengths, outermost first.
      byte_range: bytes of the payload that contain the values.
      offsets: for `BYTES`, where each value begins in them.
    """

    kind: int
    first: int
    last: int
    splits: list[list[int]]
    byte_range: ByteRange
    offsets: list[int]


class RLDSDataset(Episodes):
    """One split of a dataset on disk (TFRecord or ArrayRecord by TFDS), read by a frame index.

    Frames are numbered through the split, episodes in file order. Reading TFRecord uses no locks
    and no shared state, so any number of threads may share a dataset. Pickling it (for worker
    processes) saves its arguments only.

    Attributes (the others as of `Episodes`):
      skipped: by problem, the number of records, episodes and frames that were left out.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        split: str = "train",
        *,
        damaged: str = "raise",
    ):
        """Open the split; the first time, build and cache its frame index.

        Args:
          directory: the version folder, or its parent if that has one version; a path or a URL
            (gs://, s3://).
          damaged: what happens at records that are damaged or do not match features.json; a name
            of `DAMAGED`.

        Raises:
          UserError: there is no such dataset, split or file, features.json is invalid, or no
            episode is left.
          RecordError: a record is damaged, or an episode is empty or does not match features.json.
        """
        lookup(DAMAGED, damaged, "data.on_damaged")
        self.directory = find_version(as_path(directory))
        self.split = split
        self.damaged = damaged
        self.features, self._metadata = read_features(self.directory)
        self._paths = find_shards(self.directory, split)
        self.skipped: collections.Counter[str] = collections.Counter()
        self._known_problems: set[str] = set()
        self.cache = IndexCache(cache_folders(self.directory, split), files_key(self._paths))
        allow_open_files(len(self._paths))
        self._shards = map_files(open_shard, self._paths)
        self.whole_records = self._shards[0].whole_records
        self._index = load_index(self._shards, self.cache)
        for problem in self._index.damaged:
            self._raise_or_skip("damaged records", RecordError(problem))
        if not self._index.damaged:
            self._check_shard_lengths()
        num_records = len(self._index.records)
        self._records = np.arange(num_records)  # the record of each episode, int64[E]
        self.set_lengths(self._check_episodes())
        if len(self._records) < num_records:
            digest = hashlib.sha256(self._records.tobytes()).hexdigest()[:16]
            self.cache = self.cache.below(digest)

    def __reduce__(self):
        make = functools.partial(RLDSDataset, damaged=self.damaged)
        return make, (self.directory, self.split)

    def steps(
        self,
        episode: int,
        start: int,
        stop: int,
        names: Sequence[str],
        *,
        lazy_images: bool = False,
    ) -> dict[str, np.ndarray | list]:
        """Read steps by one read of the file; see `Episodes.steps`."""
        return self._read([self.feature(name) for name in names], episode, start, stop, lazy_images)

    def frames(
        self,
        frames: Sequence[int],
        names: Sequence[str],
        *,
        lazy_images: bool = False,
    ) -> list[dict[str, Any]]:
        """Read frames, locating cached vectors, texts and images of all of them at once."""
        columns, other_names = self._cached_columns(names)
        features = [self.feature(name) for name in other_names]
        if not all(feature.is_plain and feature.kind in ("image", "text") for feature in features):
            return super().frames(frames, names, lazy_images=lazy_images)
        episodes, steps = self.locate_all(frames)
        elements = self._elements(features, episodes, steps)
        values = []
        for i, (frame, episode) in enumerate(zip(frames, episodes.tolist(), strict=True)):
            frame_values = {name: column[frame] for name, column in columns.items()}
            for feature, data in zip(features, elements[i], strict=True):
                decode = functools.partial(self._decode, feature, episode, int(steps[i]), data)
                is_lazy = lazy_images and feature.kind == "image"
                frame_values[feature.name] = decode if is_lazy else decode()
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
        ranges = [self._element_ranges(feature, episodes, steps).tolist() for feature in features]
        records = self._index.records[self._records[episodes]].tolist()
        elements = []
        for i, (shard, _, position, _) in enumerate(records):
            data = self._shards[shard].read(position, [of_steps[i] for of_steps in ranges])
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
            self._find_values(feature, int(episodes[i]), step, step + 1)  # raises a RecordError
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
            return self._read([feature], episode, 0, count)[feature.name]
        if feature.width and stored != feature.width:
            problem = f"{feature.path} has {stored} values instead of {feature.width}"
            raise RecordError.at(*self.where(episode), problem)
        return self._read([feature], episode, 0, 1)[feature.name][0]

    def _read(
        self,
        features: Sequence[Feature],
        episode: int,
        start: int,
        stop: int,
        lazy_images: bool = False,
    ) -> dict[str, np.ndarray | list]:
        """Read the entries start .. stop - 1 of each feature's outermost list by one file read.

        Returns: by name, an array for a tensor that is not a list, else a list.
        """
        shard, _, position, _ = self._index.records[self._records[episode]].tolist()
        stored = [self._find_values(feature, episode, start, stop) for feature in features]
        data = self._shards[shard].read(position, [values.byte_range for values in stored])
        results = {}
        for feature, values, value_data in zip(features, stored, data, strict=True):
            if feature.encoding == "none":
                results[feature.name] = _parse_numbers(feature, values, value_data)
                continue
            decodes = []
            for number, offset in enumerate(values.offsets, start=values.first):
                element = read_element(value_data, offset)
                decodes.append(functools.partial(self._decode, feature, episode, number, element))
            if lazy_images and feature.kind == "image":
                decoded = decodes
            else:
                decoded = [decode() for decode in decodes]
            if feature.kind == "tensor" and decoded:
                decoded = np.stack(decoded)
            results[feature.name] = _nest(values.splits, decoded)
        return results

    def _find_values(self, feature: Feature, episode: int, start: int, stop: int) -> _StoredValues:
        """Locate the entries start .. stop - 1 of a feature's outermost list."""
        splits, first, last = self._flat_bounds(feature, episode, start, stop)
        location = self._location(feature, feature.values_path, episode)
        kind, begin, size, count, first_offset = location
        if count and (kind == BYTES) != (feature.encoding != "none"):
            problem = f"{feature.path} has another type than in features.json"
            raise RecordError.at(*self.where(episode), problem)
        byte_range = begin, size
        offsets = []
        if kind == BYTES:
            offsets = self._index.offsets[first_offset + first : first_offset + last].tolist()
        if offsets:
            end = begin + size
            if last < count:
                end = int(self._index.offsets[first_offset + last]) - 1  # before the next one's tag
            byte_range = offsets[0], end - offsets[0]
            offsets = [offset - offsets[0] for offset in offsets]
        elif kind == FLOATS and feature.width:
            byte_range = begin + 4 * feature.width * first, 4 * feature.width * (last - first)
        return _StoredValues(kind, first, last, splits, byte_range, offsets)

    def _flat_bounds(
        self, feature: Feature, episode: int, start: int, stop: int
    ) -> tuple[list[list[int]], int, int]:
        """Return (running sums of the list lengths at each level, first, last) of entries.

        `first` and `last` bound the entries' values in the column of flat values.
        """
        splits_by_level = []
        for path in feature.list_paths:
            first_offset = self._location(feature, path, episode)[4]
            splits = self._index.offsets[first_offset + start : first_offset + stop + 1].tolist()
            splits_by_level.append(splits)
            start = splits[0]
            stop = splits[-1]
        return splits_by_level, start, stop

    def _decode(
        self,
        feature: Feature,
        episode: int,
        number: int,
        data: Buffer,
        buffer: np.ndarray | None = None,
    ) -> Any:
        """Decode value `number` of a feature in an episode. Raises RecordError if it is damaged."""
        try:
            return feature.decode(data, buffer)
        except Exception as error:  # each decoder raises its own errors at damaged data
            problem = f"{feature.path}, value {number} does not decode: {error}"
            raise RecordError.at(*self.where(episode), problem) from error

    def _location(self, feature: Feature, path: str, episode: int) -> list[int]:
        """Return (kind, start, size, count, first offset) of a feature's column in an episode."""
        if feature.kind == "other":
            raise UserError(f"{feature.path} of {self.directory} has a type that cannot be read")
        column = self._index.columns.get(path)
        if column is not None:
            location = self._index.locations[self._records[episode], column].tolist()
            if location[0] >= 0:
                return location
        raise RecordError.at(*self.where(episode), f"{path} is missing, but features.json has it")

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
        problems: dict[int, str] = {}  # the first problem of an episode
        for feature in self.features.values():
            if feature.kind == "other" or not feature.width:
                continue
            width = 1 if feature.ragged else feature.width
            kinds, counts = self._locations(feature.count_path, self._records)[:, [0, 3]].T
            lengths = np.where((lengths < 0) & (kinds >= 0), counts // width, lengths)
            problem = f"{feature.path} disagrees with the other features about the number of steps"
            for episode in np.flatnonzero((kinds >= 0) & (counts != lengths * width)).tolist():
                problems.setdefault(episode, problem)
            for episode in self._episodes_with_wrong_lists(feature):
                problem = f"{feature.path} has another number of values than its row lengths"
                problems.setdefault(episode, problem)
        for episode, problem in problems.items():
            error = RecordError.at(*self.where(episode), problem)
            self._raise_or_skip("episodes that do not match features.json", error)
        lengths[list(problems)] = -1
        for episode in np.flatnonzero(lengths == 0).tolist():
            problem = f'episode {episode} has no steps; leave it out by damaged="skip"'
            self._raise_or_skip("empty episodes", RecordError.at(*self.where(episode), problem))
        good = lengths > 0
        self._records = self._records[good]
        if not len(self._records):
            raise UserError(
                f"{self.directory}, split {self.split}: no episodes; use another split or dataset"
            )
        return lengths[good]

    def _episodes_with_wrong_lists(self, feature: Feature) -> Iterator[int]:
        """Yield episodes whose list lengths do not add up to the entries of the next level."""
        if not feature.list_paths:
            return
        paths = [*feature.list_paths, feature.values_path]
        for path, inner_path in itertools.pairwise(paths):
            kind, _, _, count, first_offset = self._locations(path, self._records).T
            entries = self._locations(inner_path, self._records)[:, 3]
            is_stored = kind == INTS
            total = self._index.offsets[np.where(is_stored, first_offset + count, 0)]
            width = feature.width if inner_path == feature.values_path else 1
            yield from np.flatnonzero(is_stored & (entries != total * width)).tolist()

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


def _parse_numbers(feature: Feature, values: _StoredValues, data: Buffer) -> np.ndarray | list:
    """Return the numbers of a feature that is not encoded, in its shape."""
    numbers = read_floats(data) if values.kind == FLOATS else read_ints(data)
    if feature.width:
        if values.kind == INTS:  # varints have no fixed width, so all are read
            numbers = numbers[feature.width * values.first : feature.width * values.last]
        shape = (values.last - values.first, *feature.shape)
    else:
        shape = (1, *feature.reshape_sizes)
    return _nest(values.splits, numbers.astype(feature.dtype).reshape(shape))


def _nest(splits_by_level: list[list[int]], values: np.ndarray | list) -> np.ndarray | list:
    """Cut flat values into nested lists at the running sums of `RLDSDataset._flat_bounds`."""
    for splits in reversed(splits_by_level):
        bounds = itertools.pairwise(splits)
        values = [values[start - splits[0] : stop - splits[0]] for start, stop in bounds]
    return values


def describe(dataset: Episodes) -> str:
    """Return a table of a dataset's features with the values of the first frame and episode."""
    lengths = dataset.lengths
    readable = [name for name, feature in dataset.features.items() if feature.kind != "other"]
    values = dataset.frame(0, readable)
    lines = [f"{dataset!r} ({lengths.min()} to {lengths.max()} per episode)"]
    for name, feature in dataset.features.items():
        kind = f"{feature.kind}{' list' if feature.ragged else ''}"
        value = _short_text(values.get(name, ""))
        lines.append(f"  {name:<32} {kind:<12} {feature.dtype!s:<8} {feature.shape!s:<14} {value}")
    lines.append("first episode:")
    lines += [f"  {name:<32} {_short_text(value)}" for name, value in dataset.metadata(0).items()]
    return "\n".join(lines)


def _short_text(value: Any) -> str:
    """Return a value as text of at most 60 characters; an image as its mean color."""
    if isinstance(value, np.ndarray) and value.ndim == 3 and value.dtype == np.uint8:
        return f"mean RGB {value.mean((0, 1)).round()}"
    if isinstance(value, np.ndarray):
        value = np.array2string(value, precision=3, threshold=8)
    return textwrap.shorten(str(value), 60, placeholder="...")


def main() -> None:
    """Print the contents of the dataset that the command line names."""
    parser = argparse.ArgumentParser(description="Print the contents of an RLDS dataset.")
    parser.add_argument("directory", help="version folder of the dataset, or its parent")
    parser.add_argument("--split", default="train", help="name of the split")
    arguments = parser.parse_args()
    try:
        dataset = RLDSDataset(arguments.directory, arguments.split)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    print(describe(dataset))


if __name__ == "__main__":
    main()
