"""LIBERO as a place to collect demonstrations and to be judged: fixed or fresh layouts, two looks, expert, oracle.

Axes: H W pixels, S state width, C cameras, N objects. Facts are in the frame of the robot's base, the state vector in
LIBERO's world frame, as the public data sets have it.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import xml.etree.ElementTree as ET
from collections.abc import Iterator

import numpy as np

from etcvla.etc.annotation import project
from etcvla.names import lookup
from etcvla.sims import headless
from etcvla.sims.libero import files as libero_files

headless.require_egl()
libero_files.root()
logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
from libero.libero.envs.env_wrapper import ControlEnv  # noqa: E402
from robosuite.utils.errors import RandomizationError  # noqa: E402

from etcvla.sims.appearance import AppearanceEditor, scatter, shift_free  # noqa: E402
from etcvla.sims.conditions import Condition, Orbit  # noqa: E402
from etcvla.sims.libero import tasks as libero_tasks  # noqa: E402
from etcvla.sims.libero.expert import Expert, GraspScene  # noqa: E402
from etcvla.sims.libero.oracle import LIFTED, Moment, PickPlace, mirror, to_base_frame  # noqa: E402
from etcvla.sims.libero.tasks import AXES, CAMERAS, SCENES  # noqa: E402
from etcvla.sims.oracle import Oracle, hide_sites  # noqa: E402
from etcvla.sims.render import HIDDEN_GROUP, Renderer, coarsen_mesh, orbit_of  # noqa: E402
from etcvla.sims.seeds import EVAL_SEED_BASE  # noqa: E402
from etcvla.sims.task import ObjectSpec  # noqa: E402

SETTLE_STEPS = 20  # at rest after a reset, for things are put down from a small height
REST = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)

_MAX_LAYOUTS = 100
_FIXTURE_SEED = 0  # initial states hold no fixtures: these stand where this seed puts them
_CAMERAS = ("agentview", "robot0_eye_in_hand")
_MESH_CELL = 0.003  # metres; at 4 mm textures visibly break in the wrist view
_MAX_OPENING = 0.08  # metres between the fingers
_REACH = 0.05  # metres that the hand goes in a step at most
_AROUND = 0.25  # metres around the middle of the things, where things may be added
_MOVED = 0.03  # metres after which a name that tells the place is no longer true


class Libero:
    """One task. Call `reset` first; images are drawn only when `observe` or `facts` asks.

    Args:
      task: "suite/name" or "suite/index", LIBERO-PRO's perturbed suites included.
      scene: a key of `SCENES`: "rlds" shows images as the public data sets do, "upright" as a person would.
      image_size: height and width of both cameras, pixels.
    Raises ValueError for an unknown name, FileNotFoundError where the package lacks the task's files, RuntimeError
    (with the command that mends it) where nothing can be drawn.
    """

    def __init__(self, task: str, scene: str = "rlds", image_size: int = 224):
        self._mirrored = lookup(SCENES, scene, "scene")
        self.suite, self.name = libero_files.resolve(task)
        self._control = ControlEnv(
            bddl_file_name=str(libero_files.bddl_file(self.suite, self.name)),
            has_offscreen_renderer=False,
            use_camera_obs=False,
            hard_reset=False,
            ignore_done=True,
        )
        self._env = self._control.env
        for observable in (
            self._env._observables.values()
        ):  # nobody reads them, and they cost as much as the physics
            observable.set_enabled(False)
        self._model, self._data = self._env.sim.model._model, self._env.sim.data._data
        problem = self._env.parsed_problem | {
            "language_instruction": self._control.language_instruction
        }
        spelt = (
            libero_tasks.file_instruction(self.name) if self.suite in libero_tasks.SUITES else ""
        )
        self.task = libero_tasks.describe(problem, spelt)
        self.target = [spec.name for spec in self.task.objects].index(self.task.target)
        self.rate, self.cameras, self.axes = float(self._env.control_freq), CAMERAS, AXES
        instances = [spec.body.removesuffix("_main") for spec in self.task.objects]
        _, goal, verb = libero_tasks.goal_of(problem["goal_state"], instances)
        self._goal, self._inside = instances.index(goal) if goal else -1, verb == "in"
        self._phases, self._blank = PickPlace(), self._env.model.get_xml()
        self._see(image_size)
        self._scene = GraspScene(
            self._drawn, self._data, [tracked.drawn for tracked in self._oracle.objects]
        )

    def _see(self, image_size: int) -> None:
        """Makes the model that is drawn, which shares the state of the one that moves."""
        self._drawn = copy.copy(self._model)
        self._drawn.geom_group[self._model.geom_group == 0] = (
            HIDDEN_GROUP  # robosuite's collision shapes
        )
        hide_sites(
            self._drawn,
            [
                site
                for name in self._env.visualization_sites_list
                for site, _ in self._env.get_object(name)
                .object_properties["vis_site_names"]
                .values()
            ],
        )
        for mesh in range(self._drawn.nmesh):
            coarsen_mesh(self._drawn, mesh, _MESH_CELL)
        self._view = Renderer(self._drawn, image_size)
        self._front: str | Orbit = _CAMERAS[0]
        self._drawn.vis.global_.fovy = self._drawn.camera(_CAMERAS[0]).fovy[
            0
        ]  # of a front camera that is moved
        self._oracle = Oracle(
            self._drawn,
            self._data,
            self.task.objects,
            self._view,
            _CAMERAS,
            gripper_body="gripper0_right_gripper",
        )
        self._appearance = AppearanceEditor(self._drawn, self._view, **self._parts())

    def _parts(self) -> dict[str, np.ndarray]:
        """Geoms of what things stand on, of the room and of the things, for `Looks`."""
        model, things = (
            self._drawn,
            np.unique(np.concatenate([tracked.drawn for tracked in self._oracle.objects])),
        )
        of_robot = [
            model.body(body).name.startswith(("robot0", "gripper0")) for body in model.geom_bodyid
        ]
        room = np.setdiff1d(
            np.flatnonzero((model.geom_group < HIDDEN_GROUP) & ~np.array(of_robot)), things
        )
        called = {
            geom: f"{model.geom(geom).name} {_material(model, geom)}" for geom in room.tolist()
        }
        table = [geom for geom, name in called.items() if "table" in name and "leg" not in name]
        table = table or [geom for geom, name in called.items() if "floor" in name]
        return {"table": np.array(table, int), "room": room, "things": things}

    @property
    def orbit(self) -> Orbit:
        """Where the front camera stands by default, about the middle of the things."""
        camera = self._model.camera(_CAMERAS[0]).id
        position, backward = (
            self._data.cam_xpos[camera],
            self._data.cam_xmat[camera].reshape(3, 3)[:, 2],
        )
        middle = np.mean([tracked.position(self._data) for tracked in self._oracle.objects], axis=0)
        return orbit_of(position, backward, float(np.dot(position - middle, backward)))

    def set_appearance(self, condition: Condition | None, seed: int) -> None:
        """Shows the scene, which was just reset, under a condition (all but what it swaps), or as it is by default."""
        self._front = condition.camera if condition and condition.camera else _CAMERAS[0]
        added = self._appearance.put(condition)
        if not added:
            return
        corners = np.array([tracked.bounds(self._data) for tracked in self._oracle.objects])
        middle = corners[..., :2].mean((0, 1))
        area = np.stack([middle - _AROUND, middle + _AROUND])
        scatter(
            added,
            [thing.half[2] for thing in condition.added],
            corners[:, 0, 2].min(),
            self._oracle.objects,
            self._data,
            area,
            self.grip_site,
            seed,
        )

    @property
    def language_instruction(self) -> str:
        """What LIBERO itself tells the robot."""
        return self._control.language_instruction

    def initial_states(self) -> np.ndarray:
        """float64[I, D]: the task's fixed initial states."""
        return libero_files.init_states(self.suite, self.name)

    def reset(self, seed: int, hand: np.ndarray | None = None, shift: float = 0.0) -> None:
        """A fresh layout drawn from `seed`, or the fixed initial state `seed - EVAL_SEED_BASE`, at rest.

        The same seed gives the same state and images, whatever happened before. Raises ValueError where the task has
        no initial state of that number.

        Args:
          hand: float[3] metres by which the hand is moved from there before the episode begins.
          shift: metres by which things that lie free are moved, where there is room.
        """
        index = seed - EVAL_SEED_BASE
        self._lay_out(seed if index < 0 else _FIXTURE_SEED)
        if index >= 0:
            states = self.initial_states()
            if index >= len(states):
                raise ValueError(
                    f"{self.suite}/{self.name}: initial state {index}, but there are {len(states)}"
                )
            self._set_state(states[index])
        shift_free(self._model, self._data, self._oracle.objects, shift, seed)
        for _ in range(SETTLE_STEPS):
            self._advance(REST)
        if hand is not None:
            self._move_hand(self.grip_site + hand)
        self._begin()

    def _move_hand(self, place: np.ndarray) -> None:
        """Brings the grasp centre to a place in the world, and to rest."""
        for step in range(2 * SETTLE_STEPS):
            towards = (place - self.grip_site) / _REACH if step < SETTLE_STEPS else np.zeros(3)
            self._advance(np.concatenate([np.clip(towards, -1, 1), REST[3:]]))

    def restore(self, state: np.ndarray, model_xml: str | None = None) -> None:
        """The recorded simulator state float64[D]; with the demonstration's `model_xml`, its fixtures as well.

        Raises ValueError where the state or the model is not one of this task.
        """
        if model_xml is not None:
            self._lay_out(_FIXTURE_SEED)
            self._place_fixtures(model_xml)
        self._set_state(state)
        if model_xml is not None:
            self._begin()

    def _lay_out(self, seed: int) -> None:
        """Draws a layout; those in which LIBERO finds no room for a thing are drawn again."""
        self._env.robots[0].gripper.current_action[:] = 0  # a reset that keeps the model leaves it
        with _global_seed(seed):
            for _ in range(_MAX_LAYOUTS):
                # LIBERO puts a thing on a fixture by where its places are in the world while it stands at the origin.
                self._place_fixtures(self._blank)
                with contextlib.suppress(RandomizationError):
                    self._env.reset()
                    return
        raise RuntimeError(
            f"{self.suite}/{self.name}: no room for its things in {_MAX_LAYOUTS} layouts"
        )

    def _begin(self) -> None:
        self.success = False
        self._phases.reset()
        self._expert, self.grasp_offset, self._reached = None, None, set()
        self._start = np.array([tracked.position(self._data) for tracked in self._oracle.objects])

    def _set_state(self, state: np.ndarray) -> None:
        expected = 1 + self._model.nq + self._model.nv
        if np.shape(state) != (expected,):
            raise ValueError(
                f"{self.suite}/{self.name}: a state of shape {np.shape(state)}, expected ({expected},): "
                f"time, {self._model.nq} positions, {self._model.nv} velocities"
            )
        self._env.sim.set_state_from_flattened(np.asarray(state, np.float64))
        self._env.sim.forward()
        self._env._post_process()

    def _place_fixtures(self, model_xml: str) -> None:
        """Puts fixtures where they stood: they have no joint, so that a state does not tell."""
        bodies = {body.get("name"): body for body in ET.fromstring(model_xml).iter("body")}
        for fixture in self._env.fixtures_dict.values():
            if fixture.root_body not in bodies:
                raise ValueError(
                    f"{self.suite}/{self.name}: the recorded model has no {fixture.root_body!r}; it is of "
                    f"another task"
                )
            index = self._model.body(fixture.root_body).id
            place = bodies[fixture.root_body]
            self._model.body_pos[index] = np.array(place.get("pos", "0 0 0").split(), float)
            self._model.body_quat[index] = np.array(place.get("quat", "1 0 0 0").split(), float)

    def observe(self) -> dict:
        """{"images": {camera: uint8[H, W, 3]}, "state": float32[S]}; see STATE_DOC and SCENES."""
        self._drawn.site_rgba[:] = self._model.site_rgba  # a stove that is on glows
        images = {
            name: self._view.rgb(self._data, camera)
            for name, camera in zip(CAMERAS, (self._front, *_CAMERAS[1:]), strict=True)
        }
        if self._mirrored:
            images = {name: np.ascontiguousarray(image[:, ::-1]) for name, image in images.items()}
        return {"images": images, "state": self.state()}

    def state(self) -> np.ndarray:
        """float32[S] proprioception alone; see STATE_DOC."""
        return np.concatenate(
            [self.grip_site, axis_angle(self._data.body("robot0_right_hand").xquat), self._fingers]
        ).astype(np.float32)

    @property
    def grip_site(self) -> np.ndarray:
        """float64[3]: the grasp centre in the world."""
        return self._data.site("gripper0_grip_site").xpos.copy()

    @property
    def _fingers(self) -> np.ndarray:
        return np.array([self._data.joint(f"gripper0_finger_joint{i}").qpos[0] for i in (1, 2)])

    def step(self, action: np.ndarray) -> bool:
        """Acts for one control step, 1 / rate seconds. Returns whether the goal was reached now or before.

        Args:
          action: float[7], clipped to [-1, 1]; see ACTION_DOC.
        """
        self._advance(np.clip(np.asarray(action, np.float64), -1, 1))
        self.success = self.success or self.reached()
        return self.success

    def reached(self) -> bool:
        """Does the goal hold in this state?"""
        return bool(self._env._check_success())

    def _advance(self, action: np.ndarray) -> None:
        """One control step, after which everything is where the state says: robosuite leaves bodies a substep behind,
        so that the same state, restored, would look otherwise."""
        self._env.step(action)
        self._env.sim.forward()

    def expert_action(self) -> np.ndarray:
        """float32[7] in [-1, 1]: what the scripted expert, which sees the whole state, does now.

        Raises ValueError for tasks that are not one thing to put on or in another.
        """
        if self._expert is None:
            if not self.task.phases:
                raise ValueError(
                    f"{self.suite}/{self.name}: the expert only knows how to put one thing on or in "
                    f"another; the goal is {self._env.parsed_problem['goal_state']}"
                )
            self._expert = Expert(self._scene, self.target, self._goal, inside=self._inside)
        action = self._expert.act(self.success)
        if self._expert.reaching:
            self.grasp_offset = self._to_target(self._expert.grasp_point)
        return action

    @property
    def expert_grasps(self) -> int:
        """How many grasps the expert has tried since the reset."""
        return self._expert.attempts if self._expert else 0

    def instruction(self, rng: np.random.Generator | None = None) -> str:
        """One of the task's paraphrases; LIBERO's own without `rng`."""
        return self.task.instructions[0] if rng is None else str(rng.choice(self.task.instructions))

    def touched(self) -> np.ndarray:
        """bool[N]: the objects that the gripper touches now."""
        return self._oracle.contact(self._data, self.grip_site) == 1

    def progress(self) -> float:
        """The share of the subtasks that are behind; call at every step.

        Where they are unknown: of touching a right thing and each condition of the goal.
        """
        touched = self.touched()
        if self.task.phases:
            return self._phase(bool(touched[self.target])) / len(self.task.phases)
        self._reached |= {
            i
            for i, fact in enumerate(self._env.parsed_problem["goal_state"])
            if self._env._eval_predicate(fact)
        }
        self._reached |= {"touch"} if self._reached or touched[self.goal_objects].any() else set()
        return len(self._reached) / (1 + len(self._env.parsed_problem["goal_state"]))

    @property
    def goal_objects(self) -> list[int]:
        """The objects that the goal's conditions are about."""
        about = [fact[1] for fact in self._env.parsed_problem["goal_state"]]
        instances = [spec.body.removesuffix("_main") for spec in self.task.objects]
        return [
            n
            for n, name in enumerate(instances)
            if n == self.target
            or any(thing == name or thing.startswith(f"{name}_") for thing in about)
        ]

    @property
    def objects(self) -> list[ObjectSpec]:
        """The named objects as the scene shows them."""
        return list(self.task.objects)

    @property
    def shapes(self) -> tuple[str, ...]:
        """Their shape words, "" unknown."""
        return tuple(
            libero_tasks.SHAPES.get(libero_tasks.category_of(spec), "")
            for spec in self.task.objects
        )

    def rename_objects(self, text: str) -> str:
        """A text about the task in the words of the scene as it is shown, which are the task's."""
        return text

    def facts(self, all_views: bool = True) -> dict[str, np.ndarray]:
        """This frame's values of every step field of an annotation; draws a segmentation of the front camera.

        And one of the wrist camera; without `all_views` what it shows of the objects is unknown.
        Where to hold the target is known once `hold` is: the expert's grasp, or the one of a recorded demonstration.
        """
        facts = self._oracle.facts(self._data, self.grip_site, all_views)
        facts["grasp_pixel"] = self._grasp_pixel(facts["camera_matrix"])
        phase = self._phase(bool(facts["contact"][self.target]))
        self._forget_places(facts)
        base = self._data.body("robot0_base")
        facts = to_base_frame(facts, base.xmat.reshape(3, 3), base.xpos)
        facts = mirror(facts) if self._mirrored else facts
        return {
            **facts,
            "gripper_open": np.clip(-np.diff(self._fingers)[0] / _MAX_OPENING, 0, 1),
            "phase": phase,
        }

    def remember_grasp(self) -> bool:
        """If the gripper is lifting the target, says that this is where it is to be held. Returns whether it is."""
        tracked = self._oracle.objects[self.target]
        risen = tracked.position(self._data)[2] - self._start[self.target, 2]
        lifting = risen > LIFTED and bool(
            self._oracle.contact(self._data, self.grip_site)[self.target]
        )
        if lifting:
            self.grasp_offset = self._to_target(self.grip_site)
        return lifting

    def _to_target(self, point: np.ndarray) -> np.ndarray:
        """A world point float[3] in the frame of the target's body."""
        body = self._data.body(self.task.objects[self.target].body)
        return (point - body.xpos) @ body.xmat.reshape(3, 3)

    def _grasp_pixel(self, camera_matrix: np.ndarray) -> np.ndarray:
        """float32[C, N, 2]: unknown but for the target, which the oracle would hold at its centre."""
        pixels = np.full((len(_CAMERAS), len(self.task.objects), 2), np.nan, np.float32)
        if self.grasp_offset is not None:
            body = self._data.body(self.task.objects[self.target].body)
            pixels[:, self.target] = project(
                camera_matrix, body.xmat.reshape(3, 3) @ self.grasp_offset + body.xpos
            )
        return pixels

    def _phase(self, touched: bool) -> int:
        """The subtask in progress; -1 where the task's are unknown."""
        if not self.task.phases:
            return -1
        low, high = self._oracle.objects[self.target].bounds(self._data)
        place = self._oracle.objects[self._goal].position(self._data)
        grip = self.grip_site
        return self._phases.update(
            Moment((low + high) / 2, place, touched, bool(((grip > low) & (grip < high)).all()))
        )

    def _forget_places(self, facts: dict[str, np.ndarray]) -> None:
        """A thing that is called by its place has no name once it is moved: it is no longer spoken of."""
        moved = np.linalg.norm(facts["position"] - self._start, axis=-1) > _MOVED
        stale = moved & [spec.name != libero_tasks.noun_of(spec) for spec in self.task.objects]
        for field in ("box", "visible", "grasp_pixel"):
            facts[field][:, stale] = np.nan

    def close(self) -> None:
        """Frees the renderer."""
        self._view.close()


def _material(model, geom: int) -> str:
    return model.material(model.geom_matid[geom]).name if model.geom_matid[geom] >= 0 else ""


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """float64[3] of a unit quaternion (w, x, y, z), its angle in [0, 2 pi]: robosuite's, which the data sets keep."""
    w, axis = np.clip(quaternion[0], -1, 1), np.asarray(quaternion[1:])
    norm = np.sqrt(1 - w * w)
    return axis * (2 * np.arccos(w) / norm) if norm > 1e-12 else np.zeros(3)


@contextlib.contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """LIBERO places things by NumPy's global generator, which is left as it was."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
