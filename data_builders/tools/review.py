"""A dataset without the items that people rejected: a copy, for the source stays as it is."""

from __future__ import annotations

import collections
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Set
from pathlib import Path

import tensorflow as tf

from data_builders.common.build import whole
from data_builders.tools.gallery import full_name
from data_builders.tools.publish import FILES
from etcvla.data.rlds_layout import find_shards, find_version
from etcvla.etc.review import ItemKey, Review

REASON = "human"  # under which rejected items are counted
_ETC = "steps/etc/"


def apply_review(directory: str | Path, review: str | Path) -> Path:
    """Writes <config>_reviewed-<hash> beside the dataset's config, and returns its version folder.

    All data but the rejected items are copied byte for byte; the hash is the review's, so that another review is
    another dataset. metadata.json tells where it comes from and how many items were left out for the reason "human".

    Raises:
      FileNotFoundError: no such dataset or review.
      ValueError: the review is of another dataset, or rejects an item that is not in it; files are no TFRecord.
    """
    source, judged = find_version(Path(directory)), Review.load(review)
    if judged.dataset != (name := full_name(source)):
        raise ValueError(f"{review} reviews {judged.dataset}, not {name} ({source})")
    digest = hashlib.sha256(repr(sorted(judged.rejected())).encode()).hexdigest()[:8]
    info = json.loads((source / "dataset_info.json").read_text())
    config = f"{info.get('configName') or 'default'}_reviewed-{digest}"
    target = source.parents[1 if info.get("configName") else 0] / config / source.name
    if not (target / "dataset_info.json").exists():
        with whole(target) as made:
            _copy(source, made, judged, info | {"configName": config})
    print(
        f"{full_name(target)}: items left out: {json.loads((target / 'metadata.json').read_text())['dropped']}",
        file=sys.stderr,
    )
    return target


def _copy(source: Path, target: Path, review: Review, info: dict) -> None:
    shards = find_shards(source, review.split)
    if ".array_record-" in shards[0].name:
        raise ValueError(
            f"{shards[0]}: items are left out of TFRecord files alone; let add_etc or TFDS write some"
        )
    for file in source.iterdir():
        if (
            file.is_file() and file not in shards and file.name not in FILES
        ):  # those speak of the source
            shutil.copyfile(file, target / file.name)
    left, size = set(review.rejected()), 0
    for shard in shards:
        with tf.io.TFRecordWriter(str(target / shard.name)) as writer:
            for record in tf.data.TFRecordDataset(str(shard)).as_numpy_iterator():
                record, dropped = _without(record, left)
                left -= dropped
                size += len(record)
                writer.write(record)
    if left:
        raise ValueError(
            f"the review rejects {len(left)} items that {source}, split {review.split}, does not have; "
            f"one of them: {min(left)}. Was the dataset built anew?"
        )
    for split in info["splits"]:
        if split["name"] == review.split:
            split["numBytes"] = str(size)
    (target / "dataset_info.json").write_text(json.dumps(info, indent=2))
    metadata = source / "metadata.json"
    known = json.loads(metadata.read_text()) if metadata.exists() else {}
    (target / "metadata.json").write_text(
        json.dumps(
            known
            | {
                "reviewed_from": review.dataset,
                "dropped": {REASON: len(review.rejected())},
                "accepted": list(review.verdicts.values()).count("accept"),
            }
        )
    )


def _without(record: bytes, rejected: Set[ItemKey]) -> tuple[bytes, set[ItemKey]]:
    """A serialized tf.train.Example without the rejected items, and which of them it had."""
    example = tf.train.Example.FromString(record)
    features = example.features.feature
    found = list(_keys(features))
    drop = [key in rejected for key in found]
    if not any(drop):
        return record, set()
    lengths = collections.Counter(key.step for key, out in zip(found, drop, strict=True) if not out)
    for name in [name for name in features if name.startswith(_ETC)]:
        if name.endswith("/ragged_flat_values"):
            values = features[name].bytes_list.value
            kept = [value for value, out in zip(values, drop, strict=True) if not out]
            features[name].bytes_list.value[:] = kept
        else:
            steps = len(features[name].int64_list.value)
            features[name].int64_list.value[:] = [lengths[step] for step in range(steps)]
    return example.SerializeToString(deterministic=True), {
        key for key, out in zip(found, drop, strict=True) if out
    }


def _keys(features) -> Iterator[ItemKey]:
    """Every item of an episode, in the order on disk."""
    stored = features["episode_metadata/episode_id"]
    (episode,) = [text.decode() for text in stored.bytes_list.value] or map(
        str, stored.int64_list.value
    )
    lengths = features[f"{_ETC}question_type/ragged_row_lengths_0"].int64_list.value
    steps = [step for step, length in enumerate(lengths) for _ in range(length)]
    columns = [
        features[f"{_ETC}{field}/ragged_flat_values"].bytes_list.value
        for field in ("question_type", "question", "answer")
    ]
    for step, *texts in zip(steps, *columns, strict=True):
        yield ItemKey(episode, step, *(text.decode() for text in texts))
