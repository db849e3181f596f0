"""Meta-World as a place to collect demonstrations and to be judged: fresh layouts, two looks, an expert, an oracle.

Axes: H W pixels, S state width, C cameras, N objects. Positions are metres in the robot's base frame, which is
Meta-World's world frame.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np

from etcvla.etc.annotation import project
from etcvla.names import lookup
from etcvla.sims import headless

headless.require_egl()
import mujoco  # noqa: E402
from metaworld.env_dict import ALL_V3_ENVIRONMENTS  # noqa: E402
from metaworld.policies import ENV_POLICY_MAP  # noqa: E402

from etcvla.sims.appearance import (
    AppearanceEditor,
    extra_of,
    free_spots,
    light_scene,
    paint_table,
    scatter,
    shift_free,
)  # noqa: E402
from etcvla.sims.conditions import CONDITIONS, SWAPPABLE, AddedObject, Condition, Orbit  # noqa: E402
from etcvla.sims.metaworld.tasks import SHAPES, TASKS  # noqa: E402
from etcvla.sims.oracle import Oracle, Placed, hide_sites  # noqa: E402
from etcvla.sims.phases import PhaseTracker  # noqa: E402
from etcvla.sims.render import HIDDEN_GROUP, Renderer, camera_matrix, coarsen_mesh  # noqa: E402
from etcvla.sims.seeds import EVAL_SEED_BASE, demo_seed, eval_seed  # noqa: E402, F401  a part of the interface
from etcvla.sims.task import ObjectSpec, Task  # noqa: E402

warnings.filterwarnings(
    "ignore", "Constant", module="metaworld.policies"
)  # we clip, as the environment does
CAMERAS = ("front", "wrist")
STATE_DOC = "Hand x, y, z in metres, robot base frame; gripper opening, 0 closed .. 1 open (10 cm between the fingers)."
ACTION_DOC = "Hand displacement x, y, z in [-1, 1] of 1 cm a step, robot base frame; gripper -1 open .. 1 close."
STATE_SIZE = ACTION_SIZE = 4
AXES = (
    "right",
    "front",
    "up",
)  # where x, y, z of the base frame point for the robot, which stands at y = 0

# Parts of the arm that are off-screen or far from the work, and cost more to draw than all the rest.
_UNSEEN_BODIES = (
    "head",
    "screen",
    "right_arm_base_link",
    "pedestal",
    "pedestal_feet",
    "controller_box",
    "torso",
    "right_l0",
    "right_l1",
    "right_l2",
    "right_l3",
)
_FINE_MESHES = ("l4", "l5", "l6", "eGripperBase")  # nine tenths of the triangles that remain
_MESH_CELL = 0.005  # metres; below a pixel at the usual sizes
_MARKER_RADIUS = 0.03  # Meta-World's 2 cm are two pixels at 96
_MARKER_RGBA = (0.0, 0.8, 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class SceneVariant:
    """The look of a scene: camera "front", table top (None: Meta-World's wood), and light as factors on the lamps."""

    camera: Orbit
    table: tuple[float, float, float] | None = None
    light: tuple[float, float, float] = (1.0, 1.0, 1.0)
    ambient: float = 1.0


SCENES = {
    "source": SceneVariant(Orbit(lookat=(0, 0.72, 0.1), distance=1.2, azimuth=160, elevation=-40)),
    "target": SceneVariant(
        Orbit(lookat=(0, 0.72, 0.08), distance=1.15, azimuth=178, elevation=-55),
        table=(0.42, 0.5, 0.62),
        light=(1.25, 1.1, 0.8),
        ambient=0.75,
    ),
}


_TABLE = ((-0.4, 0.4), (0.42, 0.92))  # metres in x and y, where things may be added
_CLEARANCE = 0.09  # metres from whatever stands or passes there
_BORDER = 0.05  # of the image, where nothing is added


class NoRoomError(ValueError):
    """What a look adds to a scene finds no place in it."""


@dataclasses.dataclass(frozen=True)
class State:
    """All that a frame was drawn from: it can be shown again under another condition."""

    physics: np.ndarray  # float64, mjSTATE_INTEGRATION
    layout: tuple[np.ndarray, np.ndarray, np.ndarray]  # the model's body_pos, body_quat, site_pos
    hand: np.ndarray  # float[4], as STATE_DOC
    phase: int


class MetaWorld:
    """One task in one scene. Call `reset` first; images are drawn only when `observe` or `facts` asks.

    Args:
      task: a key of `TASKS`. scene: a key of `SCENES`. image_size: height and width of both cameras, pixels.
      condition: a key of `conditions.CONDITIONS`, changes on top of the scene; "" none.
    Raises ValueError for an unknown name, RuntimeError (with the command that mends it) where nothing can be drawn.
    """

    def __init__(self, task: str, scene: str = "source", image_size: int = 96, condition: str = ""):
        self.condition = lookup(CONDITIONS, condition, "condition") if condition else None
        self.task, self.scene = lookup(TASKS, task, "task"), lookup(SCENES, scene, "scene")
        self._env = _make_env(task)
        self._policy = ENV_POLICY_MAP[f"{task}-v3"]()
        self._model, self._data = self._env.model, self._env.data
        self._pristine = (
            self._model.body_pos.copy(),
            self._model.body_quat.copy(),
            self._model.site_pos.copy(),
        )
        self._hand_start, table = self._env.hand_init_pos.copy(), _table(self._model)
        _dress(self._model, self.task, self.scene)
        if self.condition:
            paint_table(self._model, self.condition, _table(self._model))
            light_scene(self._model, self.condition.light, self.condition.ambient)
        self._view = Renderer(self._model, image_size)
        self._cameras = {"front": self._front(), "wrist": "gripperPOV"}
        mujoco.mj_forward(self._model, self._data)
        self._oracle = Oracle(
            self._model,
            self._data,
            self.task.objects,
            self._view,
            tuple(self._cameras.values()),
            gripper_body="right_hand",
        )
        self.target = [spec.name for spec in self.task.objects].index(self.task.target)
        self.rate, self.cameras, self.axes = 1 / self._env.dt, CAMERAS, AXES
        self._phases = PhaseTracker(self.task.phases)
        self._names = {
            spec.name: spec.name for spec in self.task.objects
        }  # swapped things get others
        if self.condition:
            self._change(self.condition)
        self._appearance = AppearanceEditor(
            self._model, self._view, **_parts(self._model, self._oracle, table)
        )

    def reset(self, seed: int, hand: np.ndarray | None = None, shift: float = 0.0) -> None:
        """A fresh layout: the same seed gives the same state and images, whatever happened before.

        Args:
          hand: float[3] metres from where the hand starts otherwise.
          shift: metres by which things that lie free are moved, where there is room.
        """
        self._env.hand_init_pos = self._hand_start + (0 if hand is None else hand)
        body_pos, body_quat, site_pos = self._pristine
        self._model.body_pos[:], self._model.body_quat[:], self._model.site_pos[:] = (
            body_pos,
            body_quat,
            site_pos,
        )
        self._env.seed(seed)
        self._env.curr_path_length = 0
        mujoco.mj_resetData(self._model, self._data)
        self._env.reset_model()
        for name, value in self.task.joints:
            self._data.joint(name).qpos[:], self._data.joint(name).qvel[:] = value, 0
        for spec in self.task.objects:
            if (
                spec.site
            ):  # some tasks move the marker's shadow in `data` alone, which the next step undoes
                self._model.site(spec.site).pos = self._env._target_pos
        mujoco.mj_forward(self._model, self._data)
        shift_free(self._model, self._data, self._oracle.objects, shift, seed)
        self._env._prev_obs = self._env._get_curr_obs_combined_no_goal()
        self._obs = self._env._get_obs()
        self.success = False
        self._phases.reset()

    @property
    def orbit(self) -> Orbit:
        """Where the front camera stands by default."""
        return self._front()

    def set_appearance(self, condition: Condition | None, seed: int) -> None:
        """Shows the scene, which was just reset, under a condition (all but what it swaps), or as it is by default."""
        self._cameras["front"] = (
            condition.camera if condition and condition.camera else self._front()
        )
        added = self._appearance.put(condition)
        if not added:
            return
        area = np.transpose(_TABLE)
        scatter(
            added,
            [thing.half[2] for thing in condition.added],
            0.0,
            self._oracle.objects,
            self._data,
            area,
            self._env.tcp_center,
            seed,
        )

    def observe(self) -> dict:
        """{"images": {camera: uint8[H, W, 3]}, "state": float32[S]}; see STATE_DOC."""
        self._oracle.follow(self._data)
        images = {
            name: self._view.rgb(self._data, camera) for name, camera in self._cameras.items()
        }
        return {"images": images, "state": self.state()}

    def state(self) -> np.ndarray:
        """float32[S] proprioception alone; see STATE_DOC."""
        return self._obs[:4].astype(np.float32)

    def step(self, action: np.ndarray) -> bool:
        """Acts for one control step, 1 / rate seconds. Returns whether the goal was reached now or before.

        Args:
          action: float[4], clipped to [-1, 1]; see ACTION_DOC.
        """
        self._obs, _, _, _, info = self._env.step(np.clip(np.asarray(action, np.float32), -1, 1))
        self.success = self.success or info["success"] > 0
        return self.success

    def expert_action(self) -> np.ndarray:
        """float32[4] in [-1, 1]: what Meta-World's scripted policy, which sees the whole state, does now."""
        return np.clip(self._policy.get_action(self._obs), -1, 1).astype(np.float32)

    def instruction(self, rng: np.random.Generator | None = None) -> str:
        """One of the task's paraphrases; the canonical one without `rng`."""
        return self.task.instructions[0] if rng is None else str(rng.choice(self.task.instructions))

    def facts(self, all_views: bool = True) -> dict[str, np.ndarray]:
        """This frame's values of every step field of an annotation; draws a segmentation of the front camera.

        And one of the wrist camera; without `all_views` what it shows of the objects is unknown.

        The phase never goes back: it moves on when its condition first holds at a call, so call at every step.
        """
        facts = self._oracle.facts(self._data, self._env.tcp_center, all_views)
        return {**facts, "gripper_open": self._obs[3], "phase": self.phase()}

    def phase(self) -> int:
        """The subtask in progress, as in `facts`, which calls this."""
        tcp, target = self._env.tcp_center, self._oracle.objects[self.target]
        return self._phases.update(
            self._env.curr_path_length,
            grasp_centre=tcp,
            grasp_point=target.grasp_point(self._data),
            bounds=target.bounds(self._data),
            contact=self._oracle.contact(self._data, tcp)[self.target] == 1,
        )

    def touched(self) -> np.ndarray:
        """bool[N]: the objects that the gripper touches now."""
        return self._oracle.contact(self._data, self._env.tcp_center) == 1

    def progress(self) -> float:
        """The share of the subtasks that are behind; call at every step, as `phase`."""
        return self.phase() / len(self.task.phases)

    @property
    def goal_objects(self) -> list[int]:
        """The objects that the task is about: the target, what it is a part of, and parts of the same body."""
        objects, target = self.task.objects, self._oracle.objects[self.target]
        return [
            n
            for n, spec in enumerate(objects)
            if n == self.target
            or (len(target.geoms) and np.isin(target.geoms, self._oracle.objects[n].geoms).all())
            or spec.body == target.spec.body != ""
        ]

    @property
    def objects(self) -> list[ObjectSpec]:
        """The named objects as the scene shows them."""
        return [tracked.spec for tracked in self._oracle.objects]

    @property
    def shapes(self) -> tuple[str, ...]:
        """Their shape words, "" unknown."""
        things = (
            (self.condition.added + ((self.condition.swapped,) if self.condition.swapped else ()))
            if self.condition
            else ()
        )
        known = SHAPES | {thing.noun: thing.shape for thing in things}
        return tuple(known.get(spec.name, "") for spec in self.objects)

    def rename_objects(self, text: str) -> str:
        """A text about the task in the words of the scene as it is shown."""
        for name, shown in self._names.items():
            text = text.replace(name, shown)
        return text

    def snapshot(self, phase: int) -> State:
        """This frame, to be shown again."""
        size = mujoco.mj_stateSize(self._model, mujoco.mjtState.mjSTATE_INTEGRATION)
        physics = np.empty(size)
        mujoco.mj_getState(self._model, self._data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        layout = (
            self._model.body_pos.copy(),
            self._model.body_quat.copy(),
            self._model.site_pos.copy(),
        )
        return State(physics, layout, np.array(self._obs[:4]), phase)

    def show(self, state: State) -> None:
        """Puts the scene into a recorded state, of the same task under whatever look; `reset` before acting again."""
        self._model.body_pos[:], self._model.body_quat[:], self._model.site_pos[:] = state.layout
        mujoco.mj_setState(
            self._model, self._data, state.physics, mujoco.mjtState.mjSTATE_INTEGRATION
        )
        mujoco.mj_forward(self._model, self._data)
        self._obs = (
            np.concatenate([state.hand, self._obs[4:]]) if hasattr(self, "_obs") else state.hand
        )

    def shown_facts(self, state: State) -> dict[str, np.ndarray]:
        """`facts` of a state that `show` put up: the phase is the recorded one."""
        facts = self._oracle.facts(self._data, self._env.tcp_center)
        return {**facts, "gripper_open": state.hand[3], "phase": state.phase}

    def place_added(self, states: Sequence[State], rng: np.random.Generator) -> None:
        """Puts the condition's added things on the table, in view and clear of all that stands or passes in `states`.

        Raises NoRoomError.
        """
        if not self.condition or not self.condition.added:
            return
        taken = []  # (low, high) corners in x and y
        for state in states:
            self.show(state)
            own = [
                tracked.bounds(self._data)
                for tracked in self._oracle.objects[: len(self.task.objects)]
            ]
            taken += [(low[:2], high[:2]) for low, high in own] + [(state.hand[:2], state.hand[:2])]
        for extra, thing in zip(self._view.extras, self.condition.added, strict=True):
            spot = self._free_spot(np.array(taken), thing, rng)
            extra.position = np.array([*spot, thing.half[2]])
            taken.append((spot, spot))
        self._oracle.forget()

    def _free_spot(
        self, taken: np.ndarray, thing: AddedObject, rng: np.random.Generator
    ) -> np.ndarray:
        """float[2] on the table that is in view and clear of boxes float[K, 2, 2]."""
        spots = free_spots(rng, np.transpose(_TABLE), taken, _CLEARANCE)
        seen = project(
            camera_matrix(self._model, self._data, self._cameras["front"]),
            np.column_stack([spots, np.full(len(spots), thing.half[2])]),
        )
        free = (np.abs(seen - 0.5) < 0.5 - _BORDER).all(-1)
        if not free.any():
            raise NoRoomError(f"no room on the table for a {thing.noun}")
        return spots[free][0]

    def _front(self) -> Orbit:
        return (
            self.condition.camera if self.condition and self.condition.camera else self.scene.camera
        )

    def _change(self, condition: Condition) -> None:
        """Recolours, adds and swaps; the oracle's names and colours follow."""
        if condition.colors:
            self._recolor(condition.colors)
        first = self._model.ngeom + self._model.nsite
        for thing in condition.added:
            extra = extra_of(thing)
            self._view.extras.append(extra)
            spec = ObjectSpec(thing.noun, thing.color)
            self._oracle.objects.append(
                Placed(spec, extra, thing.half, first + len(self._view.extras) - 1)
            )
        if condition.swapped:
            self._swap(condition.swapped, first)
        self._oracle.forget()

    def _recolor(self, colors: Sequence[tuple[str, tuple[float, float, float]]]) -> None:
        objects = self._oracle.objects
        for n, tracked in enumerate(objects):
            word, rgb = colors[n % len(colors)]
            if tracked.site is not None or tracked.spec.color in tracked.spec.name.split():
                continue
            parts = [
                other.drawn
                for other in objects
                if other is not tracked and len(other.drawn) < len(tracked.drawn)
            ]
            own = np.setdiff1d(tracked.drawn, np.concatenate([*parts, np.array([], int)]))
            self._model.geom_matid[own], self._model.geom_rgba[own] = -1, (*rgb, 1)
            tracked.spec = dataclasses.replace(tracked.spec, color=word)

    def _swap(self, thing: AddedObject, first: int) -> None:
        """Raises ValueError if the task has nothing that may be swapped."""
        objects = self._oracle.objects
        chosen = [n for n, tracked in enumerate(objects) if tracked.spec.name in SWAPPABLE]
        if not chosen:
            raise ValueError(
                f"task with {', '.join(self._names)}: none of {', '.join(SWAPPABLE)} to swap"
            )
        old, extra = objects[chosen[0]], extra_of(thing)
        self._model.geom_group[old.drawn] = HIDDEN_GROUP
        self._view.extras.append(extra)
        spec = dataclasses.replace(old.spec, name=thing.noun, color=thing.color)
        objects[chosen[0]] = Placed(
            spec, extra, thing.half, first + len(self._view.extras) - 1, rides=old
        )
        self._names[old.spec.name] = thing.noun

    def close(self) -> None:
        """Frees the renderer."""
        self._view.close()


def _make_env(task: str):
    """The bare simulator with the whole state observable and layouts drawn from `seed`."""
    env = ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
    env._partially_observable, env._set_task_called = False, True
    del env.sawyer_observation_space  # its cached bounds would clip the goal to zero
    env._freeze_rand_vec, env.seeded_rand_vec = False, True
    env.max_path_length = 10**9
    return env


def _parts(model: mujoco.MjModel, oracle: Oracle, table: np.ndarray) -> dict[str, np.ndarray]:
    """Geoms of the table top, of the room and of the things, for `Looks`."""
    things = np.unique(np.concatenate([tracked.drawn for tracked in oracle.objects]))
    room = np.flatnonzero(model.geom_bodyid == 0)
    return {"table": table, "room": np.setdiff1d(room, things), "things": things}


def _dress(model: mujoco.MjModel, task: Task, scene: SceneVariant) -> None:
    """Gives the model its look: markers the instruction speaks of, no other site, table, light, no far arm parts."""
    markers = [spec.site for spec in task.objects if spec.site]
    hide_sites(model, markers)
    for name in markers:
        model.site(name).size[:], model.site(name).rgba[:] = _MARKER_RADIUS, _MARKER_RGBA
    unseen = [model.body(name).id for name in _UNSEEN_BODIES]
    model.geom_group[np.isin(model.geom_bodyid, unseen)] = HIDDEN_GROUP
    for mesh in _FINE_MESHES:
        coarsen_mesh(model, model.mesh(mesh).id, _MESH_CELL)
    if scene.table is not None:
        table = _table(model)
        model.geom_matid[table] = -1
        model.geom_rgba[table] = (*scene.table, 1)
    light_scene(model, scene.light, scene.ambient)


def _table(model: mujoco.MjModel) -> np.ndarray:
    """Geoms of the table top, as Meta-World has it."""
    return np.flatnonzero(model.geom_matid == model.material("table_wood").id)
