"""LIBERO's environment: fixed or random layouts, two scene variants, an expert and an oracle.

Axes: H W pixels, S state width, C cameras, N objects. Facts are in the frame of the robot's base;
the state vector is in LIBERO's world frame, as in the public datasets.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any

import numpy as np

from etcvla.errors import UserError
from etcvla.etc.annotation import project
from etcvla.names import lookup
from etcvla.sims import headless
from etcvla.sims.libero import files

headless.require_egl()
files.root()
logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
from libero.libero.envs.env_wrapper import ControlEnv  # noqa: E402
from robosuite.utils.errors import RandomizationError  # noqa: E402

from etcvla.sims.appearance import (  # noqa: E402
    AppearanceEditor,
    ScatterArea,
    SceneGeoms,
    shift_free_objects,
)
from etcvla.sims.conditions import Orbit  # noqa: E402
from etcvla.sims.libero import tasks  # noqa: E402
from etcvla.sims.libero.expert import Expert, SceneGeometry  # noqa: E402
from etcvla.sims.libero.oracle import (  # noqa: E402
    LIFTED,
    PickPlaceState,
    PickPlaceTracker,
    mirror,
    to_base_frame,
)
from etcvla.sims.libero.tasks import AXES, CAMERAS, SCENES  # noqa: E402
from etcvla.sims.mujoco_environment import MujocoEnvironment  # noqa: E402
from etcvla.sims.oracle import hide_sites  # noqa: E402
from etcvla.sims.render import HIDDEN_GROUP, coarsen_mesh, orbit_of  # noqa: E402
from etcvla.sims.seeds import EVAL_SEED_BASE  # noqa: E402

# Steps without motion after a reset, because objects are placed above the table.
_SETTLE_STEPS = 20
_REST = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)

_MAX_LAYOUTS = 100
# Initial states do not contain the fixtures' positions, which this seed draws.
_FIXTURE_SEED = 0
_FRONT_CAMERA = "agentview"
_MESH_CELL = 0.003  # metres; at 0.004 textures visibly break in the wrist camera
_MAX_OPENING = 0.08  # metres between the fingers
_MAX_STEP = 0.05  # metres that the hand moves in a step at most
_SCATTER_RADIUS = 0.25  # metres around the middle of the objects within which objects are added
_MOVED = 0.03  # metres after which a name that contains the object's place is wrong


class Libero(MujocoEnvironment):
    """One task; see `etcvla.sims.environment.Environment` for the methods.

    Args:
      task: "suite/name" or "suite/index", including LIBERO-PRO's perturbed suites.
      scene: a key of `SCENES`: "rlds" shows images as the public datasets do, "upright" as a person
        would see them.
      image_size: height and width of both cameras, pixels.
      condition: a name of `conditions.CONTEXT_CONDITIONS`; "" for none.

    Raises UserError for an unknown name, where the package lacks the task's files, and with the
    command that fixes it where MuJoCo cannot render.
    """

    cameras = CAMERAS
    axes = AXES

    def __init__(self, task: str, scene: str = "rlds", image_size: int = 224, condition: str = ""):
        self._set_condition(condition)
        self._mirrored = lookup(SCENES, scene, "scene")
        self.suite, self.name = files.resolve(task)
        self._control = ControlEnv(
            bddl_file_name=str(files.bddl_file(self.suite, self.name)),
            has_offscreen_renderer=False,
            use_camera_obs=False,
            hard_reset=False,
            ignore_done=True,
        )
        self._env = self._control.env
        # robosuite's observations are not used, and cost as much as the physics.
        for observable in self._env._observables.values():
            observable.set_enabled(False)
        self._model = self._env.sim.model._model
        self._data = self._env.sim.data._data
        self._goal_state = self._env.parsed_problem["goal_state"]
        self._initial_xml = self._env.model.get_xml()
        self.rate = float(self._env.control_freq)
        self._set_task()
        self._set_visuals(image_size)
        geoms = [scene_object.visible_geoms for scene_object in self._oracle.objects]
        self._geometry = SceneGeometry(self._visual_model, self._data, geoms)
        self._phases = PickPlaceTracker()
        self._start_episode()

    def _set_task(self) -> None:
        """Set the task, its goal, and the index of the goal's place."""
        in_file_name = tasks.file_instruction(self.name) if self.suite in tasks.SUITES else ""
        self.task = tasks.make_task(
            self._env.parsed_problem, self._control.language_instruction, in_file_name
        )
        self._instances = [spec.body.removesuffix("_main") for spec in self.task.objects]
        self._goal = tasks.PickPlaceGoal.of(self._goal_state, self._instances)
        self._place = self._instances.index(self._goal.place) if self._goal else -1

    def _set_visuals(self, image_size: int) -> None:
        """Set the model that is rendered. It shares the state of the model that is simulated."""
        model = copy.copy(self._model)
        model.geom_group[self._model.geom_group == 0] = HIDDEN_GROUP  # robosuite's collision shapes
        hide_sites(model, self._visible_sites())
        for mesh in range(model.nmesh):
            coarsen_mesh(model, mesh, _MESH_CELL)
        model.vis.global_.fovy = model.camera(_FRONT_CAMERA).fovy[0]  # for an `Orbit`
        self._visual_model = model
        cameras = {"front": _FRONT_CAMERA, "wrist": "robot0_eye_in_hand"}
        self._set_oracle(model, cameras, image_size, gripper_body="gripper0_right_gripper")
        self._target_body = self.task.objects[self.target].body
        self._appearance = AppearanceEditor(model, self._renderer, self._scene_geoms())

    def _visible_sites(self) -> list[str]:
        """Return the sites that LIBERO itself renders, such as the flames of a stove."""
        sites = []
        for name in self._env.visualization_sites_list:
            visible_sites = self._env.get_object(name).object_properties["vis_site_names"]
            sites += [site for site, _ in visible_sites.values()]
        return sites

    def _scene_geoms(self) -> SceneGeoms:
        """Return the geoms of the table, of the room without the robot, and of the objects."""
        model = self._visual_model
        objects = self._oracle.visible_geoms()
        room = []
        tables = []
        floors = []
        for geom in np.flatnonzero(model.geom_group < HIDDEN_GROUP).tolist():
            body = model.body(model.geom_bodyid[geom]).name
            if geom in objects or body.startswith(("robot0", "gripper0")):
                continue
            room.append(geom)
            name = model.geom(geom).name
            if model.geom_matid[geom] >= 0:
                name += f" {model.material(model.geom_matid[geom]).name}"
            if "table" in name and "leg" not in name:
                tables.append(geom)
            if "floor" in name:
                floors.append(geom)
        return SceneGeoms(np.array(tables or floors, int), np.array(room), objects)

    @property
    def orbit(self) -> Orbit:
        """The default pose of the front camera, around the middle of the objects."""
        camera = self._data.camera(_FRONT_CAMERA)
        backward = camera.xmat.reshape(3, 3)[:, 2]
        middle = self._oracle.positions().mean(0)
        distance = float(np.dot(camera.xpos - middle, backward))
        return orbit_of(camera.xpos, backward, distance)

    def _scatter_area(self, bounds: np.ndarray) -> ScatterArea:
        middle = bounds[..., :2].mean((0, 1))
        return ScatterArea(
            corners=np.stack([middle - _SCATTER_RADIUS, middle + _SCATTER_RADIUS]),
            ground=bounds[:, 0, 2].min(),
            hand=self.grasp_centre,
        )

    def reset(self, seed: int, hand: np.ndarray | None = None, shift: float = 0.0) -> None:
        """Start an episode; see `Environment.reset` for the arguments.

        An evaluation seed selects the fixed initial state `seed - EVAL_SEED_BASE`; any other seed
        draws a layout. Raises UserError if the task has no initial state of that number.
        """
        index = seed - EVAL_SEED_BASE
        self._draw_layout(seed if index < 0 else _FIXTURE_SEED)
        if index >= 0:
            states = files.init_states(self.suite, self.name)
            if index >= len(states):
                raise self._error(f"initial state {index}, but there are {len(states)}")
            self._set_state(states[index])
        shift_free_objects(self._model, self._data, self._oracle.objects, shift, seed)
        self._settle()
        if hand is not None:
            target = self.grasp_centre + hand
            for _ in range(_SETTLE_STEPS):
                offset = (target - self.grasp_centre) / _MAX_STEP
                self._advance(np.append(np.clip(offset, -1, 1), _REST[3:]))
            self._settle()
        self._start_episode()
        self.set_appearance(None, seed)

    def _settle(self) -> None:
        for _ in range(_SETTLE_STEPS):
            self._advance(_REST)

    def _error(self, problem: str) -> UserError:
        return UserError(f"{self.suite}/{self.name}: {problem}")

    def restore(self, state: np.ndarray, model_xml: str | None = None) -> None:
        """Restore a recorded simulator state float64[D].

        With the demonstration's `model_xml`, restore the positions of its fixtures as well and
        start an episode.

        Raises UserError if the state or the model is not of this task.
        """
        if model_xml is not None:
            self._draw_layout(_FIXTURE_SEED)
            self._place_fixtures(model_xml)
        self._set_state(state)
        if model_xml is not None:
            self._start_episode()

    def _draw_layout(self, seed: int) -> None:
        """Draw layouts until LIBERO finds room for every object."""
        # A reset that keeps the model does not reset the gripper's command.
        self._env.robots[0].gripper.current_action[:] = 0
        with _global_seed(seed):
            for _ in range(_MAX_LAYOUTS):
                # LIBERO computes places on a fixture from their world positions while the fixture
                # is at the origin.
                self._place_fixtures(self._initial_xml)
                with contextlib.suppress(RandomizationError):
                    self._env.reset()
                    return
        raise RuntimeError(
            f"{self.suite}/{self.name}: no room for its objects in {_MAX_LAYOUTS} layouts"
        )

    def _start_episode(self) -> None:
        """Reset what an episode keeps track of."""
        self.success = False
        self._phases.reset()
        self._expert: Expert | None = None
        # Where to hold the target, in the frame of its body, float[3]: the expert's grasp, or that
        # of a recorded demonstration; None while it is unknown.
        self.grasp_offset: np.ndarray | None = None
        self._goals_reached = set()  # indices of goal conditions that were true at some step
        self._was_touched = False
        self._start_positions = self._oracle.positions()

    def _set_state(self, state: np.ndarray) -> None:
        expected = (1 + self._model.nq + self._model.nv,)  # time, positions, velocities
        if np.shape(state) != expected:
            raise self._error(f"a state of shape {np.shape(state)}, expected {expected}")
        self._env.sim.set_state_from_flattened(np.asarray(state, np.float64))
        self._env.sim.forward()
        self._env._post_process()

    def _place_fixtures(self, model_xml: str) -> None:
        """Place the fixtures as in a model.

        They have no joint, so a state does not contain their positions.
        """
        bodies = {body.get("name"): body for body in ET.fromstring(model_xml).iter("body")}
        for fixture in self._env.fixtures_dict.values():
            name = fixture.root_body
            if name not in bodies:
                raise self._error(f"the recorded model has no {name!r}; it is of another task")
            body = self._model.body(name)
            body.pos = np.array(bodies[name].get("pos", "0 0 0").split(), float)
            body.quat = np.array(bodies[name].get("quat", "1 0 0 0").split(), float)

    def observe(self) -> dict[str, Any]:
        """Render both cameras, mirrored in scene "rlds"; see `Environment.observe`."""
        self._visual_model.site_rgba[:] = self._model.site_rgba  # a stove that is on glows
        images = self._render()
        if self._mirrored:
            for name, image in images.items():
                images[name] = np.ascontiguousarray(image[:, ::-1])
        return {"images": images, "state": self.state()}

    def state(self) -> np.ndarray:
        """Return the proprioception, float32[S]; see STATE_DOC."""
        orientation = axis_angle(self._data.body("robot0_right_hand").xquat)
        state = np.concatenate([self.grasp_centre, orientation, self._fingers])
        return state.astype(np.float32)

    @property
    def grasp_centre(self) -> np.ndarray:
        """The gripper's grasp centre in the world, float64[3]."""
        return self._data.site("gripper0_grip_site").xpos.copy()

    @property
    def _fingers(self) -> np.ndarray:
        joints = ("gripper0_finger_joint1", "gripper0_finger_joint2")
        return np.array([self._data.joint(name).qpos[0] for name in joints])

    def step(self, action: np.ndarray) -> bool:
        """Act for one control step, 1 / rate seconds, and return `success`.

        Args:
          action: float[7], clipped to [-1, 1]; see ACTION_DOC.
        """
        self._advance(np.clip(np.asarray(action, np.float64), -1, 1))
        self.success = self.success or self.reached()
        return self.success

    def reached(self) -> bool:
        """Return whether the goal holds in the current state."""
        return bool(self._env._check_success())

    def _advance(self, action: np.ndarray) -> None:
        """Simulate one control step.

        The final `forward` is needed because robosuite leaves body positions one substep behind the
        state, so the same state would be rendered differently after `restore`.
        """
        self._env.step(action)
        self._env.sim.forward()

    def expert_action(self) -> np.ndarray:
        """Return the scripted expert's action, float32[7] in [-1, 1].

        Raises UserError for tasks other than putting one object on or in another.
        """
        if self._expert is None:
            if not self._goal:
                raise self._error(
                    "the expert can only put one object on or in another; "
                    f"the goal is {self._goal_state}"
                )
            inside = self._goal.relation == "in"
            self._expert = Expert(self._geometry, self.target, self._place, inside=inside)
        action = self._expert.act(self.success)
        if self._expert.reaching:
            self.grasp_offset = self._to_target_frame(self._expert.grasp.point)
        return action

    @property
    def expert_grasps(self) -> int:
        """Number of grasps that the expert has tried since the reset."""
        return self._expert.attempts if self._expert else 0

    def phase(self) -> int:
        """Return the index of the subtask in progress, -1 if unknown. Call it once a step."""
        if not self._goal:
            return -1
        low, high = self._oracle.objects[self.target].bounds()
        is_within = (self.grasp_centre > low) & (self.grasp_centre < high)
        state = PickPlaceState(
            target=(low + high) / 2,
            place=self._oracle.objects[self._place].position(),
            touched=bool(self.touched()[self.target]),
            within=bool(is_within.all()),
        )
        return self._phases.update(state)

    def progress(self) -> float:
        """Return the share of the subtasks that are complete. Call it once a step.

        Where the subtasks are unknown, the shares are those of touching a goal object and of each
        goal condition.
        """
        if self._goal:
            return self.phase() / len(self.task.phases)
        for i, condition in enumerate(self._goal_state):
            if self._env._eval_predicate(condition):
                self._goals_reached.add(i)
        if self._goals_reached or self.touched()[self.goal_objects].any():
            self._was_touched = True
        reached = len(self._goals_reached) + self._was_touched
        return reached / (1 + len(self._goal_state))

    @property
    def goal_objects(self) -> list[int]:
        """The objects that the goal's conditions name."""
        indices = {self.target}
        for _, name, *_ in self._goal_state:
            instance = tasks.instance_of(name, self._instances)
            if instance:
                indices.add(self._instances.index(instance))
        return sorted(indices)

    @property
    def shapes(self) -> tuple[str, ...]:
        """The shape word of each object, "" where it is unknown."""
        categories = [tasks.category_of(spec) for spec in self.task.objects]
        return tuple(tasks.SHAPES.get(category, "") for category in categories)

    def facts(self, all_views: bool = True) -> dict[str, Any]:
        """Return the current frame's value of every step field; see `Environment.facts`.

        The target's grasp pixel is known once `grasp_offset` is; those of the other objects are
        NaN.
        """
        facts = self._oracle.facts(self.grasp_centre, all_views)
        facts["grasp_pixel"] = self._grasp_pixel(facts["camera_matrix"])
        phase = self.phase()
        self._forget_moved(facts)
        base = self._data.body("robot0_base")
        facts = to_base_frame(facts, base.xmat.reshape(3, 3), base.xpos)
        if self._mirrored:
            facts = mirror(facts)
        opening = -np.diff(self._fingers)[0] / _MAX_OPENING
        return {**facts, "gripper_open": np.clip(opening, 0, 1), "phase": phase}

    def remember_grasp(self) -> bool:
        """Set `grasp_offset` to the current grasp if the gripper is lifting the target.

        Returns whether it is lifting the target.
        """
        height = self._oracle.objects[self.target].position()[2]
        risen = height - self._start_positions[self.target, 2]
        is_lifting = bool(risen > LIFTED and self.touched()[self.target])
        if is_lifting:
            self.grasp_offset = self._to_target_frame(self.grasp_centre)
        return is_lifting

    def _to_target_frame(self, point: np.ndarray) -> np.ndarray:
        """Convert a world point float[3] to the frame of the target's body."""
        body = self._data.body(self._target_body)
        return (point - body.xpos) @ body.xmat.reshape(3, 3)

    def _grasp_pixel(self, camera_matrix: np.ndarray) -> np.ndarray:
        """Return the grasp pixels float32[C, N, 2], NaN except for the target.

        The oracle would use each object's centre.
        """
        pixels = np.full((len(CAMERAS), len(self.task.objects), 2), np.nan, np.float32)
        if self.grasp_offset is not None:
            body = self._data.body(self._target_body)
            point = body.xmat.reshape(3, 3) @ self.grasp_offset + body.xpos
            pixels[:, self.target] = project(camera_matrix, point)
        return pixels

    def _forget_moved(self, facts: dict[str, np.ndarray]) -> None:
        """Set the image facts of moved objects to NaN if their names contain their places."""
        distance = np.linalg.norm(facts["position"] - self._start_positions, axis=-1)
        named_by_place = [spec.name != tasks.noun_of(spec) for spec in self.task.objects]
        is_wrong = (distance > _MOVED) & named_by_place
        for field in ("box", "visible", "grasp_pixel"):
            facts[field][:, is_wrong] = np.nan


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """Convert a unit quaternion (w, x, y, z) to axis times angle, float64[3].

    The angle is in [0, 2 pi]. This is robosuite's convention, which the public datasets use.
    """
    w = np.clip(quaternion[0], -1, 1)
    axis = np.asarray(quaternion[1:])
    norm = np.sqrt(1 - w * w)
    return axis * (2 * np.arccos(w) / norm) if norm > 1e-12 else np.zeros(3)


@contextlib.contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, which LIBERO uses, and restore it afterwards."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
