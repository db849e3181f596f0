"""RLDS files made byte by byte, so that what TFDS would never write can be tested too."""

import json
import struct
from pathlib import Path

import numpy as np

from etcvla.data.records import masked_crc

STEPS = {
    "action": ("tensor.Tensor", {"tensor": {"dtype": "float32", "shape": {"dimensions": ["2"]}}}),
    "count": ("scalar.Scalar", {"tensor": {"dtype": "int64", "shape": {}}}),
    "image": ("image.Image", {"image": {"dtype": "uint8", "shape": {"dimensions": ["4", "4", "3"]}}}),
    "note": ("text.Text", {"text": {}}),
}


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def feature(values) -> bytes:
    """tf.train.Feature of a list of bytes, floats (an array) or ints."""
    if isinstance(values, np.ndarray):
        return field(2, field(1, values.astype("<f4").tobytes()))
    if values and isinstance(values[0], int):
        return field(3, field(1, b"".join(map(varint, values))))
    return field(1, b"".join(field(1, value) for value in values))


def example(features: dict) -> bytes:
    return field(1, b"".join(field(1, field(1, name.encode()) + field(2, feature(values)))
                             for name, values in features.items()))


def record(payload: bytes) -> bytes:
    size = struct.pack("<Q", len(payload))
    return size + struct.pack("<I", masked_crc(size)) + payload + struct.pack("<I", masked_crc(payload))


def features_json(steps: dict) -> dict:
    prefix = "tensorflow_datasets.core.features."
    leaves = {name: {"pythonClassName": prefix + python, **body} for name, (python, body) in steps.items()}
    return {"pythonClassName": prefix + "features_dict.FeaturesDict", "featuresDict": {"features": {
        "steps": {"pythonClassName": prefix + "dataset_feature.Dataset", "sequence": {"feature": {
            "pythonClassName": prefix + "features_dict.FeaturesDict", "featuresDict": {"features": leaves}}}}}}}


def write_rlds(directory: Path, episodes: list[dict], *, steps: dict = STEPS, split: str = "train") -> Path:
    """A one-file dataset of the given features by name (without "steps/"); returns the file."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "features.json").write_text(json.dumps(features_json(steps)))
    path = directory / f"handmade-{split}.tfrecord-00000-of-00001"
    path.write_bytes(b"".join(record(example({f"steps/{name}": values for name, values in episode.items()}))
                              for episode in episodes))
    return path
