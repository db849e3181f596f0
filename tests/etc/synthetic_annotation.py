"""A synthetic pick-and-move episode, seen by pinhole cameras, with all facts known."""

import numpy as np

from etcvla.etc.annotation import Annotation, project

OBJECTS = ("sugar jar", "drawer handle", "cup")
PHASES = ("move to the cup", "grasp the cup", "carry the cup to the drawer handle")


def camera_matrix(eye=(0.5, -0.9, 0.8), target=(0.0, 0.0, 0.1), focal=1.1):
    """Return the matrix float[3, 4] of a pinhole camera at `eye` that is directed at `target`.

    z points up. The focal length is in image widths.
    """
    eye = np.array(eye)
    target = np.array(target)
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    intrinsics = np.array([[focal, 0, 0.5], [0, focal, 0.5], [0, 0, 1]])
    return intrinsics @ np.concatenate([rotation, -rotation @ eye[:, None]], axis=1)


def make_annotation(seed=0, steps=60, num_cameras=2, **changes):
    """Return an `Annotation` of `steps` steps with a layout drawn by `seed`.

    `changes` replace fields.
    """
    rng = np.random.default_rng(seed)
    start, cup, goal = (
        np.array(point) + rng.uniform(-0.05, 0.05, 3) * [1, 1, 0]
        for point in ([-0.25, -0.1, 0.3], [0.0, 0.1, 0.05], [0.25, 0.0, 0.2])
    )
    jar = np.array([-0.2, 0.25, 0.12]) + rng.uniform(-0.04, 0.04, 3)
    handle = goal + [0, 0.15, 0]

    times = np.array([0, 0.4, 0.55, 0.75, 1.0]) * (steps - 1)
    waypoints = np.stack([start, cup, cup, (cup + goal) / 2 + [0, 0, 0.15], goal])
    coordinates = [np.interp(np.arange(steps), times, values) for values in waypoints.T]
    gripper = np.stack(coordinates, axis=-1)
    phase = np.searchsorted(times[1:3], np.arange(steps))
    carried = (phase == 2)[:, None]
    position = np.stack(
        [np.tile(jar, (steps, 1)), np.tile(handle, (steps, 1)), np.where(carried, gripper, cup)],
        axis=1,
    )

    matrices = np.stack([camera_matrix(eye=(0.5 - c, -0.9, 0.8)) for c in range(num_cameras)])
    center = np.stack([project(matrix, position) for matrix in matrices], axis=1)
    half = rng.uniform(0.03, 0.06, (3, 2))
    box = np.concatenate([center - half, center + half], axis=-1)
    visible = np.ones((steps, num_cameras, 3))
    # The jar leaves the other views halfway.
    box[steps // 2 :, 1:, 0] = np.nan
    visible[steps // 2 :, 1:, 0] = 0

    facts = {
        "instruction": "Put the cup near the drawer handle.",
        "phases": PHASES,
        "target": 2,
        "success": True,
        "rate": 20,
        "cameras": tuple(f"camera{c}" for c in range(num_cameras)),
        "objects": OBJECTS,
        "colors": ("green", "", "blue"),
        "shapes": ("round", "", "cylinder"),
        "axes": ("front", "left", "up"),
        "camera_matrix": np.tile(matrices, (steps, 1, 1, 1)),
        "gripper_position": gripper,
        "gripper_pixel": np.stack([project(matrix, gripper) for matrix in matrices], axis=1),
        "gripper_open": np.where(carried[:, 0], 0.2, 1.0),
        "box": box,
        "visible": visible,
        "position": position,
        "grasp_pixel": center + [-0.02, 0.01],
        "contact": np.zeros((steps, 3)),
        "phase": phase,
    }
    return Annotation(**facts | changes)
