"""Recording of demonstrations: a scripted expert acts, with noise on the executed actions.

Axes: T steps, C cameras, S state width, A action width.
"""

from __future__ import annotations

import dataclasses
import io
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from etcvla.etc.annotation import STEP_FIELDS, Annotation

if TYPE_CHECKING:
    from etcvla.sims.environment import Environment

# Objects are searched in all cameras at every fourth step only, because that costs one rendering
# per camera.
_ALL_VIEWS_INTERVAL = 4


@dataclasses.dataclass
class Episode:
    """A demonstration of T steps."""

    images: dict[str, list[bytes]]  # camera -> T JPEG files
    state: np.ndarray  # float32[T, S]
    action: np.ndarray | None  # float32[T, A]; None for rerendered states
    annotation: Annotation
    seed: int


class FrameRecorder:
    """Collects images, states and facts of an episode, frame by frame."""

    def __init__(self, env: Environment):
        self._env = env
        self._images = {name: [] for name in env.cameras}
        self._states = []
        self._facts = []

    def add(self, observation: dict, facts: dict[str, np.ndarray]) -> None:
        """Add a frame: what `observe` and `facts` of the environment returned."""
        for name, image in observation["images"].items():
            self._images[name].append(encode_jpeg(image))
        self._states.append(observation["state"])
        self._facts.append(facts)

    def episode(self, instruction: str, action: np.ndarray | None, seed: int) -> Episode:
        """Return the frames as an episode."""
        annotation = annotate(self._env, instruction, self._facts)
        return Episode(self._images, np.array(self._states), action, annotation, seed)


def encode_jpeg(image: np.ndarray, quality: int = 92) -> bytes:
    """Return an image uint8[H, W, 3] as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", quality=quality)
    return buffer.getvalue()


class NoisyExpert:
    """Resets an environment and runs its expert with action noise.

    The noise moves the hand off the expert's path, while the recorded action is the expert's own
    action in the state that the noise led to (as in DART, arXiv 1703.09327). The data show how to
    recover and the labels have no noise. The noise applies to the first three action dimensions,
    the hand's position.

    Args:
      env: the environment, which is reset to the layout `seed`.
      seed: seed of the layout, and of the noise and the instruction's wording.
      noise: range from which the episode's standard deviation of the noise is drawn.
      max_steps: control steps after which the episode has failed.
      steps_after: steps to record after the first success.
    """

    def __init__(
        self,
        env: Environment,
        seed: int,
        noise: tuple[float, float] = (0.1, 0.3),
        max_steps: int = 200,
        steps_after: int = 5,
    ):
        self._env = env
        self._max_steps = max_steps
        self._steps_after = steps_after
        task_hash = zlib.crc32(env.task.instructions[0].encode())
        self._rng = np.random.default_rng([seed, task_hash])
        self._scale = self._rng.uniform(*noise)
        env.reset(seed)
        self.instruction = env.instruction(self._rng)

    def actions(self) -> Iterator[np.ndarray]:
        """Yield the expert's action of every step; execute it with noise before the next one."""
        steps_left = self._steps_after
        for _ in range(self._max_steps):
            action = self._env.expert_action()
            yield action
            if self._env.success:
                steps_left -= 1
            if steps_left < 0:
                return
            noise = self._rng.standard_normal(len(action))
            noise[3:] = 0
            self._env.step(action + self._scale * noise)


def rollout_expert(
    env: Environment,
    seed: int,
    noise: tuple[float, float] = (0.1, 0.3),
    max_steps: int = 200,
    steps_after: int = 5,
) -> Episode | None:
    """Record a demonstration; see `NoisyExpert` for the arguments.

    Returns None if the expert does not succeed.
    """
    expert = NoisyExpert(env, seed, noise, max_steps, steps_after)
    recorder = FrameRecorder(env)
    actions = []
    for t, action in enumerate(expert.actions()):
        all_views = t % _ALL_VIEWS_INTERVAL == 0
        recorder.add(env.observe(), env.facts(all_views=all_views))
        actions.append(action)
    if not env.success:
        return None
    return recorder.episode(expert.instruction, np.array(actions), seed)


def annotate(env: Environment, instruction: str, facts: list[dict]) -> Annotation:
    """Return the facts of the T steps of a successful episode as an annotation."""
    step_fields = {}
    for name in STEP_FIELDS:
        step_fields[name] = np.array([frame[name] for frame in facts])
    return Annotation(
        instruction=env.rename_objects(instruction),
        cameras=env.cameras,
        objects=tuple(spec.name for spec in env.objects),
        colors=tuple(spec.color for spec in env.objects),
        phases=tuple(env.rename_objects(phase.text) for phase in env.task.phases),
        target=env.target,
        success=True,
        rate=env.rate,
        shapes=env.shapes,
        axes=env.axes,
        **step_fields,
    )
