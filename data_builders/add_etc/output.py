"""Writer of the converted dataset.

It writes one file after another to a folder beside the final one. A build that is killed resumes
with the first unfinished file, and the folder gets its final name at the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tensorflow as tf

from data_builders.add_etc.episodes import LabelledEpisode
from data_builders.add_etc.records import RecordEncoder, append_features
from data_builders.common.metadata import build_metadata
from data_builders.common.progress import show_progress
from etcvla.data.rlds import RLDSDataset
from etcvla.data.shards import open_shard
from etcvla.errors import UserError
from etcvla.files import write_json


@dataclasses.dataclass(frozen=True)
class CopySettings:
    """Everything that the content of the dataset depends on."""

    source: str  # name, and digest of its dataset_info.json
    adapter: dict
    num_objects: int
    objects: tuple[str, ...] = ()
    stride: int = 0
    calibration: str = ""  # name and digest of the file
    detector: str = ""
    endpoint: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON reads them."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def metadata(self) -> dict[str, Any]:
        """Return the content of metadata.json without item counts."""
        return build_metadata(
            self.to_dict(),
            ("numpy", "pillow"),
            seeding="an episode's items: crc32 of its episode_id",
        )

    def is_built(self, path: Path) -> bool:
        """Return whether this dataset exists at `path`; raise UserError if another one does."""
        if not path.exists():
            return False
        config = self.metadata()["config"]
        file = path / "metadata.json"
        built = json.loads(file.read_text()).get("config", {}) if file.is_file() else {}
        different = [
            name for name in sorted({*built, *config}) if built.get(name) != config.get(name)
        ]
        if different:
            raise UserError(
                f"{path} was built with other {', '.join(different)}; delete it to build it again"
            )
        return True

    def note(self) -> str:
        """Return a sentence for the dataset's description."""
        sources = ["phases by the robot's state"]
        if self.calibration:
            sources.append("projection by calibration")
        if self.detector:
            sources.append(f"boxes by {self.detector}")
        if self.endpoint:
            sources.append(f"words by {self.endpoint}")
        return f"With annotation and ETC items by data_builders.add_etc ({'; '.join(sources)})."


@dataclasses.dataclass
class ItemCounts:
    """Numbers of written items by question type, and of dropped items by reason."""

    items: Counter[str] = dataclasses.field(default_factory=Counter)
    dropped: Counter[str] = dataclasses.field(default_factory=Counter)

    def add_episode(self, labelled: LabelledEpisode) -> None:
        """Count the items of one episode."""
        for step_items in labelled.items:
            self.items.update(item.question_type for item in step_items)
        self.dropped.update(labelled.dropped)


