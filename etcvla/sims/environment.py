"""The interface of a simulator's environment.

Evaluation, perturbations, and the recording of demonstrations use an environment only through
`Environment`. `etcvla.sims.make` creates one by name. CONTRIBUTING.md ("Add a simulator") shows a
complete example.

Axes: H W pixels, C cameras, N objects, S state width, A action width. Image points are (y, x) in
[0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from etcvla.sims.conditions import Condition
    from etcvla.sims.task import ObjectSpec, Task


@runtime_checkable
class Environment(Protocol):
    """One task in one scene. Call `reset` before anything else.

    Evaluation uses `reset`, `observe`, `step`, `success`, `done`, `instruction`, `rename_objects`,
    `touched`, `progress`, `objects`, `target`, `goal_objects` and `close`; perturbations also use
    `set_appearance`. Recording demonstrations uses the other members.

    Attributes:
      task: the task's subtasks and instructions.
      cameras: names of the cameras of `observe`, in the order of the C axis.
      rate: control steps per second.
      axes: where x, y and z of the robot's base frame point, such as ("front", "left", "up").
      target: index of the object that the instruction is about.
      success: whether the goal was reached at any step since the reset.
    """

    task: Task
    cameras: tuple[str, ...]
    rate: float
    axes: tuple[str, str, str]
    target: int
    success: bool

    @property
    def done(self) -> bool:
        """Whether the episode is over: success, or the goal can no longer be reached."""

    def reset(self, seed: int, hand: np.ndarray | None = None, shift: float = 0.0) -> None:
        """Start an episode in the layout of `seed`.

        The same seed always gives the same state and images.

        Args:
          seed: from `etcvla.sims.seeds`. A simulator with fixed initial states uses state
            `seed - EVAL_SEED_BASE` for evaluation seeds.
          hand: float[3], metres by which the hand starts away from its usual position.
          shift: metres by which objects with a free joint are moved, where there is room.
        """

    def observe(self) -> dict[str, Any]:
        """Render all cameras: {"images": {camera: uint8[H, W, 3]}, "state": float32[S]}."""

    def state(self) -> np.ndarray:
        """Return the robot's proprioception, float32[S], without rendering."""

    def step(self, action: np.ndarray) -> bool:
        """Act for one control step and return `success`.

        Args:
          action: float[A], clipped to [-1, 1].
        """

    def expert_action(self) -> np.ndarray:
        """Return the scripted expert's action, float32[A] in [-1, 1], for the current state."""

    def instruction(self, rng: np.random.Generator | None = None) -> str:
        """Return the task's canonical instruction, or a random paraphrase where `rng` is given."""

    def facts(self, all_views: bool = True) -> dict[str, np.ndarray]:
        """Return this frame's value of every field in `etcvla.etc.annotation.STEP_FIELDS`.

        Call it at every step, because it updates the phase (see `phase`).

        Args:
          all_views: search objects in every camera. If False, only the first camera is searched
            and the boxes in the others are NaN, which saves one rendering per camera.
        """

    def phase(self) -> int:
        """Return the index of the subtask in progress, -1 if unknown. Call it once a step."""

    def progress(self) -> float:
        """Return the share of completed subtasks, in [0, 1]. Call it once a step."""

    def touched(self) -> np.ndarray:
        """Return bool[N]: which objects the gripper touches now."""

    def set_appearance(self, condition: Condition | None, seed: int) -> None:
        """Change the scene's appearance after a reset; None restores the default appearance.

        Args:
          condition: what changes. Its `swapped` object is ignored.
          seed: seed of the positions of added objects.
        """

    @property
    def objects(self) -> Sequence[ObjectSpec]:
        """The N named objects, as the scene shows them."""

    @property
    def shapes(self) -> tuple[str, ...]:
        """The shape word of each object, "" where it is unknown."""

    @property
    def goal_objects(self) -> Sequence[int]:
        """Indices of the objects that the goal is about."""

    def rename_objects(self, text: str) -> str:
        """Replace the task's object names in a text by those that the scene uses."""

    def close(self) -> None:
        """Free the renderer."""


@runtime_checkable
class PairedEnvironment(Environment, Protocol):
    """An environment in which consecutive seeds share a layout and name its objects in turn.

    `Simulator.trials_per_layout` is the number of these objects, which come first in `objects`.

    Attributes:
      novelty: which words of the target's name no demonstration has: "both", "noun", "color",
        "none", or what else the simulator distinguishes.
    """

    novelty: str

    def instruction_for(self, index: int) -> str:
        """Return the task's canonical instruction for object `index` instead of the target."""
