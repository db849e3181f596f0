"""A table of adapters, which say how datasets with other conventions are read.

After adaptation a frame has observation/<camera>, observation/state, language_instruction and
action, and a gripper action is 1 for open and 0 for closed. Steps that a filter drops do not
count: frames are numbered and chunks are cut without them. Each transform of actions is next to
its inverse, which turns a policy's actions into the robot's. An adapter also names the features
that ETC annotation needs (`AnnotationSources`); the view of the dataset neither reads nor changes
them.

Sources of the table: the datasets' own builders, octo/data/oxe (octo-models/octo), openpi's
droid_rlds_dataset.py and OpenVLA's LIBERO conversion.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from etcvla.errors import UserError
from etcvla.names import lookup

STATE = "observation/state"
ACTION = "action"
INSTRUCTION = "language_instruction"
NO_MOTION = 1e-4  # OpenVLA: an action with a shorter motion does nothing
IDLE = 1e-3  # openpi: smaller motions do not count


@dataclasses.dataclass(frozen=True)
class AnnotationSources:
    """The features of a dataset from which ETC annotation is made; "" or NaN where it has none.

    Attributes:
      position: (step feature, first dimension) of the grasp centre x, y, z, in metres.
      frame: coordinate frame of the position.
      opening: (step feature, dimension) of the gripper's opening.
      closed, open: the opening's values where the gripper is closed and open.
      episode_id: name in episode_metadata of the episode's id; "": use the split and its number.
      calibration: where calibrations of its cameras are available.
    """

    position: tuple[str, int] = ("", 0)
    frame: str = "robot base"
    opening: tuple[str, int] = ("", 0)
    closed: float = 0.0
    open: float = 1.0
    episode_id: str = ""
    calibration: str = ""


@dataclasses.dataclass(frozen=True)
class Adapter:
    """How a dataset is read; the defaults fit this project's datasets.

    All vectors are float32 after reading.

    Attributes:
      cameras: camera name -> image feature; ETC items refer to the first. {}: keep all names.
      rotated_cameras: cameras whose images are stored upside down.
      camera_flags: camera -> name in episode_metadata of the flag that it has images.
      state, action: features that are concatenated to the vector.
      instruction: features with the instruction; the first that is not empty is used.
      rate: control steps per second. 0: use the rate in the dataset's metadata, if any.
      episode_filter: (name in episode_metadata, regex that its whole value must match) of the
        episodes to keep.
      step_filter: which steps are dropped, a name of `STEP_FILTERS`.
      idle_steps: a chunk does not begin where nothing moves for this many steps; 0: it may.
      motion_dims: the first action dimensions, which move the arm; the others are the gripper.
      gripper_command_dims: action dimensions that are commands (1 close, -1 open, 0 continue) and
        become the gripper states that follow from them (1 open).
      affine: (action dimension, scale, shift): adapted = stored * scale + shift.
      relative_dims: (action dimension, state dimension): the action is relative to the state at the
        chunk's first step.
      annotation: the features from which ETC annotation is made.
    """

    cameras: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rotated_cameras: tuple[str, ...] = ()
    camera_flags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    state: tuple[str, ...] = (STATE,)
    action: tuple[str, ...] = (ACTION,)
    instruction: tuple[str, ...] = (INSTRUCTION,)
    rate: float = 0.0
    episode_filter: tuple[str, str] | None = None
    step_filter: str = "none"
    idle_steps: int = 0
    motion_dims: int = 6
    gripper_command_dims: tuple[int, ...] = ()
    affine: tuple[tuple[int, float, float], ...] = ()
    relative_dims: tuple[tuple[int, int], ...] = ()
    annotation: AnnotationSources = AnnotationSources()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values; `from_dict` is the inverse."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Adapter:
        """Return the adapter with these fields; the inverse of `to_dict`."""
        fields = {name: _as_tuples(value) for name, value in fields.items()}
        annotation = fields.pop("annotation", {})
        annotation = {name: _as_tuples(value) for name, value in annotation.items()}
        return cls(**fields, annotation=AnnotationSources(**annotation))

    @property
    def digest(self) -> str:
        """A digest of all fields that influence the values that are read."""
        transform = self.to_dict()
        del transform["annotation"]
        return hashlib.sha256(json.dumps(transform, sort_keys=True).encode()).hexdigest()[:16]

    def from_robot(self, actions: np.ndarray) -> np.ndarray:
        """Adapt an episode's stored actions, float32[T, A], except for `to_relative`."""
        actions = np.array(actions, np.float32)
        for dim in self.gripper_command_dims:
            actions[:, dim] = gripper_states_from_commands(actions[:, dim])
        for dim, scale, shift in self.affine:
            actions[:, dim] = actions[:, dim] * scale + shift
        return actions

    def to_robot(self, actions: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Turn adapted chunks into the robot's actions.

        This is the inverse of `from_robot` followed by `to_relative`.

        Args:
          actions: float32[..., P, A].
          state: float32[..., S], the robot's state at the chunk's first step.
        """
        actions = np.array(actions, np.float32)
        for dim, state_dim in self.relative_dims:
            actions[..., dim] += state[..., None, state_dim]
        for dim, scale, shift in self.affine:
            actions[..., dim] = (actions[..., dim] - shift) / scale
        for dim in self.gripper_command_dims:
            actions[..., dim] = commands_from_gripper_states(actions[..., dim])
        return actions

    def to_relative(self, actions: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Make the `relative_dims` of chunks relative to the state at their first step.

        Args:
          actions: float32[..., P, A]. state: float32[..., S].
        """
        actions = np.array(actions, np.float32)
        for dim, state_dim in self.relative_dims:
            actions[..., dim] -= state[..., None, state_dim]
        return actions

    def rotate(self, camera: str, image: np.ndarray) -> np.ndarray:
        """Rotate the image uint8[H, W, 3] of a rotated camera by 180 degrees; its own inverse."""
        if camera not in self.rotated_cameras:
            return image
        return np.ascontiguousarray(image[::-1, ::-1])

    def is_idle(self, actions: np.ndarray) -> np.ndarray:
        """Return bool[T]: whether nothing moves in the `idle_steps` steps from each step on.

        Args:
          actions: an episode's actions after `from_robot`, float32[T, A].
        """
        if not self.idle_steps:
            return np.zeros(len(actions), bool)
        steps = np.arange(len(actions))[:, None] + np.arange(self.idle_steps)
        ahead = actions[np.minimum(steps, len(actions) - 1)]  # [T, idle_steps, A]
        # Positions and the gripper move if they change; velocities move if they are not zero.
        reference = np.zeros_like(ahead[:, :1])
        position_dims = {dim for dim, _ in self.relative_dims}
        position_dims.update(range(self.motion_dims, actions.shape[1]))
        for dim in position_dims:
            reference[:, 0, dim] = ahead[:, 0, dim]
        moves = np.abs(ahead - reference) > IDLE
        return ~moves.any(axis=(1, 2))


def _as_tuples(value: Any) -> Any:
    """Return the value with lists, at any depth, as tuples."""
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def gripper_states_from_commands(commands: np.ndarray) -> np.ndarray:
    """Turn gripper commands (1 close, -1 open, 0 continue) into the states that follow.

    As in Octo, the state before the first command is the opposite of what it commands, and open if
    there is no command.

    Args:
      commands: float[T].

    Returns: float32[T], 1 open and 0 closed.
    """
    sign = np.where(commands > 0.1, -1, np.where(commands < -0.1, 1, 0))  # 1 open, -1 close
    command_steps = np.flatnonzero(sign)
    first_state = -sign[command_steps[0]] if len(command_steps) else 1
    last_command = np.maximum.accumulate(np.where(sign != 0, np.arange(len(sign)), -1))
    state = np.where(last_command < 0, first_state, sign[last_command])
    return (state + 1).astype(np.float32) / 2


def commands_from_gripper_states(states: np.ndarray) -> np.ndarray:
    """Turn gripper states (1 open) into commands: at the first step, and where the state changes.

    Args:
      states: float32[..., P].

    Returns: float32[..., P]: 1 close, -1 open, 0 continue.
    """
    commands = np.where(states > 0.5, -1.0, 1.0).astype(np.float32)
    is_unchanged = np.zeros_like(commands, bool)
    is_unchanged[..., 1:] = commands[..., 1:] == commands[..., :-1]
    return np.where(is_unchanged, np.float32(0), commands)


def drop_no_steps(actions: np.ndarray, motion_dims: int) -> np.ndarray:
    """Drop nothing: return bool[T], all False."""
    return np.zeros(len(actions), bool)


def drop_first_zero(actions: np.ndarray, motion_dims: int) -> np.ndarray:
    """Drop the first step if its action is all zero, as Bridge V2 pads it: return bool[T]."""
    is_first = np.arange(len(actions)) == 0
    return is_first & ~actions.any(axis=1)


def drop_no_ops(actions: np.ndarray, motion_dims: int) -> np.ndarray:
    """Drop the steps that move neither arm nor gripper, and all still steps at the start.

    Returns: bool[T].
    """
    is_still = np.linalg.norm(actions[:, :motion_dims], axis=1) < NO_MOTION
    gripper = actions[:, motion_dims:]
    is_gripper_held = np.concatenate([[True], (gripper[1:] == gripper[:-1]).all(axis=1)])
    is_before_motion = np.cumsum(~is_still) == 0
    return is_still & (is_gripper_held | is_before_motion)


# Filters of steps: (stored actions [T, A], motion dimensions) -> bool[T], the steps to drop.
STEP_FILTERS = {"none": drop_no_steps, "first_zero": drop_first_zero, "no_ops": drop_no_ops}

_LIBERO = Adapter(
    cameras={"front": "observation/image", "wrist": "observation/wrist_image"},
    rate=20.0,
    step_filter="no_ops",
    affine=((6, -0.5, 0.5),),  # stored: -1 open, 1 closed
    annotation=AnnotationSources(
        position=(STATE, 0),
        frame="world",
        opening=(STATE, 6),
        open=0.04,  # metres that one finger has moved
        episode_id="file_path",
        calibration="libero_tabletop (spatial, goal), libero_floor (object)",
    ),
)
_DROID = Adapter(
    cameras={
        "front": "observation/exterior_image_1_left",
        "side": "observation/exterior_image_2_left",
        "wrist": "observation/wrist_image_left",
    },
    state=("observation/joint_position", "observation/gripper_position"),
    action=("action_dict/joint_velocity", "action_dict/gripper_position"),
    instruction=(INSTRUCTION, "language_instruction_2", "language_instruction_3"),
    rate=15.0,
    episode_filter=("file_path", ".*success.*"),
    idle_steps=8,
    motion_dims=7,
    affine=((7, -1.0, 1.0),),  # stored: 0 open, 1 closed
    annotation=AnnotationSources(
        position=("observation/cartesian_position", 0),
        opening=("observation/gripper_position", 0),
        closed=1.0,
        open=0.0,
        episode_id="file_path",
        calibration="droid-dataset.github.io",
    ),
)

ADAPTERS = {
    # This project's datasets, and all datasets with the same feature names.
    "own": Adapter(),
    # The release of rail.eecs.berkeley.edu; OXE's older copy has other features.
    "bridge_v2": Adapter(
        cameras={
            "front": "observation/image_0",
            "side": "observation/image_1",
            "back": "observation/image_2",
            "wrist": "observation/image_3",
        },
        camera_flags={
            "front": "has_image_0",
            "side": "has_image_1",
            "back": "has_image_2",
            "wrist": "has_image_3",
        },
        rate=5.0,
        episode_filter=("has_language", "True"),
        step_filter="first_zero",
        annotation=AnnotationSources(
            position=(STATE, 0), opening=(STATE, 6), episode_id="file_path"
        ),
    ),
    "droid": _DROID,
    "droid_joint_position": dataclasses.replace(
        _DROID,
        action=("action_dict/joint_position", "action_dict/gripper_position"),
        relative_dims=tuple((dim, dim) for dim in range(7)),
    ),
    # RT-1.
    "fractal": Adapter(
        cameras={"front": "observation/image"},
        state=("observation/base_pose_tool_reached", "observation/gripper_closed"),
        action=("action/world_vector", "action/rotation_delta", "action/gripper_closedness_action"),
        instruction=("observation/natural_language_instruction",),
        rate=3.0,
        gripper_command_dims=(6,),
        annotation=AnnotationSources(
            position=("observation/base_pose_tool_reached", 0),
            opening=("observation/gripper_closed", 0),
            closed=1.0,
            open=0.0,
        ),
    ),
    # OpenVLA's modified_libero_rlds, with upright images.
    "libero": _LIBERO,
    # Images upside down, as the simulator renders them.
    "libero_raw": dataclasses.replace(
        _LIBERO,
        rotated_cameras=("front", "wrist"),
        annotation=dataclasses.replace(_LIBERO.annotation, calibration=""),
    ),
}


def find_adapter(name: str) -> Adapter:
    """Return an adapter of `ADAPTERS`, or the one that a JSON file defines.

    The file has fields of `Adapter`, and in "base" the name of the adapter that they change
    ("own").

    Raises UserError for an unknown name or field (with the nearest one), or a malformed value.
    """
    if not name.endswith(".json"):
        return lookup(ADAPTERS, name, "adapter of a dataset")
    try:
        fields = json.loads(Path(name).read_text())
    except FileNotFoundError as error:
        raise UserError(f"adapter of a dataset: no file {name}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{name} is not JSON: {error}") from error
    base = lookup(ADAPTERS, fields.pop("base", "own"), f"base in {name}").to_dict()
    annotation = _override(base["annotation"], fields.pop("annotation", {}), name)
    return Adapter.from_dict(_override(base, fields, name) | {"annotation": annotation})


def _override(base: dict[str, Any], fields: Mapping[str, Any], file: str) -> dict[str, Any]:
    """Return `base` with the values of `fields`, which must be fields of the same types."""
    for field, value in fields.items():
        base_value = lookup(base, field, f"field in {file}")
        if isinstance(base_value, dict | list | str) and not isinstance(value, type(base_value)):
            raise UserError(
                f"{file}: {field} is {json.dumps(value)}, "
                f"expected something like {json.dumps(base_value)}"
            )
    return base | dict(fields)
