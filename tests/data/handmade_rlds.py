"""RLDS files made byte by byte, so that what TFDS would never write can be tested too."""

import io
import json
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from etcvla.data.shards import masked_crc

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
    return field(
        1,
        b"".join(
            field(1, field(1, name.encode()) + field(2, feature(values)))
            for name, values in features.items()
        ),
    )


def record(payload: bytes) -> bytes:
    size = struct.pack("<Q", len(payload))
    return (
        size
        + struct.pack("<I", masked_crc(size))
        + payload
        + struct.pack("<I", masked_crc(payload))
    )


def features_json(steps: dict) -> dict:
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
    """A one-file dataset of the given features by name (without "steps/"); returns the file."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "features.json").write_text(json.dumps(features_json(steps)))
    path = directory / f"handmade-{split}.tfrecord-00000-of-00001"
    path.write_bytes(
        b"".join(
            record(
                example(
                    {
                        name if name.startswith(METADATA) else f"steps/{name}": values
                        for name, values in episode.items()
                    }
                )
            )
            for episode in episodes
        )
    )
    return path


# A robot dataset: two cameras, state, actions, instruction and ETC items, every frame and item recognisable.

ITEM = ("kind", "question_type", "question", "answer", "source")
KINDS = ("spatial_understanding", "affordance", "trajectory")
INSTRUCTIONS = ("open the door", "press the button")
PHASES = ("move there", "grasp_it")


def robot_steps(
    *, state: int = 3, action: int = 2, size: int = 28, items: bool = True, phases: bool = False
) -> dict:
    """Features of a robot dataset for `write_rlds`, of these widths."""

    def vector(width):
        return "tensor.Tensor", {
            "tensor": {"dtype": "float32", "shape": {"dimensions": [str(width)]}}
        }

    image = (
        "image.Image",
        {"image": {"dtype": "uint8", "shape": {"dimensions": [str(size), str(size), "3"]}}},
    )
    texts = "sequence_feature.Sequence", {"sequence": {"feature": {"text": {}}}}
    steps = {
        "observation/front": image,
        "observation/wrist": image,
        "observation/state": vector(state),
        "action": vector(action),
        "language_instruction": ("text.Text", {"text": {}}),
    }
    if phases:
        steps |= {
            "annotation/phase": ("scalar.Scalar", {"tensor": {"dtype": "int32", "shape": {}}}),
            f"{METADATA}phases": texts,
        }
    return steps | {f"etc/{name}": texts for name in ITEM if items}


def robot_episode(
    number: int,
    *,
    length: int = 7,
    state: int = 3,
    action: int = 2,
    size: int = 28,
    items: bool = True,
    phases: bool = False,
) -> dict:
    """One episode; pixel (0, 0) of each camera is (episode, step, camera), and each item names its frame.

    `phases`: of its steps, the first is of no known phase, the next two of the first, all others of the second.
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
    if not items:
        return values
    made = [item for step in range(length) for item in robot_items(number, step)]
    for i, name in enumerate(ITEM):
        values[f"etc/{name}/ragged_flat_values"] = [item[i].encode() for item in made]
        values[f"etc/{name}/ragged_row_lengths_0"] = [
            len(robot_items(number, step)) for step in range(length)
        ]
    return values


def robot_items(number: int, step: int) -> list[tuple[str, str, str, str, str]]:
    """(kind, question_type, question, answer, source) of a frame: one of each kind, and another trajectory at even steps."""
    kinds = (*KINDS, *KINDS[-1:] * (step % 2 == 0))
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
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write_robot_set(directory: Path, *, episodes: int = 4, **options) -> Path:
    """A robot dataset's directory; `options` as of `robot_episode`."""
    sizes = {name: value for name, value in options.items() if name != "length"}
    write_rlds(
        directory,
        [robot_episode(number, **options) for number in range(episodes)],
        steps=robot_steps(**sizes),
    )
    return directory
