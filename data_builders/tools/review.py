"""Copy a dataset without the items that a review rejects.

    python -m data_builders.tools.review --data=DIR --review=FILE.json

The source does not change.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections import Counter
from collections.abc import Set
from pathlib import Path

import tensorflow as tf
from absl import app, flags

from data_builders.common import command
from data_builders.common.folders import atomic_folder
from data_builders.common.read_dataset import full_name, read_info, read_metadata
from data_builders.tools.publish import FILES
from etcvla.data.rlds_layout import find_shards, find_version
from etcvla.errors import UserError
from etcvla.etc.review import ItemKey, Review
from etcvla.files import write_json

REASON = "human"  # metadata.json counts rejected items under this reason
_ETC = "steps/etc/"
_VALUES = "/ragged_flat_values"


def apply_review(directory: str | Path, review_path: str | Path) -> Path:
    """Write <config>_reviewed-<hash> beside the dataset's config, and return its version folder.

    Everything but the rejected items is copied byte for byte. The hash is the review's, so that
    another review makes another dataset. metadata.json states the source and the number of rejected
    items.

    Raises UserError if there is no such dataset or review, if the review is of another dataset or
    rejects an item that the dataset does not have, and if the dataset's files are not TFRecord.
    """
    source = find_version(Path(directory))
    review = Review.load(review_path)
    name = full_name(source)
    if review.dataset != name:
        raise UserError(f"{review_path} reviews {review.dataset}, not {name} ({source})")
    digest = hashlib.sha256(repr(sorted(review.rejected())).encode()).hexdigest()[:8]
    info = read_info(source)
    config = f"{info.get('configName') or 'default'}_reviewed-{digest}"
    dataset_folder = source.parents[1 if info.get("configName") else 0]
    target = dataset_folder / config / source.name
    if not (target / "dataset_info.json").exists():
        with atomic_folder(target) as partial:
            _copy_reviewed(source, partial, review, info | {"configName": config})
    dropped = read_metadata(target)["dropped_items"]
    print(f"{full_name(target)}: dropped items: {dropped}", file=sys.stderr)
    return target


def _copy_reviewed(source: Path, target: Path, review: Review, info: dict) -> None:
    shards = find_shards(source, review.split)
    if ".array_record-" in shards[0].name:
        raise UserError(
            f"{shards[0]}: reviews apply to TFRecord files only; convert the dataset first, "
            "with add_etc or TFDS"
        )
    for file in source.iterdir():
        # The published files (card, statistics, ..) describe the source.
        if file.is_file() and file not in shards and file.name not in FILES:
            shutil.copyfile(file, target / file.name)
    remaining = set(review.rejected())
    num_bytes = 0
    for shard in shards:
        with tf.io.TFRecordWriter(str(target / shard.name)) as writer:
            for record in tf.data.TFRecordDataset(str(shard)).as_numpy_iterator():
                record, dropped = _drop_items(record, remaining)
                remaining -= dropped
                num_bytes += len(record)
                writer.write(record)
    if remaining:
        raise UserError(
            f"the review rejects {len(remaining)} items that {source}, split {review.split}, does "
            f"not have; one of them: {min(remaining)}. Was the dataset built again?"
        )
    for split in info["splits"]:
        if split["name"] == review.split:
            split["numBytes"] = str(num_bytes)
    write_json(target / "dataset_info.json", info)
    metadata = read_metadata(source)
    metadata["reviewed_from"] = review.dataset
    metadata["dropped_items"] = {REASON: len(review.rejected())}
    metadata["accepted_items"] = list(review.verdicts.values()).count("accept")
    write_json(target / "metadata.json", metadata)


def _drop_items(record: bytes, rejected: Set[ItemKey]) -> tuple[bytes, set[ItemKey]]:
    """Return a serialized tf.train.Example without its rejected items, and the dropped items."""
    example = tf.train.Example.FromString(record)
    features = example.features.feature
    keys = _item_keys(features)
    is_kept = [key not in rejected for key in keys]
    if all(is_kept):
        return record, set()
    kept_per_step = Counter(key.step for key, kept in zip(keys, is_kept, strict=True) if kept)
    for name in list(features):
        if not name.startswith(_ETC):
            continue
        if name.endswith(_VALUES):
            values = features[name].bytes_list.value
            values[:] = [value for value, kept in zip(values, is_kept, strict=True) if kept]
        else:
            lengths = features[name].int64_list.value
            lengths[:] = [kept_per_step[step] for step in range(len(lengths))]
    dropped = {key for key, kept in zip(keys, is_kept, strict=True) if not kept}
    return example.SerializeToString(deterministic=True), dropped


def _item_keys(features) -> list[ItemKey]:
    """Return the key of every item of an episode, in the order on disk."""
    episode_id = _episode_id(features)
    lengths = features[f"{_ETC}question_type/ragged_row_lengths_0"].int64_list.value
    steps = []
    for step, length in enumerate(lengths):
        steps += [step] * length
    columns = []
    for field in ("question_type", "question", "answer"):
        column = features[f"{_ETC}{field}{_VALUES}"].bytes_list.value
        columns.append([text.decode() for text in column])
    return [ItemKey(episode_id, *fields) for fields in zip(steps, *columns, strict=True)]


def _episode_id(features) -> str:
    """Return the episode's id, which some datasets store as an integer."""
    stored = features["episode_metadata/episode_id"]
    if stored.bytes_list.value:
        return stored.bytes_list.value[0].decode()
    return str(stored.int64_list.value[0])


def main(argv: list[str]) -> None:
    """Run the command."""
    with command.user_errors():
        command.check_no_arguments(argv)
        print(apply_review(_DATA.value, _REVIEW.value))


if __name__ == "__main__":
    _DATA = flags.DEFINE_string(
        "data", None, "Version folder of the dataset, or its parent.", required=True
    )
    _REVIEW = flags.DEFINE_string("review", None, command.REVIEW_HELP, required=True)
    app.run(main)
