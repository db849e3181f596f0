"""Writes a file as LIBERO publishes its demonstrations: the groups, datasets and attributes of its create_dataset."""

import json
from pathlib import Path

import h5py
import numpy as np


def write_demo_file(path, suite, name, demos, language="pick up the milk"):
    """`demos`: dicts with "states" [T, D] and "actions" [T, 7], and, if there are some, "model_xml" and "obs".

    LIBERO writes the observation that follows an action into its row: row t of "obs" is of the state t + 1.
    """
    problem = {
        "problem_name": "libero_floor_manipulation",
        "domain_name": "robosuite",
        "language_instruction": language,
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs.update(
            env_name="Libero_Floor_Manipulation",
            problem_info=json.dumps(problem),
            macros_image_convention="opengl",
            bddl_file_name=f"chiliocosm/bddl_files/{suite}/{name}.bddl",
            bddl_file_content="(define (problem ...))",
            env_args=json.dumps({"type": 1, "env_name": "Libero_Floor_Manipulation"}),
            num_demos=len(demos),
            total=sum(len(demo["actions"]) for demo in demos),
        )
        for i, demo in enumerate(demos):
            _write_demo(data.create_group(f"demo_{i}"), demo)


def _write_demo(group, demo):
    steps = len(demo["actions"])
    done = np.arange(steps) == steps - 1
    group.attrs.update(
        num_samples=steps,
        model_file=demo.get("model_xml", "<mujoco/>"),
        init_state=demo["states"][0],
    )
    for name, value in {
        "states": demo["states"],
        "actions": demo["actions"],
        "robot_states": np.zeros((steps, 9)),
        "rewards": done.astype(np.uint8),
        "dones": done.astype(np.uint8),
    }.items():
        group.create_dataset(name, data=value)
    observation = group.create_group("obs")
    for name, width in {
        "gripper_states": 2,
        "joint_states": 7,
        "ee_states": 6,
        "ee_pos": 3,
        "ee_ori": 3,
    }.items():
        observation.create_dataset(
            name, data=demo.get("obs", {}).get(name, np.zeros((steps, width)))
        )
    for name in ("agentview_rgb", "eye_in_hand_rgb"):
        observation.create_dataset(name, data=np.zeros((steps, 8, 8, 3), np.uint8))
