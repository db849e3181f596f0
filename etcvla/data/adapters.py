"""Other people's datasets in our terms: the one table of them, and a view of a dataset by one of its lines.

In our terms a frame has observation/<camera>, observation/state, language_instruction and action, and a gripper
action is 1 open, 0 closed. Steps that a filter drops are as if they had not been recorded: frames are numbered, and
chunks cut, without them. Each transform of actions stands beside its inverse, by which a policy speaks to the robot.
What labels are made from (`AnnotationSources`) stands in the same line; a view neither reads nor changes it.

Sources of the facts: the datasets' own builders, octo/data/oxe (octo-models/octo), openpi's droid_rlds_dataset.py and
OpenVLA's LIBERO conversion.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from etcvla.data.episodes import NO_BUFFERS, Episodes, PendingImages
from etcvla.data.rlds import RLDSDataset
from etcvla.data.rlds_layout import Feature
from etcvla.names import lookup

STATE, ACTION, INSTRUCTION = "observation/state", "action", "language_instruction"
NO_MOTION = 1e-4  # OpenVLA: an action whose motion is shorter does nothing
IDLE = 1e-3  # openpi: motion below this is none


@dataclasses.dataclass(frozen=True)
class AnnotationSources:
    """Where a dataset says what ETC is made from; what it does not say is "" or NaN.

    position: (step feature, first dimension) of the grasp centre x, y, z, metres in `frame`.
    opening: (step feature, dimension) of the gripper, and its values where it is closed and open.
    episode_id: what of episode_metadata names an episode; without one, its split and number do.
    calibration: where calibrations of its cameras can be had.
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
    """How a dataset is read; the defaults are our own datasets'. All vectors are float32 after reading.

    cameras: our name -> image feature, the first the one that ETC speaks of; {} keeps all as they are named.
    rotated_cameras: cameras that stand on their heads.
    camera_flags: camera -> what episode_metadata calls the flag that it shows anything.
    state, action: features whose values make up the vector, one after another.
    instruction: features, of which the first that is not empty counts.
    rate: control steps a second; 0: the dataset says, or nobody does.
    keep: (what of episode_metadata, a regex that all of it must match), for episodes.
    drop: a name of `STEP_FILTERS`. idle: how many steps without motion make a step idle, so that no chunk begins there.
    motion: how many of the first action dimensions move the arm; those after them are the gripper.
    gripper_commands: action dimensions that are commands (1 close, -1 open, 0 go on) and become what they lead to (1 open).
    affine: (action dimension, scale, shift): ours = theirs * scale + shift.
    relative: (action dimension, state dimension): ours counts from the state at the chunk's first step.
    annotation: what ETC is made from.
    """

    cameras: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rotated_cameras: tuple[str, ...] = ()
    camera_flags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    state: tuple[str, ...] = (STATE,)
    action: tuple[str, ...] = (ACTION,)
    instruction: tuple[str, ...] = (INSTRUCTION,)
    rate: float = 0.0
    keep: tuple[str, str] | None = None
    drop: str = "none"
    idle: int = 0
    motion: int = 6
    gripper_commands: tuple[int, ...] = ()
    affine: tuple[tuple[int, float, float], ...] = ()
    relative: tuple[tuple[int, int], ...] = ()
    annotation: AnnotationSources = AnnotationSources()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `from_dict` is the inverse."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Adapter:
        """The inverse of `to_dict`."""

        def plain(value):
            return tuple(plain(v) for v in value) if isinstance(value, list) else value

        found = {name: plain(value) for name, value in fields.items()}
        facts = {name: plain(value) for name, value in found.pop("annotation", {}).items()}
        return cls(**found, annotation=AnnotationSources(**facts))

    @property
    def digest(self) -> str:
        """Names the transform: other numbers come from another digest."""
        transform = {name: value for name, value in self.to_dict().items() if name != "annotation"}
        return hashlib.sha256(json.dumps(transform, sort_keys=True).encode()).hexdigest()[:16]

    def from_robot(self, actions: np.ndarray) -> np.ndarray:
        """An episode's actions float32[T, A] as stored, in our terms, but for what is relative to a state."""
        actions = np.array(actions, np.float32)
        for dim in self.gripper_commands:
            actions[:, dim] = gripper_states_from_commands(actions[:, dim])
        for dim, scale, shift in self.affine:
            actions[:, dim] = actions[:, dim] * scale + shift
        return actions

    def to_robot(self, actions: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Chunks float32[..., P, A] of our terms as the robot takes them: the inverse of `from_robot` and `to_relative`.

        Args:
          state: float32[..., S], the robot's at the chunk's first step.
        """
        actions = self.to_relative(actions, state, -1)
        for dim, scale, shift in self.affine:
            actions[..., dim] = (actions[..., dim] - shift) / scale
        for dim in self.gripper_commands:
            actions[..., dim] = commands_from_gripper_states(actions[..., dim])
        return actions

    def to_relative(self, actions: np.ndarray, state: np.ndarray, sign: int = 1) -> np.ndarray:
        """Chunks float32[..., P, A], counted from the state float32[..., S] where the table says so; -1 undoes it."""
        actions = np.array(actions, np.float32)
        for dim, of_state in self.relative:
            actions[..., dim] -= sign * state[..., None, of_state]
        return actions

    def rotate(self, camera: str, image: np.ndarray) -> np.ndarray:
        """The image uint8[H, W, 3] upright; its own inverse."""
        return np.ascontiguousarray(image[::-1, ::-1]) if camera in self.rotated_cameras else image

    def idle_steps(self, actions: np.ndarray) -> np.ndarray:
        """bool[T]: nothing moves from this step on for `idle` steps; of an episode's actions in our terms."""
        if not self.idle:
            return np.zeros(len(actions), bool)
        last = np.minimum(np.arange(len(actions))[:, None] + np.arange(self.idle), len(actions) - 1)
        ahead = actions[last]
        absolute = {dim for dim, _ in self.relative}
        moved = [
            np.abs(
                ahead[..., dim]
                - (ahead[:, :1, dim] if dim in absolute or dim >= self.motion else 0)
            )
            > IDLE
            for dim in range(actions.shape[1])
        ]
        return ~np.any(moved, axis=(0, 2))


def gripper_states_from_commands(command: np.ndarray) -> np.ndarray:
    """Gripper commands float[T] (1 close, -1 open, 0 go on) as what they lead to: 1 open, 0 closed.

    Before the first command the gripper is as that command does not find it; open if there is none. As Octo has it.
    """
    sign = np.where(command > 0.1, -1, np.where(command < -0.1, 1, 0))
    given = np.flatnonzero(sign)
    before = -sign[given[0]] if len(given) else 1
    last = np.maximum.accumulate(np.where(sign != 0, np.arange(len(sign)), -1))
    return (np.where(last < 0, before, sign[last]) + 1).astype(np.float32) / 2


def commands_from_gripper_states(opened: np.ndarray) -> np.ndarray:
    """Commands float32[..., P] that lead to these states: one at the first step, then where the state changes."""
    wanted = np.where(opened > 0.5, -1.0, 1.0).astype(np.float32)
    same = np.concatenate(
        [np.zeros_like(wanted[..., :1], bool), wanted[..., 1:] == wanted[..., :-1]], axis=-1
    )
    return np.where(same, np.float32(0), wanted)


def drop_no_steps(actions: np.ndarray, motion: int) -> np.ndarray:
    """bool[T], all False."""
    return np.zeros(len(actions), bool)


def drop_first_zero(actions: np.ndarray, motion: int) -> np.ndarray:
    """bool[T]: the first step, if its action is all zero, as Bridge V2 pads it."""
    return (np.arange(len(actions)) == 0) & ~actions.any(axis=1)


def drop_no_ops(actions: np.ndarray, motion: int) -> np.ndarray:
    """bool[T]: steps that neither move nor change the gripper, and those that do not move before any that does."""
    still = np.linalg.norm(actions[:, :motion], axis=1) < NO_MOTION
    held = np.concatenate([[True], (actions[1:, motion:] == actions[:-1, motion:]).all(axis=1)])
    leading = np.cumsum(~still) == 0
    return still & (held | leading)


STEP_FILTERS = {
    "none": drop_no_steps,
    "first_zero": drop_first_zero,
    "no_ops": drop_no_ops,
}  # of an episode's stored actions

_LIBERO = Adapter(
    cameras={"front": "observation/image", "wrist": "observation/wrist_image"},
    rate=20.0,
    drop="no_ops",
    affine=((6, -0.5, 0.5),),  # -1 open, 1 closed
    annotation=AnnotationSources(
        position=(STATE, 0),
        frame="world",
        opening=(STATE, 6),
        open=0.04,
        episode_id="file_path",  # a finger
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
    keep=("file_path", ".*success.*"),
    idle=8,
    motion=7,
    affine=((7, -1.0, 1.0),),  # 0 open, 1 closed
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
    "own": Adapter(),  # and any dataset that names things alike
    "bridge_v2": Adapter(  # the release of rail.eecs.berkeley.edu; OXE's older copy has other features
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
        keep=("has_language", "True"),
        drop="first_zero",  # gripper: 1 open, 0 closed
        annotation=AnnotationSources(
            position=(STATE, 0), opening=(STATE, 6), episode_id="file_path"
        ),
    ),
    "droid": _DROID,
    "droid_joint_position": dataclasses.replace(
        _DROID,
        action=("action_dict/joint_position", "action_dict/gripper_position"),
        relative=tuple((dim, dim) for dim in range(7)),
    ),
    "fractal": Adapter(  # RT-1
        cameras={"front": "observation/image"},
        state=("observation/base_pose_tool_reached", "observation/gripper_closed"),
        action=("action/world_vector", "action/rotation_delta", "action/gripper_closedness_action"),
        instruction=("observation/natural_language_instruction",),
        rate=3.0,
        gripper_commands=(6,),
        annotation=AnnotationSources(
            position=("observation/base_pose_tool_reached", 0),
            opening=("observation/gripper_closed", 0),
            closed=1.0,
            open=0.0,
        ),
    ),
    "libero": _LIBERO,  # OpenVLA's modified_libero_rlds, upright already
    "libero_raw": dataclasses.replace(
        _LIBERO,
        rotated_cameras=("front", "wrist"),  # as the simulator renders
        annotation=dataclasses.replace(_LIBERO.annotation, calibration=""),
    ),
}


def find_adapter(name: str) -> Adapter:
    """A line of the table, or a JSON file of `Adapter`'s fields on top of the line that its "base" names ("own").

    Raises FileNotFoundError, or ValueError that names the nearest line or field, or what a field must be.
    """
    if not name.endswith(".json"):
        return lookup(ADAPTERS, name, "adapter of a dataset")
    try:
        given = json.loads(Path(name).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is not JSON: {error}") from error
    base = lookup(ADAPTERS, given.pop("base", "own"), f"base in {name}").to_dict()
    facts = _over(base["annotation"], given.pop("annotation", {}), name)
    return Adapter.from_dict(_over(base, given, name) | {"annotation": facts})


def _over(base: dict[str, Any], given: Mapping[str, Any], file: str) -> dict[str, Any]:
    """`base` with the fields of `given`, which must be fields of the same kind."""
    for field, value in given.items():
        now = lookup(base, field, f"field in {file}")
        if isinstance(now, (dict, list, str)) and not isinstance(value, type(now)):
            raise ValueError(
                f"{file}: {field} is {json.dumps(value)}, expected something like {json.dumps(now)}"
            )
    return base | dict(given)


class AdaptedDataset(Episodes):
    """A dataset in our terms. Attributes and methods are those of `Episodes`; `adapter` says how it is read.

    Features that the table does not speak of (annotation, ETC) are there under their own names.

    Raises ValueError naming a feature that the table wants and the dataset lacks, and where no step is left.
    """

    def __init__(self, dataset: RLDSDataset, adapter: Adapter):
        self.dataset, self.adapter = dataset, adapter
        self.directory, self.split = dataset.directory, dataset.split
        self.damaged, self.whole_records = dataset.damaged, dataset.whole_records
        self._renamed = {f"observation/{name}": path for name, path in adapter.cameras.items()}
        self.features = self._features()
        self.cache = dataset.cache.below(adapter.digest)
        _, (self._episodes, lengths, self._steps, self._starts_chunk) = self.cache.get(
            "steps", self._filter
        )
        self.number(lengths)

    def __reduce__(self):
        return AdaptedDataset, (self.dataset, self.adapter)

    def _features(self) -> dict[str, Feature]:
        made = {
            ours: dataclasses.replace(self._find(theirs), name=ours)
            for ours, theirs in self._renamed.items()
        }
        for ours, parts in ((STATE, self.adapter.state), (ACTION, self.adapter.action)):
            found = [self._find(part) for part in parts]
            made[ours] = dataclasses.replace(
                found[0],
                name=ours,
                shape=(sum(f.width for f in found),),
                kind="tensor",
                dtype=np.dtype(np.float32),
                doc="; ".join(f.doc for f in found if f.doc),
            )
        made[INSTRUCTION] = dataclasses.replace(
            self._find(self.adapter.instruction[0]), name=INSTRUCTION
        )
        taken = {
            *self._renamed.values(),
            *self.adapter.state,
            *self.adapter.action,
            *self.adapter.instruction,
        }
        others = {
            name: feature
            for name, feature in self.dataset.features.items()
            if name not in taken and not (self.adapter.cameras and feature.kind == "image")
        }
        return others | made

    def _find(self, name: str) -> Feature:
        try:
            return self.dataset.feature(name)
        except KeyError as error:
            raise ValueError(f"the dataset's adapter does not fit: {error.args[0]}") from error

    def _filter(self) -> tuple[dict, list[np.ndarray]]:
        """Of the episodes kept: number and length int64[E]; of their steps kept: number int64[N], and bool[N] whether a
        chunk may begin there."""
        drop, kept, starts = lookup(STEP_FILTERS, self.adapter.drop, "drop of an adapter"), [], []
        for episode, length in enumerate(self.dataset.lengths.tolist()):
            stored = self._vector(self.adapter.action, episode, 0, length)
            steps = np.flatnonzero(~drop(stored, self.adapter.motion))
            if len(steps) and self._keeps(episode):
                kept.append((episode, steps))
                starts.append(~self.adapter.idle_steps(self.adapter.from_robot(stored))[steps])
        if not kept:
            raise ValueError(
                f"{self.directory}, split {self.split}: the adapter's filters leave no steps"
            )
        episodes, steps = zip(*kept, strict=True)
        return {}, [
            np.array(episodes),
            np.array([len(of) for of in steps]),
            np.concatenate(steps),
            np.concatenate(starts),
        ]

    def _keeps(self, episode: int) -> bool:
        if self.adapter.keep is None:
            return True
        name, pattern = self.adapter.keep
        found = self.dataset.metadata(episode)
        if name not in found:
            raise ValueError(
                f"{self.directory} has no episode_metadata/{name}, by which its adapter picks episodes"
            )
        return re.fullmatch(pattern, str(found[name])) is not None

    def _vector(self, parts: Sequence[str], episode: int, start: int, stop: int) -> np.ndarray:
        """float32[T, A] of features side by side, as stored."""
        values = self.dataset.steps(episode, start, stop, parts)
        return np.concatenate(
            [values[part].reshape(stop - start, -1) for part in parts], axis=1
        ).astype(np.float32)

    def steps(
        self,
        episode: int,
        start: int,
        stop: int,
        names: Sequence[str],
        into: Mapping[str, np.ndarray] = NO_BUFFERS,
        pending: PendingImages | None = None,
    ) -> dict[str, np.ndarray | list]:
        """As of `Episodes`; actions are not yet counted from a state, which only a chunk has."""
        at = int(self.starts[episode])
        kept, source = self._steps[at + start : at + stop], int(self._episodes[episode])
        first, last = int(kept[0]), int(kept[-1]) + 1
        plain = [
            self._renamed.get(name, name)
            for name in names
            if name not in (STATE, ACTION, INSTRUCTION)
        ]
        tasks = self.adapter.instruction if INSTRUCTION in names else ()
        buffers = {
            self._renamed.get(name, name): buffer
            for name, buffer in into.items()
            if last - first == len(kept)
            and name.removeprefix("observation/") not in self.adapter.rotated_cameras
        }
        read = self.dataset.steps(source, first, last, [*plain, *tasks], buffers, pending)
        found = {}
        for name in names:
            if name == STATE:
                found[name] = self._vector(self.adapter.state, source, first, last)[kept - first]
            elif name == ACTION:
                found[name] = self._actions(source, first, last)[kept - first]
            elif name == INSTRUCTION:
                found[name] = [
                    next((read[t][i] for t in tasks if read[t][i]), "") for i in kept - first
                ]
            else:
                found[name] = self._turned(name, read[self._renamed.get(name, name)], kept - first)
        return found

    def _actions(self, episode: int, first: int, last: int) -> np.ndarray:
        if self.adapter.gripper_commands:  # what a command leads to depends on those before it
            whole = self._vector(
                self.adapter.action, episode, 0, int(self.dataset.lengths[episode])
            )
            return self.adapter.from_robot(whole)[first:last]
        return self.adapter.from_robot(self._vector(self.adapter.action, episode, first, last))

    def _turned(self, name: str, values: np.ndarray | list, kept: np.ndarray) -> np.ndarray | list:
        if isinstance(values, np.ndarray):
            return values[kept]
        camera = name.removeprefix("observation/")
        return [self.adapter.rotate(camera, values[i]) for i in kept]

    def windows(
        self, frames: Sequence[int], name: str, horizon: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """As of `Episodes`; actions are counted from the state at the first step where the adapter says so."""
        chunks, inside = super().windows(frames, name, horizon)
        if name == ACTION and self.adapter.relative:
            chunks = np.stack(
                [
                    self.adapter.to_relative(chunk, self.frame(frame, [STATE])[STATE])
                    for frame, chunk in zip(frames, chunks, strict=True)
                ]
            )
        return chunks, inside

    def may_start(self) -> np.ndarray:
        """As of `Episodes`: not where the robot idles."""
        return self._starts_chunk

    def has_camera(self, frame: int, name: str) -> bool:
        """As of `Episodes`."""
        flag = self.adapter.camera_flags.get(name)
        return flag is None or bool(self.metadata(self.locate(frame)[0])[flag])

    def metadata(self, episode: int) -> dict[str, Any]:
        """As of `Episodes`, with the adapter's "rate" where it has one."""
        found = self.dataset.metadata(int(self._episodes[episode]))
        return {**found, "rate": self.adapter.rate} if self.adapter.rate else found

    def skip(self, reason: str, problem: Exception | str) -> None:
        """As of `Episodes`."""
        self.dataset.skip(reason, problem)

    def where(self, episode: int) -> tuple:
        """(file, record in it, place) of an episode."""
        return self.dataset.where(int(self._episodes[episode]))


def open_dataset(path: str, split: str = "train", *, adapter: str = "own", **options) -> Episodes:
    """A dataset in our terms.

    Args:
      adapter: as of `find_adapter`. options: of `RLDSDataset`.

    Raises what `RLDSDataset`, `find_adapter` and `AdaptedDataset` raise.
    """
    found = find_adapter(adapter)
    dataset = RLDSDataset(path, split, **options)
    return dataset if found.digest == Adapter().digest else AdaptedDataset(dataset, found)
