"""A synthetic robot dataset of two splits with known facts, a calibration and an adapter."""

import json

import numpy as np

from tests.data.handmade_rlds import METADATA, png, write_rlds

STEPS = 60
CAMERA = {
    "size": [32, 32],
    "intrinsics": [30, 30, 16, 16],
    "pose": [0.15, 0.2, 1.2, np.pi, 0, 0],  # above the scene, facing down
}
ADAPTER = {
    "base": "bridge_v2",
    "cameras": {"front": "observation/front"},
    "rate": 5,
    "annotation": {"opening": ["observation/state", 3]},
}
ENDPOINT_REPLY = json.dumps(
    {
        "objects": [{"name": "cup", "color": "blue"}, {"name": "plate", "color": ""}],
        "target": "cup",
        "subtasks": [
            "reach for the cup",
            "take the cup",
            "bring it to the plate",
            "let go",
            "withdraw",
        ],
    }
)


def _vector(width):
    return "tensor_feature.Tensor", {
        "tensor": {"dtype": "float32", "shape": {"dimensions": [str(width)]}}
    }


_PICTURE = {"image": {"dtype": "uint8", "shape": {"dimensions": ["32", "32", "3"]}}}
_TEXT = "text_feature.Text", {"text": {}}
FEATURES = {
    "observation/front": ("image_feature.Image", _PICTURE),
    "observation/state": _vector(4),
    "action": _vector(2),
    "reward": ("scalar.Scalar", {"tensor": {"dtype": "float32", "shape": {}}}),
    "language_instruction": _TEXT,
    f"{METADATA}file_path": _TEXT,
}


def episode(number):
    """Return the features of a pick and place; the success of odd episodes is unknown."""
    time = np.arange(STEPS)
    waypoint_times = [0, 17, 23, 42, 48, 59]
    x = np.interp(time, waypoint_times, [0, 0.3, 0.3, 0.1, 0.1, 0.2])
    y = np.interp(time, waypoint_times, [0.1, 0.2, 0.2, 0.4, 0.4, 0.1])
    z = np.interp(time, waypoint_times, [0.3, 0, 0, 0.1, 0.1, 0.4])
    opening = np.interp(time, [18, 22, 43, 47], [1, 0.3, 0.3, 1])
    image = np.full((32, 32, 3), 20 * number, np.uint8)
    return {
        "observation/front": [png(image)] * STEPS,
        "observation/state": np.column_stack([x, y, z, opening]).astype(np.float32).ravel(),
        "action": np.random.default_rng(number).normal(size=2 * STEPS).astype(np.float32),
        "reward": np.eye(STEPS, dtype=np.float32)[-1] * (number % 2 == 0),
        "language_instruction": [b"Put the cup on the plate."] * STEPS,
        f"{METADATA}file_path": [f"robot/episode_{number}.npy".encode()],
    }


def describe(directory, episodes):
    """Complete handmade files to a dataset that TFDS reads.

    Args:
      episodes: split -> number of episodes.
    """
    features = json.loads((directory / "features.json").read_text())
    # -1 is any length to TFDS.
    features["featuresDict"]["features"]["steps"]["sequence"]["length"] = "-1"
    (directory / "features.json").write_text(json.dumps(features))
    splits = []
    for split, count in episodes.items():
        splits.append({"name": split, "shardLengths": [str(count)], "numBytes": "1"})
    info = {
        "name": "handmade",
        "version": "1.0.0",
        "description": "Toy.",
        "splits": splits,
    }
    (directory / "dataset_info.json").write_text(json.dumps(info))


def write_toy_robot(folder):
    """Write toy_robot/1.0.0, cameras.json and adapter.json into `folder`."""
    source = folder / "toy_robot" / "1.0.0"
    for split, numbers in {"train": (0, 1, 2), "val": (3,)}.items():
        write_rlds(source, [episode(number) for number in numbers], steps=FEATURES, split=split)
    describe(source, {"train": 3, "val": 1})
    (folder / "cameras.json").write_text(json.dumps({"cameras": {"front": CAMERA}}))
    (folder / "adapter.json").write_text(json.dumps(ADAPTER))
