"""Recording of demonstrations: a scripted expert acts, with noise on the executed actions.

Axes: T steps, C cameras, S state width, A action width.
"""

from __future__ import annotations

import dataclasses
import io
import zlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from etcvla.etc.annotation import STEP_FIELDS, Annotation

if TYPE_CHECKING:
    from etcvla.sims.environment import Environment

# Objects are searched in all cameras at every fourth step only, because that costs one rendering
# per camera.
_ALL_VIEWS_INTERVAL = 4


@dataclasses.dataclass(frozen=True)
class Relabels:
    """What the expert would do if another object of the same scene were named: N instructions."""

    instruction: tuple[str, ...]  # N
    actions: np.ndarray  # float32[T, N, P, A], the next P actions from each step
    valid: np.ndarray  # int32[T, N], how many of them are before the end of the episode


@dataclasses.dataclass
class Episode:
    """A demonstration of T steps."""

    images: dict[str, list[bytes]]  # camera -> T JPEG files
    state: np.ndarray  # float32[T, S]
    action: np.ndarray | None  # float32[T, A]; None for rerendered states
    annotation: Annotation
    seed: int
    relabels: Relabels | None = None  # None: the dataset has none


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


def start_expert(
    env: Environment,
    seed: int,
    noise: tuple[float, float] = (0.1, 0.3),
    max_steps: int = 200,
    steps_after_success: int = 5,
) -> tuple[str, Iterator[np.ndarray]]:
    """Reset an environment and run its expert with action noise.

    The noise moves the hand off the expert's path, while the recorded action is the expert's own
    action in the state that the noise led to (as in DART, arXiv 1703.09327). The data show how to
    recover and the labels have no noise. The noise applies to the first three action dimensions,
    the hand's position.

    Args:
      env: the environment, which is reset to the layout `seed`.
      seed: seed of the layout, and of the noise and the instruction's wording.
      noise: range from which the episode's standard deviation of the noise is drawn.
      max_steps: control steps after which the episode has failed.
      steps_after_success: control steps from then to the end of the recording; 0 where nothing
        moves any more.

    Returns the episode's instruction, and an iterator of the expert's actions. It executes an
    action when the next one is requested.
    """
    env.reset(seed)  # some environments state their task for the layout
    task_hash = zlib.crc32(env.task.instructions[0].encode())
    rng = np.random.default_rng([seed, task_hash])
    scale = rng.uniform(*noise)
    actions = _noisy_actions(env, rng, scale, max_steps, steps_after_success)
    return env.instruction(rng), actions


def _noisy_actions(
    env: Environment, rng: np.random.Generator, scale: float, max_steps: int, steps_left: int
) -> Iterator[np.ndarray]:
    for _ in range(max_steps):
        action = env.expert_action()
        yield action
        if env.done:
            steps_left -= 1
        if steps_left < 0:
            return
        offset = rng.standard_normal(len(action))
        offset[3:] = 0
        env.step(action + scale * offset)


def rollout_expert(
    env: Environment,
    seed: int,
    noise: tuple[float, float] = (0.1, 0.3),
    max_steps: int = 200,
    steps_after_success: int = 5,
) -> Episode | None:
    """Record a demonstration; see `start_expert` for the arguments.

    Returns None if the expert does not succeed.
    """
    instruction, expert_actions = start_expert(env, seed, noise, max_steps, steps_after_success)
    recorder = FrameRecorder(env)
    actions = []
    for t, action in enumerate(expert_actions):
        recorder.add(env.observe(), env.facts(all_views=t % _ALL_VIEWS_INTERVAL == 0))
        actions.append(action)
    if not env.success:
        return None
    return recorder.episode(instruction, np.array(actions), seed)


def initial_frames(env: Environment, seeds: Iterable[int]) -> Annotation:
    """Return the first frames of the layouts `seeds` as an annotation with one step per layout."""
    facts = []
    for seed in seeds:
        env.reset(seed)
        facts.append(env.facts())
    return annotate(env, env.instruction(), facts)


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
