"""Meta-World's environment: random layouts, two scene variants, an expert and an oracle.

Axes: H W pixels, S state width, C cameras, N objects. Positions are metres in the robot's base
frame, which is Meta-World's world frame.
"""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from etcvla.errors import UserError
from etcvla.etc.annotation import project
from etcvla.names import lookup
from etcvla.sims import headless

headless.require_egl()
import mujoco  # noqa: E402
from metaworld.policies import ENV_POLICY_MAP  # noqa: E402

from etcvla.sims.appearance import (  # noqa: E402
    AppearanceEditor,
    ScatterArea,
    SceneGeoms,
    free_points,
    light_scene,
    paint_table,
    shift_free_objects,
)
from etcvla.sims.conditions import (  # noqa: E402
    ADDED_SHAPES,
    COLORS,
    CONDITIONS,
    NO_CONDITION,
    SWAPPABLE,
    AddedObject,
    Orbit,
)
from etcvla.sims.metaworld.scene import (  # noqa: E402
    SCENES,
    apply_scene_variant,
    make_simulation,
    table_geoms,
)
from etcvla.sims.metaworld.tasks import SHAPES, TASKS  # noqa: E402
from etcvla.sims.mujoco_environment import MujocoEnvironment  # noqa: E402
from etcvla.sims.oracle import RenderedObject, without  # noqa: E402
from etcvla.sims.phases import PhaseTracker  # noqa: E402
from etcvla.sims.render import HIDDEN_GROUP  # noqa: E402
from etcvla.sims.task import ObjectSpec  # noqa: E402

# Meta-World's policies warn about actions beyond [-1, 1]; both this environment and Meta-World's
# clip them.
warnings.filterwarnings("ignore", "Constant", module="metaworld.policies")

CAMERAS = ("front", "wrist")
STATE_DOC = (
    "Hand x, y, z in metres, robot base frame; gripper opening, 0 closed .. 1 open (10 cm between "
    "the fingers)."
)
ACTION_DOC = (
    "Hand displacement x, y, z in [-1, 1] of 1 cm a step, robot base frame; gripper -1 open .. "
    "1 close."
)
STATE_SIZE = 4
ACTION_SIZE = 4
# Where x, y, z of the base frame point for the robot, which is at y = 0.
AXES = ("right", "front", "up")

# Fields of the model that Meta-World changes at a reset.
_LAYOUT_FIELDS = ("body_pos", "body_quat", "site_pos")
_TABLE = np.array([[-0.4, 0.42], [0.4, 0.92]])  # where objects may be added: (low, high) in x and y
_CLEARANCE = 0.09  # metres between an added object and everything else
_BORDER = 0.05  # share of the image in which no object is added


class NoRoomError(ValueError):
    """There is no free place for an object that a condition adds."""


@dataclasses.dataclass(frozen=True)
class State:
    """What a frame depends on, so that it can be rendered again under another condition."""

    physics: np.ndarray  # float64, mjSTATE_INTEGRATION
    layout: dict[str, np.ndarray]  # the model's `_LAYOUT_FIELDS`
    hand: np.ndarray  # float[4], see STATE_DOC
    phase: int


