"""What the environments of MuJoCo simulators share."""

from __future__ import annotations

import mujoco
import numpy as np

from etcvla.sims.appearance import AppearanceEditor, ScatterArea, scatter
from etcvla.sims.conditions import Condition, Orbit
from etcvla.sims.oracle import Oracle
from etcvla.sims.render import Renderer
from etcvla.sims.task import ObjectSpec, Task


class MujocoEnvironment:
    """A part of `etcvla.sims.environment.Environment` for simulators with an `Oracle`.

    A subclass sets the attributes below, and adds `grasp_centre` and `_scatter_area`.

    Attributes:
      task: the task.
      _data: the simulator's state.
      _renderer: renders the cameras.
      _oracle: reads facts about the objects.
      _appearance: edits the rendered model.
      _cameras: name -> camera of the model, or pose.
      _default_front: value of `_cameras["front"]` without a condition.
    """

    task: Task
    _data: mujoco.MjData
    _renderer: Renderer
    _oracle: Oracle
    _appearance: AppearanceEditor
    _cameras: dict[str, str | Orbit]
    _default_front: str | Orbit

    @property
    def grasp_centre(self) -> np.ndarray:
        """The gripper's grasp centre in the world, float64[3]."""
        raise NotImplementedError

    def _scatter_area(self, bounds: np.ndarray) -> ScatterArea:
        """Return where objects are added, given the bounds of all others, float[N, 2, 3]."""
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
        return self._oracle.contact(self._data, self.grasp_centre) == 1

    def set_appearance(self, condition: Condition | None, seed: int) -> None:
        """Change the scene's appearance after a reset; None restores the default appearance."""
        self._cameras["front"] = self._default_front
        if condition and condition.camera:
            self._cameras["front"] = condition.camera
        extras = self._appearance.apply(condition)
        if extras:
            bounds = self._oracle.bounds(self._data)
            scatter(extras, self._scatter_area(bounds), bounds, seed)

    def rename_objects(self, text: str) -> str:
        """Replace the task's object names in a text by those that the scene uses."""
        return text

    def _render(self) -> dict[str, np.ndarray]:
        """Render all cameras: {camera: uint8[H, W, 3]}."""
        images = {}
        for name, camera in self._cameras.items():
            images[name] = self._renderer.rgb(self._data, camera)
        return images

    def close(self) -> None:
        """Free the renderer."""
        self._renderer.close()
