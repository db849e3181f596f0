"""RLDS datasets by frame: any step of any episode is one small read and one decode, without TensorFlow.

    dataset = RLDSDataset("data/metaworld_etc/1.0.0")
    dataset.frame(1234, ["observation/front", "language_instruction"])

`python -m etcvla.data.rlds DIRECTORY` prints what a dataset holds.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from etcvla.data.frame_index import load_index
from etcvla.data.records import (
    BYTES,
    FLOATS,
    INTS,
    RecordError,
    allow_open_files,
    open_buffer,
    read_element,
    read_floats,
    read_ints,
    record_spans,
)
from etcvla.data.rlds_layout import Feature, find_shards, find_version, read_features, shard_lengths


class RLDSDataset:
    """One split of an RLDS dataset on disk (TFRecord by TFDS), read by a frame index.

    Frames are numbered through the split, episodes in file order. All reading is free of locks and shared state, so
    that any number of threads may share one dataset; pickling one (for worker processes) carries its arguments alone.

    Attributes:
      features: step features by name, without the leading "steps/".
      lengths: int64[E] steps of each episode. starts: int64[E + 1] first frame of each episode, and the end.
    """

    def __init__(self, directory: str | Path, split: str = "train", *, cache_dir: str | Path | None = None,
                 verify_crc: bool = False, episodes: Sequence[int] | None = None):
        """Opens the split; the first time, builds its frame index and keeps it.

        Args:
          directory: the version folder, or its parent if that holds one version.
          cache_dir: where the index is kept; by default in a hidden folder beside the data.
          verify_crc: check every record's payload against its checksum (reads everything once).
          episodes: read these alone, as episodes 0, 1, ..

        Raises:
          FileNotFoundError: no dataset, split or shard there.
          ValueError: features.json is not RLDS; an episode is empty or does not match features.json.
          RecordError: a record is truncated or damaged.
        """
        self._arguments = {"split": split, "cache_dir": cache_dir, "episodes": episodes}
        self.directory, self.split = find_version(Path(directory)), split
        self.features, self._metadata = read_features(self.directory)
        self._shards = find_shards(self.directory, split)
        allow_open_files(len(self._shards))
        self._buffers = [open_buffer(path) for path in self._shards]
        if verify_crc:
            for path, buffer in zip(self._shards, self._buffers, strict=True):
                for _ in record_spans(path, buffer, verify_crc=True):
                    pass
        self._index = load_index(self._shards, self._buffers, _cache_path(self.directory, split, cache_dir))
        self._check_shard_lengths()
        self._records = _select(len(self._index.records), episodes)
        self.lengths = self._episode_lengths()
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self.num_episodes, self.num_frames = len(self.lengths), int(self.starts[-1])

    def __reduce__(self):
        return functools.partial(RLDSDataset, self.directory, **self._arguments, verify_crc=False), ()

    def __repr__(self) -> str:
        return (f"RLDSDataset({str(self.directory)!r}, {self.split!r}): {self.num_episodes:,} episodes, "
                f"{self.num_frames:,} frames")

    def locate(self, frame: int) -> tuple[int, int]:
        """(episode, step) of a frame. Raises IndexError outside 0 .. num_frames - 1."""
        if not 0 <= frame < self.num_frames:
            raise IndexError(f"frame {frame} of {self!r}")
        episode = int(self.starts.searchsorted(frame, side="right")) - 1
        return episode, int(frame - self.starts[episode])

    def feature(self, name: str) -> Feature:
        """The step feature `name`. Raises KeyError with the closest names if there is none."""
        if name not in self.features:
            close = difflib.get_close_matches(name, self.features, 3, 0.5)
            raise KeyError(f"{self.directory} has no step feature {name!r}; "
                           + (f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(self.features)}"))
        return self.features[name]

    def frame(self, frame: int, names: Sequence[str]) -> dict[str, Any]:
        """One step: images uint8[H, W, 3], texts str, tensors dtype[shape]; a list (or an array) where ragged."""
        episode, step = self.locate(frame)
        return {name: self._steps(self.feature(name), episode, step, step + 1)[0] for name in names}

    def window(self, frame: int, name: str, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        """The values of `horizon` steps from `frame` on: float32[P, A], and bool[P], False past the episode's end.

        There the last value is repeated. A is the product of the feature's shape.
        """
        episode, step = self.locate(frame)
        stop = min(step + horizon, int(self.lengths[episode]))
        feature = self.feature(name)
        if feature.kind != "tensor" or feature.ragged:
            raise ValueError(f"{name} of {self.directory} is {_kind(feature)}: a window needs a tensor")
        values = self._steps(feature, episode, step, stop).reshape(stop - step, -1)
        present = np.arange(horizon) < stop - step
        return values[np.minimum(np.arange(horizon), stop - step - 1)].astype(np.float32), present

    def column(self, name: str) -> np.ndarray | list:
        """All frames' values: tensors as one dtype[num_frames, ...], texts as a list, ragged features as a list a
        frame. Images do not fit in memory and raise ValueError."""
        feature = self.feature(name)
        if feature.kind == "image":
            raise ValueError(f"{name} of {self.directory} is {_kind(feature)}: read it by frame")
        parts = [self._steps(feature, episode, 0, int(self.lengths[episode])) for episode in range(self.num_episodes)]
        if feature.kind == "tensor" and not feature.ragged:
            return np.concatenate(parts)
        values = [value for part in parts for value in part]
        return _share_texts(values) if feature.kind == "text" else values

    def metadata(self, episode: int) -> dict[str, Any]:
        """All that is said of an episode as a whole: texts str, tensors dtype[shape], lists where ragged. Names are
        those on disk without "episode_metadata/"."""
        return {name: self._metadatum(feature, episode) for name, feature in self._metadata.items()
                if feature.kind != "other"}

    def where(self, episode: int) -> tuple[Path, int, int]:
        """(file, record in it, byte offset) of an episode."""
        record = self._records[episode]
        shard, offset, _ = self._index.records[record].tolist()
        return self._shards[shard], int(record - np.searchsorted(self._index.records[:, 0], shard)), offset

    def _metadatum(self, feature: Feature, episode: int) -> Any:
        stored = self._values(feature, feature.path, episode)[3]
        if feature.ragged:
            return self._slice(feature, episode, 0, stored // feature.width)
        if stored != feature.width:
            raise RecordError(*self.where(episode), f"{feature.path} has {stored} values instead of {feature.width}")
        return self._slice(feature, episode, 0, 1)[0]

    def _steps(self, feature: Feature, episode: int, start: int, stop: int) -> np.ndarray | list:
        """Steps start .. stop of an episode, as an array where the feature is a tensor and not ragged."""
        if not feature.ragged:
            return self._slice(feature, episode, start, stop)
        mark = self._values(feature, feature.count_path, episode)[4]
        splits = self._index.marks[mark + start:mark + stop + 1].tolist()
        return [self._slice(feature, episode, first, last) for first, last in zip(splits, splits[1:], strict=False)]

    def _slice(self, feature: Feature, episode: int, start: int, stop: int) -> np.ndarray | list:
        """Values start .. stop of an episode's flat list of values."""
        kind, first, size, count, mark = self._values(feature, feature.values_path, episode)
        if count and (kind == BYTES) != (feature.encoding != "none"):
            raise RecordError(*self.where(episode), f"{feature.path} does not hold what features.json says")
        buffer = self._buffers[self._index.records[self._records[episode], 0]]
        width = feature.width
        if feature.encoding != "none":
            marks = self._index.marks[mark + start:mark + stop].tolist()
            values = [self._decode(feature, episode, read_element(buffer, at), start + i)
                      for i, at in enumerate(marks)]
            return values if feature.kind != "tensor" else np.stack(values)
        if kind == FLOATS:
            numbers = read_floats(buffer, first + 4 * width * start, width * (stop - start))
        else:
            numbers = read_ints(buffer, first, size)[width * start:width * stop]
        return numbers.astype(feature.dtype).reshape(stop - start, *feature.shape)

    def _decode(self, feature: Feature, episode: int, data: bytes, number: int) -> Any:
        try:
            return feature.decode(data)
        except Exception as error:  # damaged data fails in as many ways as there are decoders
            problem = f"{feature.path}, value {number} does not decode: {error}"
            raise RecordError(*self.where(episode), problem) from error

    def _values(self, feature: Feature, path: str, episode: int) -> list[int]:
        """(kind, start, size, count, first mark) of a column in an episode."""
        if feature.kind == "other":
            raise ValueError(f"{feature.path} of {self.directory} is of a structure that cannot be read")
        column = self._index.columns.get(path)
        found = [-1] if column is None else self._index.values[self._records[episode], column].tolist()
        if found[0] < 0:
            raise RecordError(*self.where(episode), f"{path} is missing, though features.json has it")
        return found

    def _places(self, path: str) -> np.ndarray:
        """int64[E, 5] of a column in all episodes; -1 where it is absent."""
        if path not in self._index.columns:
            return np.full((len(self._records), 5), -1)
        return self._index.values[self._records, self._index.columns[path]]

    def _episode_lengths(self) -> np.ndarray:
        """int64[E]; raises RecordError where the features of an episode disagree, or it has no steps."""
        if not len(self._records):
            raise ValueError(f"{self.directory}, split {self.split}: no episodes")
        lengths = np.full(len(self._records), -1)
        for feature in self.features.values():
            if feature.kind == "other" or not feature.width:
                continue
            kinds, counts = self._places(feature.count_path)[:, [0, 3]].T
            width = 1 if feature.ragged else feature.width
            lengths = np.where((lengths < 0) & (kinds >= 0), counts // width, lengths)
            self._demand((kinds < 0) | (counts == lengths * width), feature, "disagrees with the other features' steps")
            if feature.ragged:
                self._check_ragged(feature)
        for episode in np.flatnonzero(lengths < 1)[:1].tolist():
            raise RecordError(*self.where(episode), f"episode {episode} has no steps; leave it out by episodes=")
        return lengths

    def _check_ragged(self, feature: Feature) -> None:
        lengths, flat = self._places(feature.count_path), self._places(feature.values_path)
        stored = lengths[:, 0] == INTS
        last = np.where(stored, lengths[:, 4] + lengths[:, 3], 0)
        total = self._index.marks[last] * feature.width
        self._demand(~stored | (flat[:, 3] == total), feature, "has other values than its row lengths say")

    def _demand(self, good: np.ndarray, feature: Feature, problem: str) -> None:
        for episode in np.flatnonzero(~good)[:1].tolist():
            raise RecordError(*self.where(episode), f"{feature.path} {problem}")

    def _check_shard_lengths(self) -> None:
        """A file cut at a record's border shows only against dataset_info.json."""
        expected = shard_lengths(self.directory, self.split)
        found = np.bincount(self._index.records[:, 0], minlength=len(self._shards)).tolist()
        if expected not in (None, found):
            raise ValueError(f"{self.directory}, split {self.split}: the files hold {found} episodes, "
                             f"dataset_info.json says {expected}: incomplete copy?")


def _cache_path(directory: Path, split: str, cache_dir: str | Path | None) -> Path:
    if cache_dir is None:
        return directory / ".frame_index" / split
    digest = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:12]
    return Path(cache_dir) / f"{directory.parent.name}-{directory.name}-{split}-{digest}"


