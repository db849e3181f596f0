"""Write RLDS files byte by byte, to test files that TFDS would not write."""

import io
import itertools
import json
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from etcvla.data.shards import masked_crc
from etcvla.etc.items import ITEM_FIELDS

METADATA = "episode_metadata/"
STEPS = {
    "action": ("tensor.Tensor", {"tensor": {"dtype": "float32", "shape": {"dimensions": ["2"]}}}),
    "count": ("scalar.Scalar", {"tensor": {"dtype": "int64", "shape": {}}}),
    "image": (
        "image.Image",
        {"image": {"dtype": "uint8", "shape": {"dimensions": ["4", "4", "3"]}}},
    ),
    "note": ("text.Text", {"text": {}}),
}


def varint(value: int) -> bytes:
    """Return a protobuf varint."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, payload: bytes) -> bytes:
    """Return a length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def feature(values) -> bytes:
    """Return a tf.train.Feature with a list of bytes, floats (an array) or ints."""
    if isinstance(values, np.ndarray):
        return field(2, field(1, values.astype("<f4").tobytes()))
    if values and isinstance(values[0], int):
        return field(3, field(1, b"".join(map(varint, values))))
    return field(1, b"".join(field(1, value) for value in values))


def example(features: dict) -> bytes:
    """Return a tf.train.Example."""
    entries = b""
    for name, values in features.items():
        entries += field(1, field(1, name.encode()) + field(2, feature(values)))
    return field(1, entries)


def record(payload: bytes) -> bytes:
    """Return a TFRecord record."""
    size = struct.pack("<Q", len(payload))
    size_crc = struct.pack("<I", masked_crc(size))
    payload_crc = struct.pack("<I", masked_crc(payload))
    return size + size_crc + payload + payload_crc


def features_json(steps: dict) -> dict:
    """Return the content of features.json."""
    prefix = "tensorflow_datasets.core.features."

    def group(features):
        return {
            "pythonClassName": prefix + "features_dict.FeaturesDict",
            "featuresDict": {"features": features},
        }

    leaves = {
        name: {"pythonClassName": prefix + python, **body} for name, (python, body) in steps.items()
    }
    whole = {
        name.removeprefix(METADATA): leaves.pop(name)
        for name in list(leaves)
        if name.startswith(METADATA)
    }
    return group(
        {
            "steps": {
                "pythonClassName": prefix + "dataset_feature.Dataset",
                "sequence": {"feature": group(leaves)},
            },
            **({"episode_metadata": group(whole)} if whole else {}),
        }
    )


