"""Small datasets with the features of public datasets and the toy robot's motion."""

import json

import numpy as np

from etcvla.data.adapters import ADAPTERS
from tests.data.handmade_rlds import METADATA, png, write_rlds
from tests.data_builders.toy_robot import CAMERA, STEPS, describe, episode

TASK = b"Put the cup on the plate."
SIZE = 32
# Widths of vectors; others, such as gripper_position, are one number.
WIDTHS = {
    "observation/state": 8,
    "action": 7,
    "observation/base_pose_tool_reached": 7,
    "action/world_vector": 3,
    "action/rotation_delta": 3,
    "observation/cartesian_position": 6,
    "observation/joint_position": 7,
    "action_dict/joint_velocity": 7,
    "action_dict/joint_position": 7,
}


def make_image(number, camera):
    """Return uint8[32, 32, 3], different for every argument, with a bright first row."""
    image = np.full((SIZE, SIZE, 3), 20 * number + camera, np.uint8)
    image[0] = 255
    return image


def write_public(folder, name):
    """Write a dataset that the adapter `name` reads, and cameras.json beside it.

    The dataset has two episodes. Returns its version folder.
    """
    adapter = ADAPTERS[name]
    steps = _step_features(adapter)
    directory = folder / f"{name}_set" / "1.0.0"
    write_rlds(directory, [_episode(adapter, steps, number) for number in range(2)], steps=steps)
    describe(directory, {"train": 2})
    first = next(iter(adapter.cameras.values())).removeprefix("observation/")
    (folder / "cameras.json").write_text(json.dumps({"cameras": {first: CAMERA}}))
    return directory


def _step_features(adapter):
    sizes = [str(SIZE), str(SIZE), "3"]
    image = {"image": {"dtype": "uint8", "shape": {"dimensions": sizes}}}
    steps = dict.fromkeys(adapter.cameras.values(), ("image_feature.Image", image))
    sources = adapter.annotation
    vectors = [*adapter.state, *adapter.action, sources.position[0], sources.opening[0]]
    for vector in vectors:
        shape = {"dimensions": [str(WIDTHS.get(vector, 1))]}
        steps[vector] = ("tensor_feature.Tensor", {"tensor": {"dtype": "float32", "shape": shape}})
    texts = [*adapter.instruction, f"{METADATA}file_path", f"{METADATA}has_language"]
    for text in texts:
        steps[text] = ("text_feature.Text", {"text": {}})
    return steps


def _episode(adapter, steps, number):
    toy_state = episode(number)["observation/state"].reshape(STEPS, 4)
    vectors = {}
    values = {}
    for camera, feature in enumerate(adapter.cameras.values()):
        values[feature] = [png(make_image(number, camera))] * STEPS
    for feature, (kind, _) in steps.items():
        if kind.startswith("tensor"):
            size = (STEPS, WIDTHS.get(feature, 1))
            vectors[feature] = np.random.default_rng(number).normal(size=size)
    sources = adapter.annotation
    feature, first = sources.position
    vectors[feature][:, first : first + 3] = toy_state[:, :3]
    feature, dim = sources.opening
    vectors[feature][:, dim] = sources.closed + toy_state[:, 3] * (sources.open - sources.closed)
    for feature, vector in vectors.items():
        values[feature] = vector.astype(np.float32).ravel()
    for feature in adapter.instruction:
        values[feature] = [TASK] * STEPS
    values[f"{METADATA}file_path"] = [f"success/{number}".encode()]
    values[f"{METADATA}has_language"] = [b"True"]
    return values