def _select(total: int, episodes: Sequence[int] | None) -> np.ndarray:
    if episodes is None:
        return np.arange(total)
    selected = np.asarray(episodes, np.int64).reshape(-1)
    if len(selected) and (selected.min() < 0 or selected.max() >= total):
        raise IndexError(f"episodes {selected.min()} .. {selected.max()} asked for, the split has 0 .. {total - 1}")
    return selected


def _kind(feature: Feature) -> str:
    return f"{'a ragged' if feature.ragged else 'one'} {feature.kind} a step"


def _share_texts(values: Iterable) -> list:
    """The same values with equal strings stored once: instructions and kinds repeat at every step."""
    pool: dict[str, str] = {}
    return [pool.setdefault(value, value) if isinstance(value, str) else [pool.setdefault(v, v) for v in value]
            for value in values]


def describe(dataset: RLDSDataset) -> str:
    """What a dataset holds, with the first frame's values, as a table."""
    lines = [f"{dataset!r} ({dataset.lengths.min()} to {dataset.lengths.max()} an episode)"]
    for name, feature in dataset.features.items():
        shape = "x".join("?" if size is None else str(size) for size in feature.shape)
        kind = f"{feature.kind}{' list' if feature.ragged else ''}"
        value = "" if feature.kind == "other" else _brief(dataset.frame(0, [name])[name])
        lines.append(f"  {name:<32} {kind:<12} {feature.dtype!s:<8} {shape:<10} {value}")
    lines.append("first episode:")
    lines += [f"  {name:<32} {_brief(value)}" for name, value in dataset.metadata(0).items()]
    return "\n".join(lines)


def _brief(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.ndim == 3 and value.dtype == np.uint8:
        return "mean RGB " + " ".join(f"{mean:.0f}" for mean in value.mean((0, 1)))
    value = value.item() if isinstance(value, np.generic) else value
    text = np.array2string(value, precision=3, threshold=8) if isinstance(value, np.ndarray) else repr(value)
    text = " ".join(text.split())
    return text if len(text) < 60 else text[:57] + "..."


def main() -> None:
    parser = argparse.ArgumentParser(description="Print what an RLDS dataset holds.")
    parser.add_argument("directory", help="version folder of the dataset, or its parent")
    parser.add_argument("--split", default="train")
    parser.add_argument("--cache_dir", help="where the frame index is kept (default: beside the data)")
    arguments = parser.parse_args()
    try:
        print(describe(RLDSDataset(arguments.directory, arguments.split, cache_dir=arguments.cache_dir)))
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
