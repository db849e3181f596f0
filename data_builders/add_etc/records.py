"""Records of the converter: the source's bytes, followed by the new features.

Nothing of the source is decoded, so images are not compressed again and features of unknown types
are kept.
"""

from __future__ import annotations

import tensorflow_datasets as tfds

from data_builders.add_etc.episodes import LabelledEpisode
from data_builders.common.build import DeterministicSerializer
from data_builders.common.rlds_schema import encode_labels, encode_metadata
from etcvla.data.adapters import INSTRUCTION

# The tag of protobuf field 1, length-delimited. It is the only field of a tf.train.Example.
_FEATURES_TAG = b"\x0a"


class RecordEncoder:
    """Encodes the new features of an episode.

    Args:
      features: the new features, as `extend_features` returns them.
      num_objects: object slots of the annotation.
    """

    def __init__(self, features: tfds.features.FeaturesDict, num_objects: int):
        self._features = features
        self._num_objects = num_objects
        self._serializer = DeterministicSerializer(features.get_serialized_info())

    def encode(self, labelled: LabelledEpisode) -> bytes:
        """Return a tf.train.Example of the new features."""
        annotation = labelled.annotation
        metadata = {
            "episode_id": labelled.episode_id,
            "task": "",
            "scene": "",
            "turned": list(labelled.rotated_cameras),
            **encode_metadata(annotation),
            "success": bool(annotation.success),
        }
        new_steps = self._features["steps"].feature
        new_metadata = self._features["episode_metadata"]
        steps = []
        for step in encode_labels(annotation, labelled.items, self._num_objects):
            step[INSTRUCTION] = annotation.instruction
            steps.append({name: step[name] for name in new_steps})
        example = {
            "steps": steps,
            "episode_metadata": {name: metadata[name] for name in new_metadata},
        }
        return self._serializer.serialize_example(self._features.encode_example(example))


def append_features(record: bytes, more: bytes) -> bytes:
    """Return a tf.train.Example with the features of two. Raises ValueError if one is no Example.

    Protobuf merges a map from concatenated entries.
    """
    body = _features_of(record) + _features_of(more)
    return _FEATURES_TAG + _varint(len(body)) + body


def _features_of(record: bytes) -> bytes:
    """Return the features of an Example, which is a tag, their size, and the features."""
    for start in range(2, min(12, len(record) + 1)):
        if record[:start] == _FEATURES_TAG + _varint(len(record) - start):
            return record[start:]
    raise ValueError("not a tf.train.Example")


def _varint(value: int) -> bytes:
    """Return protobuf's encoding of a non-negative integer."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
