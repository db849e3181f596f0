"""The tabletop's environment: an arm with a suction cup, five objects, and an instruction.

Axes: H W pixels, N objects, P steps of a chunk. Positions are metres in the robot's base frame,
which is the world frame: x right, y away from the camera, z up, and z = 0 on the table.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from etcvla.names import lookup
from etcvla.sims import headless

headless.require_egl()
import mujoco  # noqa: E402

from etcvla.sims.appearance import (  # noqa: E402
    AppearanceEditor,
    ScatterArea,
    SceneGeoms,
    shift_free_objects,
)
from etcvla.sims.mujoco_environment import MujocoEnvironment  # noqa: E402
from etcvla.sims.phases import PhaseTracker  # noqa: E402
from etcvla.sims.tabletop import expert, scene  # noqa: E402
from etcvla.sims.tabletop.layouts import (  # noqa: E402
    HALF_AREA,
    HOME,
    NUM_OBJECTS,
    Layout,
    is_evaluation,
    layout_number,
    make_layout,
    named_object,
)
from etcvla.sims.tabletop.tasks import TASKS  # noqa: E402
from etcvla.sims.tabletop.words import parse_scene  # noqa: E402
from etcvla.sims.task import ObjectSpec, Phase, Task  # noqa: E402

CAMERAS = ("front",)
AXES = ("right", "front", "up")
STATE_DOC = "Tip of the suction cup x, y, z in metres, robot base frame; suction, 0 off or 1 on."
ACTION_DOC = (
    "Tip displacement x, y, z in [-1, 1] of 2 cm a step, robot base frame; suction, on above 0."
)
STATE_SIZE = 4
ACTION_SIZE = 4
RATE = 10.0  # control steps per second
STEP = 0.02  # metres per control step at an action of 1
SUBSTEPS = 5
# Corners (low, high) of the space that the tip can reach.
REACH = np.array([[-0.23, -0.2, 0.004], [0.23, 0.2, 0.26]])
TOUCH_DOWN = 0.012  # metres: an episode that ends at a touch ends at this height as well


class Tabletop(MujocoEnvironment):
    """One task in one scene; see `etcvla.sims.environment.Environment` for the methods.

    Args:
      task: a key of `TASKS`.
      scene_name: a tier and a rotation, such as "C2"; see `words.parse_scene`.
      image_size: height and width of the camera, pixels.

    Raises UserError for an unknown name, and with the command that fixes it where MuJoCo cannot
    render.

    Attributes:
      layout: the objects, their novelty and their positions, since the last reset.
      done: whether the episode is over: success, or nothing more can change.
    """

    cameras = CAMERAS
    axes = AXES
    rate = RATE

    def __init__(self, task: str, scene_name: str, image_size: int = 96):
        self._template = lookup(TASKS, task, "task of the tabletop")
        parse_scene(scene_name)
        self.scene = scene_name
        self._model = scene.make_model()
        self._data = mujoco.MjData(self._model)
        self._hand = HOME.copy()
        self._suction = 0.0
        self._num_steps = 0
        self.done = False
        self._set_layout(make_layout(scene_name, 0), target=0)
        self._set_oracle(self._model, {"front": scene.CAMERA}, image_size, gripper_body="hand")
        self._table = np.array([self._model.geom("table").id])
        room = np.array([self._model.geom("room").id])
        geoms = SceneGeoms(self._table, room, self._oracle.visible_geoms())
        self._appearance = AppearanceEditor(self._model, self._renderer, geoms)

    def reset(self, seed: int, hand: np.ndarray | None = None, shift: float = 0.0) -> None:
        """Start an episode: `seed // 5` is the layout, `seed % 5` the named object."""
        self._appearance.apply(None)
        self._set_layout(make_layout(self.scene, layout_number(seed)), named_object(seed))
        self._appearance.remember()
        self._hand = self.layout.hand + (0 if hand is None else hand)
        self._suction = 0.0
        self._num_steps = 0
        self.success = False
        self.done = False
        for own, spec in zip(self._oracle.objects, self.task.objects, strict=True):
            own.spec = spec
        self._oracle.refresh()
        mujoco.mj_resetData(self._model, self._data)
        self._place_objects()
        self._forward(self._hand)
        shift_free_objects(self._model, self._data, self._oracle.objects, shift, seed)

    def _set_layout(self, layout: Layout, target: int) -> None:
        """Show the objects of a layout, and state the task for the named one."""
        self.layout = layout
        self.target = target
        specs = []
        for number, shown in enumerate(layout.objects):
            scene.set_shape(self._model, number, shown.noun, shown.color)
            top = scene.half_height(self._model, shown.noun)
            body = scene.SLOTS[number]
            specs.append(ObjectSpec(shown.name, shown.color, body, touch=(0.0, 0.0, top)))
        table = self._model.material("table")
        table.rgba[:3] = scene.TABLE_RGB[layout.table % len(scene.TABLE_RGB)]
        name = specs[target].name
        phases = [Phase(p.text.format(x=name), p.until) for p in self._template.phases]
        self.task = Task(tuple(specs), name, tuple(phases), self._wordings(target))
        self._phases = PhaseTracker(phases, settling_steps=0)

    def _wordings(self, target: int) -> tuple[str, ...]:
        """Return the instructions for an object: those held out in a layout of an evaluation."""
        texts = self._template.instructions
        if is_evaluation(self.layout.number):
            texts = self._template.held_out
            first = self.layout.number % len(texts)
            texts = texts[first:] + texts[:first]
        name = self.layout.objects[target].name
        return tuple(text.format(x=name) for text in texts)

    def instruction_for(self, target: int, rng: np.random.Generator | None = None) -> str:
        """Return what `instruction` would return if object `target` were named."""
        texts = self._wordings(target)
        return texts[0] if rng is None else str(rng.choice(texts))

    def _place_objects(self) -> None:
        layout = self.layout
        poses = self._data.qpos.reshape(NUM_OBJECTS, 7)
        poses[:, :2] = layout.positions
        poses[:, 2] = [spec.touch[2] for spec in self.task.objects]
        poses[:, 3:] = 0
        poses[:, 3] = np.cos(layout.yaws / 2)
        poses[:, 6] = np.sin(layout.yaws / 2)

    def _forward(self, tip: np.ndarray) -> None:
        """Move the tip to a point and update positions and contacts, without dynamics."""
        scene.pose_arm(self._data, tip)
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)
        mujoco.mj_collision(self._model, self._data)

    def observe(self) -> dict[str, Any]:
        """Return {"images": {camera: uint8[H, W, 3]}, "state": float32[4]}; see STATE_DOC."""
        return {"images": self._render(), "state": self.state()}

    def state(self) -> np.ndarray:
        """Return the proprioception, float32[4]; see STATE_DOC."""
        return np.append(self._hand, self._suction).astype(np.float32)

    def step(self, action: np.ndarray) -> bool:
        """Act for one control step, 1 / rate seconds, and return `success`.

        Nothing moves after the end of an episode.

        Args:
          action: float[4], clipped to [-1, 1]; see ACTION_DOC.
        """
        if self.done:
            return self.success
        action = np.clip(np.asarray(action, np.float64), -1, 1)
        start = self._hand
        end = np.clip(start + STEP * action[:3], *REACH)
        for share in np.linspace(0, 1, SUBSTEPS + 1)[1:]:
            self._hand = start + share * (end - start)
            self._forward(self._hand)
            if self._is_down():
                self.done = True
                self.success = bool(self._contacts()[self.target])
                break
        self._num_steps += 1
        return self.success

    def _is_down(self) -> bool:
        return self._hand[2] <= TOUCH_DOWN or bool(self._contacts().any())

    def _contacts(self) -> np.ndarray:
        """Return bool[N]: which objects the tip is in contact with."""
        return self._oracle.contact(self._hand)[:NUM_OBJECTS] == 1

    def touched(self) -> np.ndarray:
        """Return bool[N]: which objects the tip touches now.

        At the end of an episode of "touch", this is the object that was hit, or else the nearest.
        """
        contacts = self._contacts()
        if not self.done:
            return np.zeros(NUM_OBJECTS, bool)
        distances = np.linalg.norm(self._oracle.positions()[:NUM_OBJECTS] - self._hand, axis=1)
        if contacts.any():
            distances[~contacts] = np.inf
        return np.arange(NUM_OBJECTS) == distances.argmin()

    def expert_action(self) -> np.ndarray:
        """Return the expert's action, float32[4] in [-1, 1]."""
        if self.done:
            return np.zeros(ACTION_SIZE, np.float32)
        goal = self._oracle.objects[self.target].grasp_point()
        return np.append(expert.limit(expert.approach(self._hand, goal), STEP), np.float32(0))

    def expert_chunk(self, target: int, horizon: int) -> tuple[np.ndarray, int]:
        """Return the expert's next actions from here if object `target` were named.

        Returns float32[horizon, 4], zero after the end of the episode, and the number of steps
        before that end, at most `horizon`. There is no noise, and the state stays as it is.
        """
        actions = np.zeros((horizon, ACTION_SIZE), np.float32)
        if self.done:
            return actions, 0
        hand = self._hand
        goal = self._oracle.objects[target].grasp_point()
        for t in range(horizon):
            actions[t, :3] = expert.limit(expert.approach(hand, goal), STEP)
            hand = np.clip(hand + STEP * actions[t, :3], *REACH)
            if np.linalg.norm(goal - hand) < 1e-3:
                return actions, t + 1
        return actions, horizon

    @property
    def grasp_centre(self) -> np.ndarray:
        """The tip in the world, float64[3]."""
        return self._hand

    def facts(self, all_views: bool = True) -> dict[str, Any]:
        """Return the current frame's value of every step field; see `Environment.facts`."""
        facts = self._oracle.facts(self._hand, all_views)
        return {**facts, "gripper_open": 1 - self._suction, "phase": self.phase()}

    def phase(self) -> int:
        """Return the index of the subtask in progress. `facts` and `progress` call this."""
        target = self._oracle.objects[self.target]
        return self._phases.update(
            self._num_steps,
            grasp_centre=self._hand,
            grasp_point=target.grasp_point(),
            bounds=target.bounds(),
            contact=bool(self._contacts()[self.target]),
        )

    def progress(self) -> float:
        """Return the share of the subtasks that are complete. Call it once a step."""
        return 1.0 if self.success else self.phase() / len(self.task.phases)

    @property
    def goal_objects(self) -> list[int]:
        """The named object."""
        return [self.target]

    @property
    def shapes(self) -> tuple[str, ...]:
        """The shape word of each object."""
        return tuple(shown.noun for shown in self.layout.objects)

    @property
    def orbit(self):
        """The default pose of the front camera."""
        return scene.CAMERA

    def _scatter_area(self, bounds: np.ndarray) -> ScatterArea:
        return ScatterArea(np.array([-HALF_AREA, HALF_AREA]), ground=0.0, hand=self._hand)