class DatasetWriter:
    """Writes a dataset: `write_split` for each split, then `finish`.

    Args:
      path: the final folder.
      settings: if they differ from those of an unfinished build, that build starts again.
    """

    def __init__(self, path: Path, settings: CopySettings):
        self.path = path
        self.counts = ItemCounts()
        self._settings = settings
        self._work = path.with_name(f"incomplete.{path.name}")
        # Settings of the build, the file in progress, and statistics of finished files.
        self._state = self._work / ".add_etc"
        self._statistics: dict[str, list[dict]] = {}
        settings_file = self._state / "settings.json"
        is_same_build = settings_file.is_file() and (
            json.loads(settings_file.read_text()) == settings.to_dict()
        )
        if self._work.exists() and not is_same_build:
            shutil.rmtree(self._work)
        self._state.mkdir(parents=True, exist_ok=True)
        write_json(settings_file, settings.to_dict())

    def write_split(
        self,
        dataset: RLDSDataset,
        annotate: Callable[[int], LabelledEpisode],
        encoder: RecordEncoder,
        threads: int = 1,
    ) -> None:
        """Write the files of a split that are not finished yet, and count the items of all."""
        self._statistics[dataset.split] = []
        episodes_of_file = _group_by_file(dataset)
        files = show_progress(
            episodes_of_file.items(),
            total=len(episodes_of_file),
            label=f"add_etc {dataset.split}",
        )
        for source, episodes in files:
            name = source.name.replace(".array_record-", ".tfrecord-")
            statistics_file = self._state / f"{name}.json"
            if not (self._work / name).is_file():
                partial = self._state / name
                with _annotate_all(annotate, episodes, threads) as labelled:
                    statistics = _write_file(partial, dataset, episodes, labelled, encoder)
                write_json(statistics_file, statistics)
                partial.rename(self._work / name)
            statistics = json.loads(statistics_file.read_text())
            self._statistics[dataset.split].append(statistics)
            self.counts.items.update(statistics["items"])
            self.counts.dropped.update(statistics["dropped"])

    def finish(self, source: Path, features: dict) -> None:
        """Write the dataset's description, and give the folder its final name."""
        info = json.loads((source / "dataset_info.json").read_text())
        info["fileFormat"] = "tfrecord"
        description = info.get("description", "")
        info["description"] = f"{description}\n\n{self._settings.note()}".strip()
        for split in info["splits"]:
            statistics = self._statistics[split["name"]]
            split["numBytes"] = str(sum(file["bytes"] for file in statistics))
            split["shardLengths"] = [str(file["episodes"]) for file in statistics]
        metadata = self._settings.metadata()
        metadata["dropped_items"] = dict(self.counts.dropped.most_common())
        for name, document in {
            "dataset_info.json": info,
            "features.json": features,
            "metadata.json": metadata,
        }.items():
            text = json.dumps(document, indent=2, sort_keys=True)
            (self._work / name).write_text(text)
        self._work.rename(self.path)
        shutil.rmtree(self.path / self._state.name)


def _write_file(
    out: Path,
    dataset: RLDSDataset,
    episodes: Sequence[int],
    labelled_episodes: Iterable[LabelledEpisode],
    encoder: RecordEncoder,
) -> dict:
    """Write one file and return its statistics."""
    counts = ItemCounts()
    num_bytes = 0
    source_records = _read_records(dataset, episodes)
    with tf.io.TFRecordWriter(str(out)) as writer:
        for source_record, labelled in zip(source_records, labelled_episodes, strict=True):
            record = append_features(source_record, encoder.encode(labelled))
            writer.write(record)
            num_bytes += len(record)
            counts.add_episode(labelled)
    return {
        "episodes": len(episodes),
        "bytes": num_bytes,
        "items": counts.items,
        "dropped": counts.dropped,
    }


def _read_records(dataset: RLDSDataset, episodes: Sequence[int]) -> Iterator[bytes]:
    """Yield the records of episodes of one file in order.

    Raises RecordError if a record does not match its checksum.
    """
    numbers = {dataset.where(episode)[1] for episode in episodes}
    path = dataset.where(episodes[0])[0]
    for number, _, record in open_shard(path).records(verify_crc=True):
        if number in numbers:
            yield bytes(record)


@contextlib.contextmanager
def _annotate_all(
    annotate: Callable[[int], LabelledEpisode], episodes: Sequence[int], threads: int
) -> Iterator[Iterable[LabelledEpisode]]:
    """Yield an iterator of the annotated episodes in order.

    With several threads, episodes wait for the endpoint at the same time. After an error no further
    episode starts.
    """
    if threads == 1:
        yield map(annotate, episodes)
        return
    with ThreadPoolExecutor(threads) as pool:
        try:
            yield pool.map(annotate, episodes)
        finally:
            pool.shutdown(cancel_futures=True)


def _group_by_file(dataset: RLDSDataset) -> dict[Path, list[int]]:
    episodes_of_file: dict[Path, list[int]] = {}
    for episode in range(dataset.num_episodes):
        episodes_of_file.setdefault(dataset.where(episode)[0], []).append(episode)
    return episodes_of_file
