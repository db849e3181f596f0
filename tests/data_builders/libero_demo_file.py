"""Write a file of demonstrations in the format of LIBERO's create_dataset."""

import json
from pathlib import Path

import h5py
import numpy as np

OBSERVATION_WIDTHS = {
    "gripper_states": 2,
    "joint_states": 7,
    "ee_states": 6,
    "ee_pos": 3,
    "ee_ori": 3,
}


def write_demo_file(path, suite, name, demos, language="pick up the milk"):
    """Write a file of one task.

    Args:
      demos: dicts with "states" [T, D], "actions" [T, 7], and optionally "model_xml" and "obs".
        As in LIBERO's files, row t of "obs" belongs to the state t + 1.
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
    is_last = (np.arange(steps) == steps - 1).astype(np.uint8)
    group.attrs.update(
        num_samples=steps,
        model_file=demo.get("model_xml", "<mujoco/>"),
        init_state=demo["states"][0],
    )
    group.create_dataset("states", data=demo["states"])
    group.create_dataset("actions", data=demo["actions"])
    group.create_dataset("robot_states", data=np.zeros((steps, 9)))
    group.create_dataset("rewards", data=is_last)
    group.create_dataset("dones", data=is_last)
    observation = group.create_group("obs")
    recorded = demo.get("obs", {})
    for name, width in OBSERVATION_WIDTHS.items():
        observation.create_dataset(name, data=recorded.get(name, np.zeros((steps, width))))
    for name in ("agentview_rgb", "eye_in_hand_rgb"):
        observation.create_dataset(name, data=np.zeros((steps, 8, 8, 3), np.uint8))
