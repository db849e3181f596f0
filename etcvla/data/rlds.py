"""RLDS datasets by frame: any step of any episode is one small read and one decode, without TensorFlow.

    dataset = RLDSDataset("data/metaworld_etc/1.0.0")
    dataset.frame(1234, ["observation/front", "language_instruction"])

`python -m etcvla.data.rlds DIRECTORY` prints what a dataset holds.
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
from typing import Any

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
from etcvla.names import lookup

DAMAGED = {"raise": "stop with an error", "skip": "leave it out, and count"}
log = logging.getLogger(__name__)


class RLDSDataset(Episodes):
    """One split of a dataset on disk (TFRecord or ArrayRecord by TFDS), read by a frame index.

    Frames are numbered through the split, episodes in file order. Reading TFRecord is free of locks and shared state,
    so that any number of threads may share one; pickling it (for worker processes) carries its arguments alone.
    A dataset without steps (image and text) has episodes of one step each.

    Attributes:
      features, lengths, starts, damaged, whole_records: as of `Episodes`.
      skipped: how many records, episodes and frames were left out, by what is wrong with them.
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
        """Opens the split; the first time, builds its frame index and keeps it.

        Args:
          directory: the version folder, or its parent if that holds one version; a path or a URL (gs://, s3://).
          cache_dir: where the index and columns are kept; by default in a hidden folder beside the data, else in
            `cache.INDEX_FOLDER`.
          verify_crc: check every record's payload against its checksum (reads everything once).
          damaged: what to do about records that are damaged or do not fit features.json; a name of DAMAGED.
          episodes: read these alone, as episodes 0, 1, ..

        Raises:
          FileNotFoundError: no dataset, split or shard there.
          ValueError: features.json is none, or no episode is left.
          RecordError: a record is truncated or damaged, or an episode is empty or does not match features.json.
        """
        lookup(DAMAGED, damaged, "data.on_damaged")
        self._arguments = {
            "split": split,
            "cache_dir": cache_dir,
            "damaged": damaged,
            "episodes": episodes,
        }
        self.directory, self.split, self.damaged = find_version(as_path(directory)), split, damaged
        self.features, self._metadata = read_features(self.directory)
        self._paths = find_shards(self.directory, split)
        self.skipped: collections.Counter[str] = collections.Counter()
        self._known_damage: set[str] = set()
        kept = IndexCache(cache_folders(self.directory, split, cache_dir), files_key(self._paths))
        allow_open_files(len(self._paths))
        self._shards = map_shards(open_shard, self._paths, workers=self._near)
        self._index = load_index(self._shards, kept)
        for problem in self._index.damaged:
            self._skip("damaged records", problem)
        if not self._index.damaged:
            self._check_shard_lengths()
        self.whole_records = self._shards[0].whole_records
        self._records = _select(len(self._index.records), episodes)
        if verify_crc:
            self._leave_out(~np.isin(self._records, self._bad_crc()))
        self.number(self._episode_lengths())
        whole = len(self._records) == len(self._index.records)
        self.cache = (
            kept if whole else kept.below(hashlib.sha256(self._records.tobytes()).hexdigest()[:16])
        )

    def __reduce__(self):
        return functools.partial(
            RLDSDataset, self.directory, **self._arguments, verify_crc=False
        ), ()

    def steps(
        self,
        episode: int,
        start: int,
        stop: int,
        names: Sequence[str],
        into: Mapping[str, np.ndarray] = NO_BUFFERS,
        pending: PendingImages | None = None,
    ) -> dict[str, np.ndarray | list]:
        """As of `Episodes`: images uint8[H, W, 3], texts str, tensors dtype[shape]; by one look at the file."""
        features = [self.feature(name) for name in names]
        return dict(
            zip(names, self._read(features, episode, start, stop, into, pending), strict=True)
        )

    def frames(
        self,
        frames: Sequence[int],
        names: Sequence[str],
        into: Mapping[str, Sequence[np.ndarray]] = NO_BUFFERS,
        pending: Sequence[PendingImages] | None = None,
    ) -> list[dict[str, Any]]:
        """As of `Episodes`; what is a vector, a text or an image is found for all frames at once."""
        kept = {name: column for name in names if (column := self.kept(name)) is not None}
        rest = [self.feature(name) for name in names if name not in kept]
        if not all(feature.is_plain and feature.kind in ("image", "text") for feature in rest):
            return super().frames(frames, names, into, pending)
        episodes, steps = self.locate_all(frames)
        found = []
        for i, (frame, episode, step, *elements) in enumerate(
            zip(
                frames,
                episodes.tolist(),
                steps.tolist(),
                *self._elements(rest, episodes, steps),
                strict=True,
            )
        ):
            facts = {name: column[frame] for name, column in kept.items()}
            for feature, element in zip(rest, elements, strict=True):
                buffer = into[feature.name][i] if feature.name in into else None
                decode = functools.partial(self._decode, feature, episode, step, element, buffer)
                if pending is not None and buffer is not None and feature.shape == buffer.shape:
                    pending[i].append(decode)
                    facts[feature.name] = buffer
                else:
                    facts[feature.name] = decode()
            found.append(facts)
        return found

    def _elements(
        self, features: Sequence[Feature], episodes: np.ndarray, steps: np.ndarray
    ) -> list[list[Buffer]]:
        """What features that have one byte string a step hold at some steps: a list a feature."""
        records, spans = self._records[episodes], []
        for feature in features:
            kind, start, size, count, mark = self._places(feature.path, records).T
            for bad in np.flatnonzero(kind != BYTES).tolist():
                self._read(
                    [feature], int(episodes[bad]), int(steps[bad]), int(steps[bad]) + 1
                )  # which says why
            begin = self._index.marks[mark + steps]
            after = self._index.marks[np.minimum(mark + steps + 1, len(self._index.marks) - 1)]
            end = np.where(steps + 1 < count, after - 1, start + size)
            spans.append(np.stack([begin, end - begin], axis=1).tolist())
        shards, _, places, _ = self._index.records[records].T.tolist()
        read = [
            map(read_element, self._shards[shard].read(place, of))
            for shard, place, *of in zip(shards, places, *spans, strict=True)
        ]
        return [list(of) for of in zip(*read, strict=True)]

    def column(self, name: str) -> np.ndarray | list:
        """As of `Episodes`."""
        feature = self.feature(name)
        if (
            self.kept(name) is None
            and is_vector(feature)
            and feature.is_plain
            and not self.whole_records
        ):
            places = self._places(feature.path)
            if (places[:, 0] == FLOATS).all():
                return self._keep(name, self._all_floats(feature, places))
        return super().column(name)

    def _all_floats(self, feature: Feature, places: np.ndarray) -> np.ndarray:
        """All frames' values of a vector that lies at int64[E, 5] `places`; one look at each file."""
        shards, _, payloads, _ = self._index.records[self._records].T
        parts: list[Buffer] = [b""] * len(places)
        for shard in np.unique(shards).tolist():
            episodes = np.flatnonzero(shards == shard).tolist()
            spans = list(
                zip(
                    (payloads + places[:, 1])[episodes].tolist(),
                    places[episodes, 2].tolist(),
                    strict=True,
                )
            )
            for episode, part in zip(episodes, self._shards[shard].read(0, spans), strict=True):
                parts[episode] = part
        return read_floats(b"".join(parts)).astype(feature.dtype).reshape(-1, *feature.shape)

    def metadata(self, episode: int) -> dict[str, Any]:
        """All that is said of an episode as a whole: texts str, tensors dtype[shape], lists where ragged. Names are
        those on disk without "episode_metadata/"."""
        return {
            name: self._metadatum(feature, episode)
            for name, feature in self._metadata.items()
            if feature.kind != "other"
        }

    def where(self, episode: int) -> tuple[Path, int, int]:
        """(file, record in it, byte offset) of an episode."""
        shard, number, place, _ = self._index.records[self._records[episode]].tolist()
        return self._paths[shard], number, place

    def skip(self, reason: str, problem: Exception | str) -> None:
        """Counts one thing that is left out because it is damaged, once; the first of a kind is logged."""
        if not self.skipped[reason]:
            log.warning(
                "%s, split %s: %s are left out, the first: %s",
                self.directory,
                self.split,
                reason,
                problem,
            )
        self.skipped[reason] += str(problem) not in self._known_damage
        self._known_damage.add(str(problem))

    def _skip(self, reason: str, problem: Exception | str) -> None:
        if self.damaged == "raise":
            raise problem if isinstance(problem, Exception) else RecordError.saying(problem)
        self.skip(reason, problem)

    def _metadatum(self, feature: Feature, episode: int) -> Any:
        stored = self._values(feature, feature.count_path, episode)[3]
        count = stored if feature.list_paths or not feature.width else stored // feature.width
        if not feature.ragged and feature.width and stored != feature.width:
            raise RecordError(
                *self.where(episode),
                f"{feature.path} has {stored} values instead of {feature.width}",
            )
        return (
            self._read([feature], episode, 0, count)[0]
            if feature.ragged
            else (self._read([feature], episode, 0, 1)[0][0])
        )

    def _read(
        self,
        features: Sequence[Feature],
        episode: int,
        start: int,
        stop: int,
        into: Mapping[str, np.ndarray] = NO_BUFFERS,
        pending: PendingImages | None = None,
    ) -> list[np.ndarray | list]:
        """Entries start .. stop of the outermost list of each feature, by one look at the file.

        An array where the feature is a tensor and no list. Of a dataset without steps a list has all values of the one.
        """
        shard, _, place, _ = self._index.records[self._records[episode]].tolist()
        wanted = []
        for feature in features:
            column = self._values(feature, feature.values_path, episode)
            bounds = (
                [(start, stop)] if feature.is_plain else self._bounds(feature, episode, start, stop)
            )
            wanted.append(
                (feature, column, bounds, self._span(feature, episode, column, *bounds[-1]))
            )
        data = self._shards[shard].read(place, [span for *_, span in wanted])
        found = []
        for (feature, column, bounds, _), part in zip(wanted, data, strict=True):
            values = self._parse(
                feature, episode, column, *bounds[-1], part, into.get(feature.name), pending
            )
            found.append(values if feature.is_plain else self._nest(feature, bounds, values))
        return found

    def _bounds(self, feature: Feature, episode: int, start: int, stop: int) -> list:
        """[running sums of lengths at each level of lists .., (first, last) of the flat values]."""
        found: list = []
        if not feature.in_steps and feature.ragged and feature.is_step:
            start, stop = 0, self._values(feature, feature.count_path, episode)[3]
            stop = stop if feature.list_paths else stop // max(1, feature.width)
        for path in feature.list_paths:
            mark = self._values(feature, path, episode)[4]
            found.append(self._index.marks[mark + start : mark + stop + 1].tolist())
            start, stop = found[-1][0], found[-1][-1]
        return [*found, (start, stop)]

    def _nest(self, feature: Feature, bounds: list, values: np.ndarray | list) -> np.ndarray | list:
        for splits in reversed(bounds[:-1]):
            values = [values[a - splits[0] : b - splits[0]] for a, b in itertools.pairwise(splits)]
        return [values] if not feature.in_steps and feature.ragged and feature.is_step else values

    def _span(
        self, feature: Feature, episode: int, column: Sequence[int], first: int, last: int
    ) -> ByteRange:
        """The bytes of the payload that hold flat values first .. last of a column, as of `_values`."""
        kind, start, size, count, mark = column
        if count and (kind == BYTES) != (feature.encoding != "none"):
            raise RecordError(
                *self.where(episode), f"{feature.path} does not hold what features.json says"
            )
        if kind == BYTES and first < last:
            begin = int(self._index.marks[mark + first])
            return begin, (
                int(self._index.marks[mark + last]) - 1 if last < count else start + size
            ) - begin
        if kind == FLOATS and feature.width:
            return start + 4 * feature.width * first, 4 * feature.width * (last - first)
        return start, size

    def _parse(
        self,
        feature: Feature,
        episode: int,
        column: Sequence[int],
        first: int,
        last: int,
        data: Buffer,
        into: np.ndarray | None,
        pending: PendingImages | None,
    ) -> np.ndarray | list:
        """Flat values first .. last of a column, from the bytes of their span; images in `into` if they fit, and
        `pending` if they are known to."""
        kind, *_, mark = column
        if feature.encoding != "none":
            places = [0]
            if last - first != 1:
                marks = self._index.marks[mark + first : mark + last]
                places = (marks - marks[:1]).tolist()
            elements = [read_element(data, place) for place in places]
            fits = into is not None and len(into) == len(elements)
            jobs = [
                functools.partial(
                    self._decode, feature, episode, first + i, element, into[i] if fits else None
                )
                for i, element in enumerate(elements)
            ]
            if fits and pending is not None and feature.shape == into.shape[1:]:
                pending += jobs
                return into
            values = [job() for job in jobs]
            return np.stack(values) if feature.kind == "tensor" and values else values
        numbers = read_floats(data) if kind == FLOATS else read_ints(data)
        if not feature.width:
            return feature.shaped(numbers.astype(feature.dtype))[None]
        if kind != FLOATS:
            numbers = numbers[feature.width * first : feature.width * last]
        return numbers.astype(feature.dtype).reshape(last - first, *feature.shape)

    def _decode(
        self, feature: Feature, episode: int, number: int, data: Buffer, buffer: np.ndarray | None
    ) -> Any:
        try:
            return feature.decode(data, buffer)
        except Exception as error:  # damaged data fails in as many ways as there are decoders
            problem = f"{feature.path}, value {number} does not decode: {error}"
            raise RecordError(*self.where(episode), problem) from error

    def _values(self, feature: Feature, path: str, episode: int) -> list[int]:
        """(kind, start, size, count, first mark) of a column in an episode."""
        if feature.kind == "other":
            raise ValueError(
                f"{feature.path} of {self.directory} is of a structure that cannot be read"
            )
        column = self._index.columns.get(path)
        found = (
            [-1] if column is None else self._index.values[self._records[episode], column].tolist()
        )
        if found[0] < 0:
            raise RecordError(
                *self.where(episode), f"{path} is missing, though features.json has it"
            )
        return found

    def _places(self, path: str, records: np.ndarray | None = None) -> np.ndarray:
        """int64[E, 5] of a column in some records, by default all episodes'; -1 where it is absent."""
        records = self._records if records is None else records
        if path not in self._index.columns:
            return np.full((len(records), 5), -1)
        return self._index.values[records, self._index.columns[path]]

    def _episode_lengths(self) -> np.ndarray:
        """int64[E] of the episodes that are whole; others are damage."""
        lengths = np.full(len(self._records), -1)
        good = np.ones(len(self._records), bool)
        if not any(feature.in_steps for feature in self.features.values()):
            lengths[:] = 1
        for feature in self.features.values():
            if feature.kind == "other":
                continue
            if feature.in_steps and feature.width:
                kinds, counts = self._places(feature.count_path)[:, [0, 3]].T
                width = 1 if feature.ragged else feature.width
                lengths = np.where((lengths < 0) & (kinds >= 0), counts // width, lengths)
                good &= self._demand(
                    (kinds < 0) | (counts == lengths * width),
                    good,
                    feature,
                    "disagrees with the other features' steps",
                )
            if feature.list_paths and feature.width:
                good &= self._check_lists(feature, good)
        for episode in np.flatnonzero(good & (lengths < 1)).tolist():
            self._skip(
                "empty episodes",
                RecordError(
                    *self.where(episode),
                    f'episode {episode} has no steps; leave it out by episodes= or damaged="skip"',
                ),
            )
        good &= lengths > 0
        self._leave_out(good)
        if not len(self._records):
            raise ValueError(f"{self.directory}, split {self.split}: no episodes")
        return lengths[good]

    def _check_lists(self, feature: Feature, good: np.ndarray) -> np.ndarray:
        """bool[E]: lengths at each level of lists add up to the number of entries at the next."""
        for path, inner in itertools.pairwise([*feature.list_paths, feature.values_path]):
            lengths, entries = self._places(path), self._places(inner)[:, 3]
            stored = lengths[:, 0] == INTS
            total = self._index.marks[np.where(stored, lengths[:, 4] + lengths[:, 3], 0)]
            width = feature.width if inner == feature.values_path else 1
            good = good & self._demand(
                ~stored | (entries == total * width),
                good,
                feature,
                "has other values than its row lengths say",
            )
        return good

    def _demand(
        self, fits: np.ndarray, good: np.ndarray, feature: Feature, problem: str
    ) -> np.ndarray:
        for episode in np.flatnonzero(good & ~fits).tolist():
            self._skip(
                "episodes that do not fit features.json",
                RecordError(*self.where(episode), f"{feature.path} {problem}"),
            )
        return fits

    def _leave_out(self, good: np.ndarray) -> None:
        self._records = self._records[good]

    def _bad_crc(self) -> np.ndarray:
        """Records whose payload does not match its checksum."""
        found = map_shards(check_crc, self._shards, workers=self._near)
        problems = {
            (shard, number): problem
            for shard, damage in enumerate(found)
            for number, problem in damage
        }
        bad = {
            i: problems[key]
            for i, key in enumerate(map(tuple, self._index.records[:, :2].tolist()))
            if key in problems
        }
        for problem in bad.values():
            self._skip("damaged records", problem)
        return np.array(sorted(bad), np.int64)

    @property
    def _near(self) -> int | None:
        """Workers that open or check files: many requests at once to a remote place, one process here."""
        return None if isinstance(self.directory, RemotePath) else 1

    def _check_shard_lengths(self) -> None:
        """A file cut at a record's border shows only against dataset_info.json."""
        expected = shard_lengths(self.directory, self.split)
        found = np.bincount(self._index.records[:, 0], minlength=len(self._paths)).tolist()
        if expected not in (None, found):
            self._skip(
                "incomplete files",
                ValueError(
                    f"{self.directory}, split {self.split}: the files hold {found} episodes, dataset_info.json says "
                    f"{expected}: incomplete copy?"
                ),
            )


def _select(total: int, episodes: Sequence[int] | None) -> np.ndarray:
    if episodes is None:
        return np.arange(total)
    selected = np.asarray(episodes, np.int64).reshape(-1)
    if len(selected) and (selected.min() < 0 or selected.max() >= total):
        raise IndexError(
            f"episodes {selected.min()} .. {selected.max()} asked for, the split has 0 .. {total - 1}"
        )
    return selected


def describe(dataset: Episodes) -> str:
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
    text = (
        np.array2string(value, precision=3, threshold=8)
        if isinstance(value, np.ndarray)
        else repr(value)
    )
    text = " ".join(text.split())
    return text if len(text) < 60 else text[:57] + "..."


def main() -> None:
    parser = argparse.ArgumentParser(description="Print what an RLDS dataset holds.")
    parser.add_argument("directory", help="version folder of the dataset, or its parent")
    parser.add_argument("--split", default="train")
    parser.add_argument(
        "--cache_dir", help="where the frame index is kept (default: beside the data)"
    )
    arguments = parser.parse_args()
    try:
        print(
            describe(
                RLDSDataset(arguments.directory, arguments.split, cache_dir=arguments.cache_dir)
            )
        )
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