class MetaWorld(MujocoEnvironment):
    """One task in one scene; see `etcvla.sims.environment.Environment` for the methods.

    Args:
      task: a key of `TASKS`.
      scene: a key of `SCENES`.
      image_size: height and width of both cameras, pixels.
      condition: a key of `conditions.CONDITIONS` to apply on top of the scene; "" for none.

    Raises UserError for an unknown name, and with the command that fixes it where MuJoCo cannot
    render.
    """

    cameras = CAMERAS
    axes = AXES

    def __init__(self, task: str, scene: str = "source", image_size: int = 96, condition: str = ""):
        self.condition = NO_CONDITION
        if condition:
            self.condition = lookup(CONDITIONS, condition, "condition")
        self.task = lookup(TASKS, task, "task")
        self.scene = lookup(SCENES, scene, "scene")
        self._env = make_simulation(task)
        self._policy = ENV_POLICY_MAP[f"{task}-v3"]()
        self._phases = PhaseTracker(self.task.phases)
        self._observation = np.zeros(0)
        self._hand_start = self._env.hand_init_pos.copy()
        self.rate = 1 / self._env.dt
        model = self._env.model
        self._model = model
        self._data = self._env.data
        self._initial_layout = self._layout()
        table = table_geoms(model)
        apply_scene_variant(model, self.task, self.scene)
        paint_table(model, self.condition, table_geoms(model))
        light_scene(model, self.condition.light, self.condition.ambient)
        mujoco.mj_forward(model, self._data)
        cameras = {"front": self.orbit, "wrist": "gripperPOV"}
        self._set_oracle(model, cameras, image_size, gripper_body="right_hand")
        self._change_objects()
        objects = self._oracle.visible_geoms()
        room = np.setdiff1d(np.flatnonzero(model.geom_bodyid == 0), objects)
        self._appearance = AppearanceEditor(model, self._renderer, SceneGeoms(table, room, objects))

    def reset(self, seed: int, hand: np.ndarray | None = None, shift: float = 0.0) -> None:
        """Start an episode in the layout of `seed`; see `Environment.reset`.

        Raises NoRoomError if there is no room for an object that the condition adds.
        """
        env = self._env
        env.hand_init_pos = self._hand_start + (0 if hand is None else hand)
        self._set_layout(self._initial_layout)
        env.seed(seed)
        env.curr_path_length = 0
        mujoco.mj_resetData(self._model, self._data)
        env.reset_model()
        for name, value in self.task.joints:
            joint = self._data.joint(name)
            joint.qpos = value
            joint.qvel = 0
        for spec in self.task.objects:
            if spec.site:
                # Some tasks move the marker in `data` only, which the next step would undo.
                self._model.site(spec.site).pos = env._target_pos
        mujoco.mj_forward(self._model, self._data)
        shift_free_objects(self._model, self._data, self._oracle.objects, shift, seed)
        env._prev_obs = env._get_curr_obs_combined_no_goal()
        self._observation = env._get_obs()
        self.success = False
        self._phases.reset()
        if self._added:
            self.place_added([self.snapshot()], seed)

    @property
    def orbit(self) -> Orbit:
        """The default pose of the front camera."""
        camera = self.scene.camera
        return camera.moved(self.condition.camera) if self.condition.camera else camera

    def _scatter_area(self, bounds: np.ndarray) -> ScatterArea:
        return ScatterArea(_TABLE, ground=0.0, hand=self.grasp_centre)

    def observe(self) -> dict[str, Any]:
        """Return {"images": {camera: uint8[H, W, 3]}, "state": float32[S]}; see STATE_DOC."""
        self._oracle.follow()
        return {"images": self._render(), "state": self.state()}

    def state(self) -> np.ndarray:
        """Return the proprioception, float32[S]; see STATE_DOC."""
        return self._observation[:4].astype(np.float32)

    def step(self, action: np.ndarray) -> bool:
        """Act for one control step, 1 / rate seconds, and return `success`.

        Args:
          action: float[4], clipped to [-1, 1]; see ACTION_DOC.
        """
        clipped = np.clip(np.asarray(action, np.float32), -1, 1)
        self._observation, _, _, _, info = self._env.step(clipped)
        self.success = self.success or info["success"] > 0
        return self.success

    def expert_action(self) -> np.ndarray:
        """Return the action of Meta-World's scripted policy, float32[4] in [-1, 1]."""
        return np.clip(self._policy.get_action(self._observation), -1, 1).astype(np.float32)

    @property
    def grasp_centre(self) -> np.ndarray:
        """The gripper's grasp centre in the world, float64[3]."""
        return self._env.tcp_center

    def facts(self, all_views: bool = True) -> dict[str, Any]:
        """Return the current frame's value of every step field; see `Environment.facts`."""
        facts = self._oracle.facts(self.grasp_centre, all_views)
        return {**facts, "gripper_open": self._observation[3], "phase": self.phase()}

    def phase(self) -> int:
        """Return the index of the subtask in progress. `facts` and `progress` call this."""
        target = self._oracle.objects[self.target]
        return self._phases.update(
            self._env.curr_path_length,
            grasp_centre=self.grasp_centre,
            grasp_point=target.grasp_point(),
            bounds=target.bounds(),
            contact=bool(self.touched()[self.target]),
        )

    def progress(self) -> float:
        """Return the share of the subtasks that are complete. Call it once a step."""
        return self.phase() / len(self.task.phases)

    @property
    def goal_objects(self) -> list[int]:
        """The target, the object that it is a part of, and parts of the same body."""
        objects = self._oracle.objects[: len(self.task.objects)]
        target = objects[self.target]
        if target.site is not None:
            return [self.target]
        return [n for n, other in enumerate(objects) if np.isin(target.geoms, other.geoms).all()]

    @property
    def shapes(self) -> tuple[str, ...]:
        """The shape word of each object, "" where it is unknown."""
        shapes = SHAPES | ADDED_SHAPES
        return tuple(shapes.get(spec.name, "") for spec in self.objects)

    def rename_objects(self, text: str) -> str:
        """Replace the name of a swapped object in a text by the name of what replaces it."""
        for name, new_name in self._renamed.items():
            text = text.replace(name, new_name)
        return text

    def _layout(self) -> dict[str, np.ndarray]:
        return {name: getattr(self._model, name).copy() for name in _LAYOUT_FIELDS}

    def _set_layout(self, layout: dict[str, np.ndarray]) -> None:
        for name, value in layout.items():
            getattr(self._model, name)[:] = value

    def snapshot(self) -> State:
        """Return the state of the current frame for `restore`."""
        signature = mujoco.mjtState.mjSTATE_INTEGRATION
        physics = np.empty(mujoco.mj_stateSize(self._model, signature))
        mujoco.mj_getState(self._model, self._data, physics, signature)
        hand = np.array(self._observation[:4])
        return State(physics, self._layout(), hand, self.phase())

    def restore(self, state: State) -> None:
        """Restore a state of the same task, recorded under any condition.

        Call `reset` before acting again.
        """
        self._set_layout(state.layout)
        signature = mujoco.mjtState.mjSTATE_INTEGRATION
        mujoco.mj_setState(self._model, self._data, state.physics, signature)
        mujoco.mj_forward(self._model, self._data)
        self._observation = np.concatenate([state.hand, self._observation[4:]])

    def facts_of(self, state: State) -> dict[str, Any]:
        """Return `facts` of the state that was just restored, with the recorded phase."""
        facts = self._oracle.facts(self.grasp_centre)
        return {**facts, "gripper_open": state.hand[3], "phase": state.phase}

    def place_added(self, states: Sequence[State], seed: int) -> None:
        """Place the condition's added objects on the table, in view.

        They are clear of every object and of the hand in all `states`. Raises NoRoomError if there
        is no such place.
        """
        if not self._added:
            return
        rng = np.random.default_rng(seed)
        occupied = []
        for state in states:
            self.restore(state)
            bounds = self._oracle.bounds()[: len(self.task.objects)]
            hand = state.hand[:2]
            occupied += [*bounds[..., :2], (hand, hand)]
        for extra in self._added:
            point = self._free_point(np.array(occupied), extra.added, rng)
            extra.position = np.array([*point, extra.added.half_extent[2]])
            occupied.append((point, point))
        self._oracle.refresh()

    def _free_point(
        self, occupied: np.ndarray, added: AddedObject, rng: np.random.Generator
    ) -> np.ndarray:
        """Draw a point float[2] of the table in view and clear of boxes float[K, 2, 2]."""
        points = free_points(rng, _TABLE, occupied, _CLEARANCE)
        height = np.full(len(points), added.half_extent[2])
        matrix = self._renderer.camera_matrix(self._cameras["front"])
        pixels = project(matrix, np.column_stack([points, height]))
        in_view = (np.abs(pixels - 0.5) < 0.5 - _BORDER).all(-1)
        if not in_view.any():
            raise NoRoomError(f"no room on the table for a {added.noun}")
        return points[in_view][0]

    def _change_objects(self) -> None:
        """Recolor, add and swap objects as the condition says."""
        condition = self.condition
        if condition.colors:
            self._recolor(condition.colors)
        self._renamed = {}  # names of swapped objects -> their new names
        self._added = [self._renderer.add(added) for added in condition.added]
        for extra in self._added:
            spec = ObjectSpec(extra.added.noun, extra.added.color)
            self._oracle.objects.append(RenderedObject(spec, extra))
        if condition.swapped:
            self._swap(condition.swapped)
        self._oracle.refresh()

    def _recolor(self, colors: Sequence[str]) -> None:
        """Color every object that is no marker and does not have its color in its name.

        Smaller objects that are parts of it, such as its handle, keep their color.
        """
        objects = self._oracle.objects
        for own, color in zip(objects, itertools.cycle(colors), strict=False):
            geoms = own.visible_geoms
            if own.site is not None or own.spec.color in own.spec.name.split():
                continue
            parts = [other.visible_geoms for other in objects]
            geoms = without(geoms, [part for part in parts if len(part) < len(geoms)])
            self._model.geom_matid[geoms] = -1
            self._model.geom_rgba[geoms] = (*COLORS[color], 1)
            own.spec = dataclasses.replace(own.spec, color=color)

    def _swap(self, replacement: AddedObject) -> None:
        """Replace the task's swappable object. Raises UserError if the task has none."""
        objects = self._oracle.objects
        swappable = [other for other in objects if other.spec.name in SWAPPABLE]
        if not swappable:
            names = [spec.name for spec in self.task.objects]
            raise UserError(f"a task with {names}: none of {', '.join(SWAPPABLE)} to swap")
        old = swappable[0]
        self._model.geom_group[old.visible_geoms] = HIDDEN_GROUP
        spec = dataclasses.replace(old.spec, name=replacement.noun, color=replacement.color)
        extra = self._renderer.add(replacement)
        objects[objects.index(old)] = RenderedObject(spec, extra, replaces=old)
        self._renamed[old.spec.name] = replacement.noun
