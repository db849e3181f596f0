"""The same dataset with more features: every record is copied byte for byte, and what is new is put behind it.

So whatever a dataset holds is kept, its images are not encoded again, and nothing that we cannot read gets lost. Work
goes file by file into a folder beside the final one; a build that was killed goes on with the first file that it has
not finished, and the folder gets its final name when all is there.
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

import numpy as np
from google.protobuf import json_format

from data_builders.add_etc.episodes import Labelled
from data_builders.common.build import progress, provenance, tf
from data_builders.common.rlds_schema import encode_items, robot_features
from etcvla.data.adapters import INSTRUCTION
from etcvla.data.rlds import RLDSDataset
from etcvla.data.shards import open_shard
from etcvla.etc.annotation import INT_FIELDS
from etcvla.etc.items import ITEM_FIELDS

_EXAMPLE_FEATURES = b"\x0a"  # the tag of field 1, length-delimited: all that a tf.train.Example has
DROPPED = "dropped "
_SHARED = frozenset(
    {"episode_id", "task", "scene", "success", "rate"}
)  # of an episode: the source's, if it has them


def splits(directory: Path) -> list[str]:
    """Raises FileNotFoundError without dataset_info.json, ValueError if that names no split."""
    path = directory / "dataset_info.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: not a whole TFDS dataset")
    found = [split["name"] for split in json.loads(path.read_text()).get("splits", [])]
    if not found:
        raise ValueError(f"{path} names no split")
    return found


def new_features(num_cameras: int, num_objects: int) -> tuple[dict, dict]:
    """(step features, episode features) in the form of features.json that a dataset with annotation and ETC has."""
    schema = robot_features(
        cameras=[f"camera{i}" for i in range(num_cameras)],
        image_size=1,
        num_objects=num_objects,
        state_doc="",
        state_size=1,
        action_doc="",
        action_size=1,
    )
    whole = json_format.MessageToDict(schema.to_proto())["featuresDict"]["features"]
    steps = whole["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    episode = whole["episode_metadata"]["featuresDict"]["features"]
    episode["turned"] = episode["cameras"] | {
        "description": "Those of the cameras whose images are stored upside down; annotation and ETC see them upright."
    }
    return {name: steps[name] for name in ("annotation", "etc", INSTRUCTION)}, episode


def extend_features(source: dict, num_cameras: int, num_objects: int) -> tuple[dict, list[str]]:
    """features.json with what is new, and the names of new features outside annotation and ETC: the source's own are
    kept.

    Raises ValueError if the source has annotation or ETC already, or other things by the names of theirs.
    """
    steps, episode = new_features(num_cameras, num_objects)
    extended = json.loads(json.dumps(source))
    whole = extended["featuresDict"]["features"]
    at = whole["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    about = whole.setdefault(
        "episode_metadata",
        {"pythonClassName": extended["pythonClassName"], "featuresDict": {"features": {}}},
    )["featuresDict"]["features"]
    if there := [
        *(f"steps/{name}" for name in ("annotation", "etc") if name in at),
        *(f"episode_metadata/{name}" for name in sorted(set(episode) - _SHARED) if name in about),
    ]:
        raise ValueError(f"the dataset has {', '.join(there)} already")
    added = [
        *(f"steps/{name}" for name in (INSTRUCTION,) if name not in at),
        *(f"episode_metadata/{name}" for name in sorted(set(episode) - set(about))),
    ]
    at |= {name: feature for name, feature in steps.items() if name not in at}
    about |= {name: feature for name, feature in episode.items() if name not in about}
    return extended, added


def encode(labelled: Labelled, num_objects: int, added: Sequence[str]) -> bytes:
    """The new features of an episode as entries of tf.train.Features, in TFDS's names and order.

    Args:
      added: as of `extend_features`.
    """
    facts = labelled.annotation
    columns = {
        f"steps/annotation/{name}": _ints(value) if name in INT_FIELDS else _floats(value)
        for name, value in facts.pad_objects(num_objects).items()
    }
    rows = [encode_items(items) for items in labelled.items]
    for name in ("grade", *ITEM_FIELDS):
        columns[f"steps/etc/{name}/ragged_flat_values"] = _texts(
            item[name] for row in rows for item in row
        )
        columns[f"steps/etc/{name}/ragged_row_lengths_0"] = _ints([len(row) for row in rows])
    about = {
        "episode_id": _texts([labelled.episode_id]),
        "task": _texts([""]),
        "scene": _texts([""]),
        "success": _ints([bool(facts.success)]),
        "rate": _floats([facts.rate]),
        "target": _ints([facts.target]),
        "turned": _texts(labelled.turned),
        **{
            name: _texts(getattr(facts, name))
            for name in ("cameras", "objects", "colors", "phases", "shapes", "axes")
        },
    }
    may_add = {
        f"steps/{INSTRUCTION}": _texts([facts.instruction] * len(facts)),
        **{f"episode_metadata/{name}": value for name, value in about.items()},
    }
    columns |= {name: may_add[name] for name in added}
    return tf.train.Features(feature=columns).SerializeToString(deterministic=True)


def append(payload: bytes, entries: bytes) -> bytes:
    """A tf.train.Example with more features. Raises ValueError if `payload` is none."""
    # All that an Example has is one field, its features: a tag, their size, and they themselves to the end.
    for start in range(2, min(12, len(payload) + 1)):
        if payload[:start] == _EXAMPLE_FEATURES + _varint(len(payload) - start):
            body = payload[start:] + entries
            return _EXAMPLE_FEATURES + _varint(len(body)) + body
    raise ValueError("not a tf.train.Example")


@dataclasses.dataclass(frozen=True)
class CopySettings:
    """All that the content depends on; `splits`' records are made anew where any of it differs."""

    source: str  # its name and the digest of its dataset_info.json
    adapter: dict
    num_objects: int
    objects: tuple[str, ...] = ()
    stride: int = 0
    calibration: str = ""  # the file's name and digest
    detector: str = ""
    endpoint: str = ""

    def made(self, path: Path) -> bool:
        """Is there such a dataset at `path`? Raises ValueError where there is another."""
        if not path.exists():
            return False
        about, now = path / "metadata.json", provenance(self, (), seeds="")["config"]
        there = json.loads(about.read_text()).get("config", {}) if about.is_file() else {}
        now = json.loads(json.dumps(now))
        if other := sorted(
            name for name in there.keys() | now.keys() if there.get(name) != now.get(name)
        ):
            raise ValueError(
                f"{path} was built with other {', '.join(other)}; delete it to build it again"
            )
        return True


