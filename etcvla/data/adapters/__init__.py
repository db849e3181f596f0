"""Adapters, which say how datasets with other conventions are read.

Each TOML file of this package is the adapter of a public dataset: a new file adds one.

After adaptation a frame has observation/<camera>, observation/state, language_instruction and
action, and a gripper action is 1 for open and 0 for closed. Steps that a filter drops do not
count: frames are numbered and chunks are cut without them. Each transform of actions is next to
its inverse, which turns a policy's actions into the robot's. An adapter also names the features
that ETC annotation needs (`AnnotationSources`); the view of the dataset neither reads nor changes
them.

Sources of the files: the datasets' own builders, octo/data/oxe (octo-models/octo), openpi's
droid_rlds_dataset.py and OpenVLA's LIBERO conversion.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from etcvla.errors import UserError
from etcvla.files import hash_json
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
        fields = _as_tuples(fields)
        annotation = AnnotationSources(**fields.pop("annotation", {}))
        return cls(**fields, annotation=annotation)

    @property
    def digest(self) -> str:
        """A digest of all fields that influence the values that are read."""
        transform = self.to_dict()
        del transform["annotation"]
        return hash_json(transform)[:16]

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
        # Positions and the gripper move if they change; velocities move if they are not zero.
        positions = [dim for dim, _ in self.relative_dims]
        positions += range(self.motion_dims, actions.shape[1])
        reference = np.zeros_like(actions)
        reference[:, positions] = actions[:, positions]
        steps = np.arange(len(actions))[:, None] + np.arange(self.idle_steps)
        ahead = actions[np.minimum(steps, len(actions) - 1)]  # [T, idle_steps, A]
        moves = np.abs(ahead - reference[:, None]) > IDLE
        return ~moves.any(axis=(1, 2))


def _as_tuples(value: Any) -> Any:
    """Return the value with lists, at any depth, as tuples."""
    if isinstance(value, Mapping):
        return {name: _as_tuples(element) for name, element in value.items()}
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

_FILES = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}


def find_adapter(name: str) -> Adapter:
    """Return an adapter of `ADAPTERS`, or the one that a JSON or TOML file defines.

    The file has fields of `Adapter`. "base" is the name of an adapter of this package that gives
    the other fields; without it they have their defaults.

    Raises UserError for an unknown name or field (with the nearest one), or a malformed value.
    """
    if name.endswith((".json", ".toml")):
        return _read_adapter(Path(name))
    return lookup(ADAPTERS, name, "adapter of a dataset")


def _read_adapter(path: Path) -> Adapter:
    parse = json.loads if path.suffix == ".json" else tomllib.loads
    try:
        fields = parse(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"adapter of a dataset: no file {path}") from error
    except ValueError as error:  # of both parsers
        raise UserError(f"{path} is not {path.suffix[1:].upper()}: {error}") from error
    base = Adapter()
    if "base" in fields:
        base = _read_adapter(lookup(_FILES, fields.pop("base"), f"base in {path}"))
    return Adapter.from_dict(_override(base.to_dict(), fields, path))


def _override(base: dict[str, Any], fields: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return `base` with the values of `fields`, which must be fields of the same types."""
    result = dict(base)
    for field, value in fields.items():
        base_value = lookup(base, field, f"field in {path}")
        if isinstance(base_value, dict | list | str) and not isinstance(value, type(base_value)):
            raise UserError(
                f"{path}: {field} is {json.dumps(value)}, "
                f"expected something like {json.dumps(base_value)}"
            )
        result[field] = _override(base_value, value, path) if field == "annotation" else value
    return result


ADAPTERS = {name: _read_adapter(path) for name, path in _FILES.items()}
