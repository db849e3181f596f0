"""The tabletop's environment: an arm with a suction cup, five objects, and an instruction.

Axes: H W pixels, N objects, P steps of a chunk. Positions are metres in the robot's base frame,
which is the world frame: x right, y away from the camera, z up, and z = 0 on the table.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from etcvla.names import lookup
from etcvla.sims import headless

headless.require_egl()

from etcvla.sims.appearance import (  # noqa: E402
    AppearanceEditor,
    ScatterArea,
    SceneGeoms,
    shift_free_objects,
)
from etcvla.sims.conditions import (  # noqa: E402
    CameraMove,
    Condition,
    Orbit,
)
from etcvla.sims.mujoco_environment import MujocoEnvironment  # noqa: E402
from etcvla.sims.oracle import RenderedObject  # noqa: E402
from etcvla.sims.phases import PhaseTracker  # noqa: E402
from etcvla.sims.tabletop import expert, tasks  # noqa: E402
from etcvla.sims.tabletop.layouts import (  # noqa: E402
    NUM_OBJECTS,
    Layout,
    is_evaluation,
    layout_number,
    make_layout,
    named_object,
)
from etcvla.sims.tabletop.scene import CAMERA, SLOTS, TableScene  # noqa: E402
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
# Corners (low, high) of the space that the tip can reach.
REACH = np.array([[-0.25, -0.2, 0.004], [0.25, 0.2, 0.26]])
TOUCH_DOWN = 0.012  # metres: an episode of "touch" ends at this height, or at a contact before
_SCATTER_AREA = np.array([[-0.18, -0.16], [0.18, 0.22]])  # where objects may be added
# What `step` and `_name_object` change.
_EPISODE_FIELDS = (
    "_hand",
    "_suction",
    "_num_steps",
    "_is_over",
    "_phases",
    "success",
    "target",
    "reference",
    "task",
)
_SUBSTEPS = 5
_SIMULATION_STEPS = 2  # of 0.01 seconds in a substep


class Tabletop(MujocoEnvironment):
    """One task in one scene; see `etcvla.sims.environment.Environment` for the methods.

    Args:
      task: a key of `tasks.TASKS`.
      scene: a tier and a rotation, such as "C2"; see `words.parse_scene`.
      image_size: height and width of the camera, pixels.
      condition: a key of `conditions.CONDITIONS` to apply in every episode; "" for none.

    Raises UserError for an unknown name, for a condition that changes what objects are called, and
    with the command that fixes it where MuJoCo cannot render.

    Attributes:
      layout: the objects, their novelty and their positions, since the last reset.
      reference: index of the second object that the instructions of "pick-on" and "pick-beside"
        name.
    """

    cameras = CAMERAS
    axes = AXES
    rate = RATE

    def __init__(self, task: str, scene: str = "A0", image_size: int = 96, condition: str = ""):
        self._set_condition(condition)
        self._rules = lookup(tasks.TASKS, task, "task of the tabletop")
        parse_scene(scene)
        self.scene = scene
        self._table_scene = TableScene()
        self._data = self._table_scene.data
        self._model = self._table_scene.model
        self._start(make_layout(scene, 0), 0)
        camera = CAMERA.moved(self._condition.camera or CameraMove())
        self._set_oracle(self._model, {"front": camera}, image_size, gripper_body="hand")
        table = np.array([self._table_scene.table])
        room = np.array([self._model.geom("room").id])
        self._table_scene.show_texture()  # the editor has to know the texture
        # Instructions name the objects' colors, so no perturbation may tint them.
        geoms = SceneGeoms(table, room, objects=np.array([], int))
        self._appearance = AppearanceEditor(self._model, self._renderer, geoms)

    def reset(self, seed: int, hand: np.ndarray | None = None, shift: float = 0.0) -> None:
        """Start an episode: `seed // 5` is the layout, `seed % 5` the named object."""
        self._appearance.apply(None)
        del self._oracle.objects[NUM_OBJECTS:]  # the last episode's added objects
        layout = make_layout(self.scene, layout_number(seed))
        if hand is not None:
            layout = dataclasses.replace(layout, hand=layout.hand + hand)
        self._start(layout, named_object(seed))
        self._appearance.remember()
        for own, spec in zip(self._oracle.objects, self.task.objects, strict=True):
            own.spec = spec
        shift_free_objects(self._model, self._data, self._oracle.objects, shift, layout.number)
        self._start_positions = self._table_scene.positions()
        self.set_appearance(None, seed)

    def _show(self, condition: Condition, seed: int) -> None:
        """Show the scene in a condition.

        Added objects are named like the others, and come after them in `objects`. One that has the
        name of an object of the layout is left out, because instructions would not be clear.
        """
        names = {shown.name for shown in self.layout.objects}
        added = [solid for solid in condition.added if f"{solid.color} {solid.noun}" not in names]
        condition = dataclasses.replace(condition, added=tuple(added))
        if condition.pattern:
            self._appearance.apply(None)
            self._table_scene.show_texture()
        del self._oracle.objects[NUM_OBJECTS:]
        super()._show(condition, seed)
        for extra in self._renderer.extras:
            color = extra.added.color
            spec = ObjectSpec(f"{color} {extra.added.noun}", color)
            self._oracle.objects.append(RenderedObject(spec, extra))
        self._oracle.refresh()

    def _start(self, layout: Layout, target: int) -> None:
        """Show a layout and state the task for the named object."""
        self.layout = layout
        self._hand = np.clip(layout.hand, *REACH)
        self._suction = 0.0
        self._num_steps = 0
        self.success = False
        self._is_over = False
        self._table_scene.show(layout)
        self._table_scene.reset(layout, self._hand)
        self._start_positions = self._table_scene.positions()
        self._name_object(target)

    def _name_object(self, target: int) -> None:
        """State the task for object `target` of the layout."""
        self.target = target
        self.reference = tasks.choose_reference(self._rules, self.layout, target)
        specs = []
        for shown, body in zip(self.layout.objects, SLOTS, strict=True):
            top = self._table_scene.half_height(shown.noun)
            specs.append(ObjectSpec(shown.name, shown.color, body, touch=(0.0, 0.0, top)))
        names = self._names(target)
        phases = [Phase(phase.text.format(**names), phase.until) for phase in self._rules.phases]
        self.task = Task(
            objects=tuple(specs),
            target=names["x"],
            phases=tuple(phases),
            instructions=self._wordings(target),
            opposite=self._rules.opposite,
        )
        self._phases = PhaseTracker(phases, settling_steps=0)

    def _names(self, target: int) -> dict[str, str]:
        """Return the names in the texts of the task for object `target`."""
        objects = self.layout.objects
        reference = tasks.choose_reference(self._rules, self.layout, target)
        return {"x": objects[target].name, "y": objects[reference].name}

    def _wordings(self, target: int) -> tuple[str, ...]:
        """Return the instructions for an object: the held-out ones in a layout of an evaluation."""
        texts = self._rules.instructions
        if is_evaluation(self.layout.number):
            texts = self._rules.held_out
            first = self.layout.number % len(texts)
            texts = texts[first:] + texts[:first]
        return tuple(text.format(**self._names(target)) for text in texts)

    def instruction_for(self, target: int, rng: np.random.Generator | None = None) -> str:
        """Return what `instruction` would return if object `target` were named."""
        texts = self._wordings(target)
        return texts[0] if rng is None else str(rng.choice(texts))

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
        self._suction = float(action[3] > 0)
        for share in np.linspace(0, 1, _SUBSTEPS + 1)[1:]:
            self._move_tip(start + share * (end - start))
            if self.done:
                break
        self._table_scene.pose_arm(self._hand)
        self._table_scene.update()
        self._num_steps += 1
        if self._rules.kind != "touch":
            self.success = self._is_solved()
            self._is_over = self.success
        return self.success

    @property
    def done(self) -> bool:
        """Whether the episode is over: success, or a touch of another object or of the table."""
        return self._is_over

    @property
    def novelty(self) -> str:
        """Which words of the named object's name no demonstration has; see `layouts`."""
        return self.layout.objects[self.target].novelty

    def _move_tip(self, tip: np.ndarray) -> None:
        """Move the tip by a substep. An episode of "touch" ends at the first contact."""
        self._hand = tip
        self._table_scene.move_tip(tip)
        if self._rules.kind != "touch":
            self._table_scene.set_suction(self._suction > 0)
            self._table_scene.simulate(_SIMULATION_STEPS)
            return
        self._table_scene.update()
        contacts = self._table_scene.contacts()
        self._is_over = tip[2] <= TOUCH_DOWN or bool(contacts.any())
        self.success = bool(contacts[self.target])

    def _is_solved(self) -> bool:
        """Return whether the goal of a push, or of a pick and place, is reached."""
        if self._rules.kind == "push":
            now = self._table_scene.positions()
            start = self._start_positions
            return tasks.is_pushed(self._rules, start[self.target], now[self.target])
        if self._suction:
            return False
        bounds = self._bounds()
        return tasks.is_put(self._rules, bounds[self.target], bounds[self.reference])

    def _bounds(self) -> np.ndarray:
        return self._oracle.bounds()[:NUM_OBJECTS]

    def touched(self) -> np.ndarray:
        """Return bool[N]: which objects the tip touches now.

        In "touch", no object before the end of the episode, and one then: the object that was hit,
        or else the nearest.
        """
        contacts = self._table_scene.contacts()
        touched = np.zeros(len(self._oracle.objects), bool)  # nothing touches added objects
        if self._rules.kind != "touch":
            touched[:NUM_OBJECTS] = contacts
        elif self.done:
            distances = np.linalg.norm(self._table_scene.positions() - self._hand, axis=1)
            if contacts.any():
                distances[~contacts] = np.inf
            touched[distances.argmin()] = True
        return touched

    def expert_action(self) -> np.ndarray:
        """Return the expert's action, float32[4] in [-1, 1]; no motion after the episode's end."""
        if self.done:
            return np.array([0, 0, 0, 2 * self._suction - 1], np.float32)
        view = expert.View(self._hand, self._table_scene.held, self._bounds(), self.target)
        return self._expert_action(view, self.reference)

    def _expert_action(self, view: expert.View, reference: int) -> np.ndarray:
        kind = self._rules.kind
        if kind == "touch":
            displacement, suction = expert.touch(view)
        elif kind == "push":
            displacement, suction = expert.push(view, self._rules.direction)
        else:
            place = expert.place_on if kind == "on" else expert.place_beside
            displacement, suction = expert.put(view, place(view, reference))
        return np.append(expert.limit(displacement, STEP), np.float32(1 if suction else -1))

    def expert_chunk(self, target: int, horizon: int) -> tuple[np.ndarray, int]:
        """Return the expert's next actions from here if object `target` were named.

        Returns float32[horizon, 4], zero after the end of the episode, and the number of steps
        before that end, at most `horizon`. There is no noise, and the state stays as it is.
        """
        actions = np.zeros((horizon, ACTION_SIZE), np.float32)
        if self.done:
            return actions, 0
        if self._rules.kind != "touch":
            return actions, self._simulate_expert(target, actions)
        view = expert.View(self._hand, -1, self._bounds(), target)
        for t in range(horizon):
            actions[t] = self._expert_action(view, 0)
            hand = np.clip(view.hand + STEP * actions[t, :3], *REACH)
            view = dataclasses.replace(view, hand=hand)
            if view.is_touching:
                return actions, t + 1
        return actions, horizon

    def _simulate_expert(self, target: int, actions: np.ndarray) -> int:
        """Fill `actions`, float32[P, 4], with those of an episode, and return their number."""
        snapshot = self._table_scene.snapshot()
        saved = {name: getattr(self, name) for name in _EPISODE_FIELDS}
        self._name_object(target)
        count = 0
        while count < len(actions) and not self.done:
            actions[count] = self.expert_action()
            self.step(actions[count])
            count += 1
        for name, value in saved.items():
            setattr(self, name, value)
        self._table_scene.restore(snapshot)
        return count

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
            contact=bool(self._table_scene.contacts()[self.target]),
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
        return tuple(spec.name.split()[-1] for spec in self.objects)

    @property
    def orbit(self) -> Orbit:
        """The default pose of the front camera."""
        return CAMERA

    def _scatter_area(self, bounds: np.ndarray) -> ScatterArea:
        return ScatterArea(_SCATTER_AREA, ground=0.0, hand=self._hand)