class Output:
    """A dataset that is being written: `write_split` for each split, then `finish`.

    Args:
      path: the final folder. recipe: another one than before starts afresh.
    """

    def __init__(self, path: Path, recipe: CopySettings):
        self.path, self._work, self._recipe = (
            path,
            path.with_name(f"incomplete.{path.name}"),
            recipe,
        )
        self._state = (
            self._work / ".add_etc"
        )  # of this work: its recipe, a file under way, counts of those finished
        about, marker = (
            json.dumps(dataclasses.asdict(recipe), sort_keys=True),
            self._state / "recipe.json",
        )
        if self._work.exists() and not (marker.is_file() and marker.read_text() == about):
            shutil.rmtree(self._work)
        self._state.mkdir(parents=True, exist_ok=True)
        marker.write_text(about)
        self._statistics: dict[str, list[dict]] = {}

    def write_split(
        self,
        dataset: RLDSDataset,
        annotate: Callable[[int], Labelled],
        *,
        num_objects: int,
        added: Sequence[str],
        threads: int = 1,
    ) -> Counter:
        """Writes the split's files, or finds them written; returns items, by question_type, and what was left out, by reason."""
        done = self._statistics[dataset.split] = []
        episodes = _by_file(dataset)
        for path, members in progress(
            episodes.items(), total=len(episodes), what=f"add_etc {dataset.split}"
        ):
            name = path.name.replace(".array_record-", ".tfrecord-")
            noted, partial = self._state / f"{name}.json", self._state / name
            if not (self._work / name).is_file():
                statistics = _write_file(
                    partial, dataset, members, annotate, num_objects, added, threads
                )
                noted.write_text(json.dumps(statistics))
                partial.rename(self._work / name)
            done.append(json.loads(noted.read_text()))
        return sum((Counter(part["counts"]) for part in done), Counter())

    def finish(self, source: Path, features: dict) -> None:
        """Writes what describes the dataset, and gives it its final name."""
        info = json.loads((source / "dataset_info.json").read_text())
        info["fileFormat"] = "tfrecord"
        info["description"] = f"{info.get('description', '')}\n\n{self._note()}".strip()
        for split in info["splits"]:
            split["numBytes"] = str(sum(part["bytes"] for part in self._statistics[split["name"]]))
            split["shardLengths"] = [
                str(part["episodes"]) for part in self._statistics[split["name"]]
            ]
        made = provenance(
            self._recipe, ("numpy", "pillow"), seeds="an episode's items: crc32 of its episode_id"
        )
        for name, text in {
            "dataset_info.json": info,
            "features.json": features,
            "metadata.json": made | {"dropped": self._dropped()},
        }.items():
            (self._work / name).write_text(json.dumps(text, indent=2, sort_keys=True))
        self._work.rename(self.path)
        shutil.rmtree(self.path / self._state.name)

    def _note(self) -> str:
        recipe = self._recipe
        parts = [
            "phases by the robot's state",
            "projection by calibration" if recipe.calibration else "",
            recipe.detector and f"boxes by {recipe.detector}",
            recipe.endpoint and f"words by {recipe.endpoint}",
        ]
        return f"With annotation and ETC items by data_builders.add_etc ({'; '.join(filter(None, parts))})."

    def _dropped(self) -> dict[str, int]:
        counts = sum(
            (Counter(part["counts"]) for parts in self._statistics.values() for part in parts),
            Counter(),
        )
        return {
            name.removeprefix(DROPPED): count
            for name, count in counts.most_common()
            if name.startswith(DROPPED)
        }


