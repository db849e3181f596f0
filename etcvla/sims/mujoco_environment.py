"""What the environments of MuJoCo simulators share."""

from __future__ import annotations

import mujoco
import numpy as np

from etcvla.names import lookup
from etcvla.sims.appearance import AppearanceEditor, ScatterArea, scatter
from etcvla.sims.conditions import (
    CONDITIONS,
    CONTEXT_CONDITIONS,
    NO_CONDITION,
    Condition,
    Orbit,
    combine,
)
from etcvla.sims.oracle import Oracle
from etcvla.sims.render import Renderer
from etcvla.sims.task import ObjectSpec, Task


class MujocoEnvironment:
    """A part of `etcvla.sims.environment.Environment` for simulators with an `Oracle`.

    A subclass sets the attributes below, calls `_set_oracle`, and adds `grasp_centre`,
    `orbit` and `_scatter_area`.

    Attributes:
      task: the task.
      _data: the simulator's state.
      _appearance: edits the rendered model.
    """

    task: Task
    _data: mujoco.MjData
    _appearance: AppearanceEditor
    _condition = NO_CONDITION  # of every episode

    def _set_condition(self, name: str) -> None:
        """Set the condition of every episode; "" for none.

        Raises UserError for an unknown name, and for a condition that changes the task's objects.
        """
        if name:
            lookup(dict.fromkeys(CONTEXT_CONDITIONS), name, "condition of this simulator")
            self._condition = CONDITIONS[name]

    def _set_oracle(
        self,
        model: mujoco.MjModel,
        cameras: dict[str, str | Orbit],
        image_size: int,
        gripper_body: str,
    ) -> None:
        """Create the renderer and the oracle.

        Args:
          model: the rendered model.
          cameras: name -> camera of the model, or pose.
          image_size: pixels.
          gripper_body: the body whose contacts count as touch.
        """
        self._renderer = Renderer(model, self._data, image_size)
        self._cameras = cameras
        self._default_front = cameras["front"]
        self._oracle = Oracle(
            model, self._data, self.task.objects, self._renderer, cameras.values(), gripper_body
        )
        self.target = [spec.name for spec in self.task.objects].index(self.task.target)
        self.success = False

    @property
    def done(self) -> bool:
        """Whether the episode is over."""
        return self.success

    @property
    def grasp_centre(self) -> np.ndarray:
        """The gripper's grasp centre in the world, float64[3]."""
        raise NotImplementedError

    def _scatter_area(self, bounds: np.ndarray) -> ScatterArea:
        """Return where objects are added, given the bounds of all others, float[N, 2, 3]."""
        raise NotImplementedError

    @property
    def orbit(self) -> Orbit:
        """The default pose of the front camera."""
        raise NotImplementedError

    @property
    def objects(self) -> list[ObjectSpec]:
        """The named objects, as the scene shows them."""
        return [scene_object.spec for scene_object in self._oracle.objects]

    def instruction(self, rng: np.random.Generator | None = None) -> str:
        """Return the task's canonical instruction, or a random paraphrase where `rng` is given."""
        instructions = self.task.instructions
        return instructions[0] if rng is None else str(rng.choice(instructions))

    def touched(self) -> np.ndarray:
        """Return bool[N]: which objects the gripper touches now."""
        return self._oracle.contact(self.grasp_centre) == 1

    def set_appearance(self, condition: Condition | None, seed: int) -> None:
        """Change the scene's appearance after a reset, on top of the environment's condition.

        None restores the default appearance.
        """
        self._show(combine(self._condition, condition or NO_CONDITION), seed)

    def _show(self, condition: Condition, seed: int) -> None:
        """Show the scene in a condition."""
        self._cameras["front"] = self._default_front
        if condition.camera:
            self._cameras["front"] = self.orbit.moved(condition.camera)
        extras = self._appearance.apply(None if condition == NO_CONDITION else condition)
        if extras:
            bounds = self._oracle.bounds()
            scatter(extras, self._scatter_area(bounds), bounds, seed)

    def rename_objects(self, text: str) -> str:
        """Replace the task's object names in a text by those that the scene uses."""
        return text

    def _render(self) -> dict[str, np.ndarray]:
        """Render all cameras: {camera: uint8[H, W, 3]}."""
        images = {}
        for name, camera in self._cameras.items():
            images[name] = self._renderer.rgb(camera)
        return images

    def close(self) -> None:
        """Free the renderer."""
        self._renderer.close()
