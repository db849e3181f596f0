"""Small datasets with the features that lines of the table of datasets name, with the toy robot's motion in them."""

import json

import numpy as np

from etcvla.data.adapters import ADAPTERS
from tests.data.handmade_rlds import METADATA, png, write_rlds
from tests.data_builders.toy_robot import CAMERA, STEPS, describe, episode

TASK = b"Put the cup on the plate."
SIZE = 32
# Of the vectors that are not one number; gripper_position and the like are.
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


def picture(number, camera):
    """uint8[32, 32, 3], told from any other; its first row is bright."""
    image = np.full((SIZE, SIZE, 3), 20 * number + camera, np.uint8)
    image[0] = 255
    return image


def write_public(folder, name):
    """A dataset of two episodes as the line `name` has it, cameras.json beside it; returns its version folder."""
    adapter = ADAPTERS[name]
    vectors = dict.fromkeys(
        [
            *adapter.state,
            *adapter.action,
            adapter.annotation.position[0],
            adapter.annotation.opening[0],
        ]
    )
    steps = {
        **dict.fromkeys(
            adapter.cameras.values(),
            (
                "image_feature.Image",
                {"image": {"dtype": "uint8", "shape": {"dimensions": [str(SIZE), str(SIZE), "3"]}}},
            ),
        ),
        **{
            vector: (
                "tensor_feature.Tensor",
                {
                    "tensor": {
                        "dtype": "float32",
                        "shape": {"dimensions": [str(WIDTHS.get(vector, 1))]},
                    }
                },
            )
            for vector in vectors
        },
        **dict.fromkeys(
            [*adapter.instruction, f"{METADATA}file_path", f"{METADATA}has_language"],
            ("text_feature.Text", {"text": {}}),
        ),
    }
    directory = folder / f"{name}_set" / "1.0.0"
    write_rlds(directory, [_episode(adapter, steps, number) for number in range(2)], steps=steps)
    describe(directory, {"train": 2})
    first = next(iter(adapter.cameras.values())).removeprefix("observation/")
    (folder / "cameras.json").write_text(json.dumps({"cameras": {first: CAMERA}}))
    return directory


def _episode(adapter, steps, number):
    toy = episode(number)["observation/state"].reshape(STEPS, 4)
    values = {}
    for feature, (kind, _) in steps.items():
        if kind.startswith("image"):
            camera = [*adapter.cameras.values()].index(feature)
            values[feature] = [png(picture(number, camera))] * STEPS
        elif kind.startswith("tensor"):
            values[feature] = np.random.default_rng(number).normal(
                size=(STEPS, WIDTHS.get(feature, 1))
            )
    (position, at), (opening, dim), facts = (
        adapter.annotation.position,
        adapter.annotation.opening,
        adapter.annotation,
    )
    values[position][:, at : at + 3] = toy[:, :3]
    values[opening][:, dim] = facts.closed + toy[:, 3] * (facts.open - facts.closed)
    for feature in list(values):
        if isinstance(values[feature], np.ndarray):
            values[feature] = values[feature].astype(np.float32).ravel()
    return (
        values
        | dict.fromkeys(adapter.instruction, [TASK] * STEPS)
        | {
            f"{METADATA}file_path": [f"success/{number}".encode()],
            f"{METADATA}has_language": [b"True"],
        }
    )