def _write_file(
    out: Path,
    dataset: RLDSDataset,
    episodes: Sequence[int],
    annotate: Callable[[int], Labelled],
    num_objects: int,
    added: Sequence[str],
    threads: int,
) -> dict:
    """Writes one file, and returns its statistics."""
    counts, size = Counter(), 0
    with tf.io.TFRecordWriter(str(out)) as writer, _results(annotate, episodes, threads) as results:
        for payload, labelled in zip(_payloads(dataset, episodes), results, strict=True):
            record = append(payload, encode(labelled, num_objects, added))
            writer.write(record)
            size += len(record)
            counts.update(
                f"items {item.question_type}" for items in labelled.items for item in items
            )
            counts.update({DROPPED + reason: count for reason, count in labelled.dropped.items()})
    return {"episodes": len(episodes), "bytes": size, "counts": counts}


def _payloads(dataset: RLDSDataset, episodes: Sequence[int]) -> Iterator[bytes]:
    """The records of episodes of one file, in order. Raises RecordError where one does not match its checksum."""
    numbers = {dataset.where(episode)[1] for episode in episodes}
    records = open_shard(dataset.where(episodes[0])[0]).records(verify_crc=True)
    return (bytes(payload) for number, _, payload in records if number in numbers)


@contextlib.contextmanager
def _results(
    annotate: Callable[[int], Labelled], episodes: Sequence[int], threads: int
) -> Iterator[Iterable]:
    """Annotated episodes in order. Threads wait for endpoints; after an error no further episode is begun."""
    if threads == 1:
        yield map(annotate, episodes)
        return
    with ThreadPoolExecutor(threads) as pool:
        try:
            yield pool.map(annotate, episodes)
        finally:
            pool.shutdown(cancel_futures=True)


def _by_file(dataset: RLDSDataset) -> dict[Path, list[int]]:
    files: dict[Path, list[int]] = {}
    for episode in range(dataset.num_episodes):
        files.setdefault(dataset.where(episode)[0], []).append(episode)
    return files


def _floats(values) -> tf.train.Feature:
    return tf.train.Feature(
        float_list=tf.train.FloatList(value=np.ravel(values).astype(np.float32))
    )


def _ints(values) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=np.ravel(values).astype(np.int64)))


def _texts(values: Iterable[str]) -> tf.train.Feature:
    return tf.train.Feature(
        bytes_list=tf.train.BytesList(value=[value.encode() for value in values])
    )


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
