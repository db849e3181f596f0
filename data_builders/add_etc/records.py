"""Records of the converter: the source's bytes, followed by the new features.

Nothing of the source is decoded, so images are not compressed again and features of unknown types
are kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from data_builders.add_etc.episodes import LabelledEpisode
from data_builders.common.rlds_schema import encode_items
from etcvla.data.adapters import INSTRUCTION
from etcvla.etc.annotation import INT_FIELDS
from etcvla.etc.items import ITEM_FIELDS

# The tag of protobuf field 1, length-delimited. It is the only field of a tf.train.Example.
_FEATURES_TAG = b"\x0a"


@dataclasses.dataclass(frozen=True)
class RecordEncoder:
    """Encodes the new features of an episode.

    num_objects: object slots of the annotation. added: as `extend_features` returns it.
    """

    num_objects: int
    added: tuple[str, ...]

    def encode(self, labelled: LabelledEpisode) -> bytes:
        """Return the new features as serialized tf.train.Features, named as TFDS names them."""
        columns = self._annotation_columns(labelled) | _item_columns(labelled)
        optional = _metadata_columns(labelled)
        for path in self.added:
            columns[path] = optional[path]
        return tf.train.Features(feature=columns).SerializeToString(deterministic=True)

    def _annotation_columns(self, labelled: LabelledEpisode) -> dict[str, tf.train.Feature]:
        columns = {}
        for name, values in labelled.annotation.pad_objects(self.num_objects).items():
            encode = _int_feature if name in INT_FIELDS else _float_feature
            columns[f"steps/annotation/{name}"] = encode(values)
        return columns


def _item_columns(labelled: LabelledEpisode) -> dict[str, tf.train.Feature]:
    items = []
    for step_items in labelled.items:
        items += encode_items(step_items)
    lengths = [len(step_items) for step_items in labelled.items]
    columns = {}
    for name in ("grade", *ITEM_FIELDS):
        texts = [item[name] for item in items]
        columns[f"steps/etc/{name}/ragged_flat_values"] = _text_feature(texts)
        columns[f"steps/etc/{name}/ragged_row_lengths_0"] = _int_feature(lengths)
    return columns


def _metadata_columns(labelled: LabelledEpisode) -> dict[str, tf.train.Feature]:
    annotation = labelled.annotation
    metadata = {
        "episode_id": _text_feature([labelled.episode_id]),
        "task": _text_feature([""]),
        "scene": _text_feature([""]),
        "success": _int_feature([bool(annotation.success)]),
        "rate": _float_feature([annotation.rate]),
        "target": _int_feature([annotation.target]),
        "turned": _text_feature(labelled.rotated_cameras),
    }
    for name in ("cameras", "objects", "colors", "phases", "shapes", "axes"):
        metadata[name] = _text_feature(getattr(annotation, name))
    columns = {f"episode_metadata/{name}": column for name, column in metadata.items()}
    instructions = [annotation.instruction] * len(annotation)
    columns[f"steps/{INSTRUCTION}"] = _text_feature(instructions)
    return columns


def append_features(record: bytes, features: bytes) -> bytes:
    """Return a tf.train.Example with more features. Raises ValueError if `record` is none.

    An Example is a tag, the size of its features, and the features to the end. Protobuf merges a
    map from concatenated entries.
    """
    for start in range(2, min(12, len(record) + 1)):
        if record[:start] == _FEATURES_TAG + _varint(len(record) - start):
            body = record[start:] + features
            return _FEATURES_TAG + _varint(len(body)) + body
    raise ValueError("not a tf.train.Example")


def _float_feature(values: Iterable[float]) -> tf.train.Feature:
    flat = np.ravel(values).astype(np.float32)
    return tf.train.Feature(float_list=tf.train.FloatList(value=flat))


def _int_feature(values: Iterable[int]) -> tf.train.Feature:
    flat = np.ravel(values).astype(np.int64)
    return tf.train.Feature(int64_list=tf.train.Int64List(value=flat))


def _text_feature(values: Iterable[str]) -> tf.train.Feature:
    encoded = [value.encode() for value in values]
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=encoded))


def _varint(value: int) -> bytes:
    """Return protobuf's encoding of a non-negative integer."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