def write_rlds(
    directory: Path, episodes: list[dict], *, steps: dict = STEPS, split: str = "train"
) -> Path:
    """Write a dataset of one file; features by name without "steps/". Returns the file."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "features.json").write_text(json.dumps(features_json(steps)))
    path = directory / f"handmade-{split}.tfrecord-00000-of-00001"
    records = b""
    for episode in episodes:
        features = {}
        for name, values in episode.items():
            features[name if name.startswith(METADATA) else f"steps/{name}"] = values
        records += record(example(features))
    path.write_bytes(records)
    return path


# A robot dataset with two cameras, state, actions, instruction and ETC items; each frame and item
# can be identified.

KINDS = ("spatial_understanding", "affordance", "trajectory")
INSTRUCTIONS = ("open the door", "press the button")
PHASES = ("move there", "grasp_it")
RELABELS = ("touch the red cube", "touch the blue can", "touch the ball", "touch it")
RELABEL_STEPS = 6  # stored actions of each relabel


def robot_steps(
    *,
    state: int = 3,
    action: int = 2,
    size: int = 28,
    items: bool = True,
    phases: bool = False,
    relabels: bool = False,
) -> dict:
    """Return the features of a robot dataset with these widths, for `write_rlds`."""

    image = (
        "image.Image",
        {"image": {"dtype": "uint8", "shape": {"dimensions": [str(size), str(size), "3"]}}},
    )
    texts = "sequence_feature.Sequence", {"sequence": {"feature": {"text": {}}}}
    steps = {
        "observation/front": image,
        "observation/wrist": image,
        "observation/state": _tensor("float32", [str(state)]),
        "action": _tensor("float32", [str(action)]),
        "language_instruction": ("text.Text", {"text": {}}),
    }
    if phases:
        steps |= {
            "annotation/phase": ("scalar.Scalar", {"tensor": {"dtype": "int32", "shape": {}}}),
            f"{METADATA}phases": texts,
        }
    if relabels:
        shape = [str(len(RELABELS)), str(RELABEL_STEPS), str(action)]
        steps |= {
            "relabels/instruction": texts,
            "relabels/actions": _tensor("float32", shape),
            "relabels/valid": _tensor("int32", shape[:1]),
        }
    return steps | {f"etc/{name}": texts for name in ITEM_FIELDS if items}


def _tensor(dtype: str, shape: list[str]) -> tuple[str, dict]:
    return "tensor.Tensor", {"tensor": {"dtype": dtype, "shape": {"dimensions": shape}}}


def robot_episode(
    number: int,
    *,
    length: int = 7,
    state: int = 3,
    action: int = 2,
    size: int = 28,
    items: bool = True,
    phases: bool = False,
    relabels: bool = False,
) -> dict:
    """Return an episode for `write_rlds`.

    Pixel (0, 0) of each image is (episode, step, camera), and each item's text names its frame.

    Args:
      phases: add subtasks: unknown at the first step, the first at two steps, then the second.
      relabels: add the relabels of `RELABELS`; see `relabel_actions` for their actions. At the last
        step none has an action left.
    """
    rng = np.random.default_rng(number)
    time = np.linspace(0, 1, length)[:, None]
    cameras = np.full((2, length, size, size, 3), 40, np.uint8)
    for camera, step in np.ndindex(2, length):
        cameras[camera, step, :14, :14] = 10 * number + step
        cameras[camera, step, 0, 0] = number, step, camera
    values = {
        "observation/front": [png(image) for image in cameras[0]],
        "observation/wrist": [png(image) for image in cameras[1]],
        "observation/state": (5 * np.sin(time * 3 + rng.uniform(0, 3, state)) + 2)
        .astype(np.float32)
        .ravel(),
        "action": (np.cos(time * 4 + rng.uniform(0, 3, action)) * 0.1 - 1)
        .astype(np.float32)
        .ravel(),
        "language_instruction": [INSTRUCTIONS[number % 2].encode()] * length,
    }
    if phases:
        values |= {
            "annotation/phase": [-1, 0, 0, *[1] * (length - 3)],
            f"{METADATA}phases": [text.encode() for text in PHASES],
        }
    if relabels:
        texts = [text.encode() for text in RELABELS]
        actions = [relabel_actions(number, step, action) for step in range(length)]
        values |= {
            "relabels/instruction/ragged_flat_values": texts * length,
            "relabels/instruction/ragged_row_lengths_0": [len(texts)] * length,
            "relabels/actions": np.stack(actions).ravel(),
            "relabels/valid": [length - 1 - step for step in range(length) for _ in texts],
        }
    if not items:
        return values
    items_by_step = [robot_items(number, step) for step in range(length)]
    all_items = list(itertools.chain.from_iterable(items_by_step))
    for i, name in enumerate(ITEM_FIELDS):
        values[f"etc/{name}/ragged_flat_values"] = [item[i].encode() for item in all_items]
        values[f"etc/{name}/ragged_row_lengths_0"] = list(map(len, items_by_step))
    return values


def relabel_actions(number: int, step: int, width: int) -> np.ndarray:
    """Return a frame's relabelled actions, float32[N, RELABEL_STEPS, width]."""
    shape = (len(RELABELS), RELABEL_STEPS, width)
    actions = np.random.default_rng([number, step]).uniform(-1.1, -0.9, shape)
    return actions.astype(np.float32)


def robot_items(number: int, step: int) -> list[tuple[str, str, str, str, str]]:
    """Return a frame's items: one of each kind, and a second trajectory at even steps."""
    kinds = [*KINDS, "trajectory"] if step % 2 == 0 else KINDS
    return [
        (
            kind,
            "where",
            f"where is the {kind} {i} of {number} at {step}?",
            f"<loc{100 * number + step:04d}><loc{i:04d}>",
            "oracle",
        )
        for i, kind in enumerate(kinds)
    ]


def png(image: np.ndarray) -> bytes:
    """Return an image uint8[H, W, 3] as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write_robot_set(directory: Path, *, episodes: int = 4, **options) -> Path:
    """Write a robot dataset; `options` as of `robot_episode`. Returns its folder."""
    sizes = {name: value for name, value in options.items() if name != "length"}
    write_rlds(
        directory,
        [robot_episode(number, **options) for number in range(episodes)],
        steps=robot_steps(**sizes),
    )
    return directory
