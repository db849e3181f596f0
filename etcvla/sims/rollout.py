"""Demonstrations: the expert drives, noise pushes, the oracle writes down.

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

if TYPE_CHECKING:  # one simulator does without the other's packages
    from etcvla.sims.environment import Environment

ALL_VIEWS_EVERY = 4  # steps between two at which objects are looked for in every camera: that costs a drawing each


@dataclasses.dataclass
class Episode:
    """One demonstration of T steps."""

    images: dict[str, list[bytes]]  # camera -> T JPEG files
    state: np.ndarray  # float32[T, S]
    action: np.ndarray | None  # float32[T, A]; None where the images are of what nobody acted in
    annotation: Annotation
    seed: int


def encode_jpeg(image: np.ndarray, quality: int = 92) -> bytes:
    """uint8[H, W, 3] as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", quality=quality)
    return buffer.getvalue()


def rollout_expert(
    env: Environment,
    seed: int,
    noise: tuple[float, float] = (0.1, 0.3),
    max_steps: int = 200,
    steps_after: int = 5,
) -> Episode | None:
    """One successful demonstration in the layout `seed`, or None if the expert fails within `max_steps`.

    Gaussian noise, its standard deviation drawn per episode from the range `noise`, moves the hand off the expert's
    path, and what is recorded is the expert's own action in the state it was pushed to (as in DART): the data show how
    to come back, and its labels stay clean. `steps_after` steps past the first success are kept.
    """
    rng, scale, instruction = start(env, seed, noise)
    images, states, actions, facts = {name: [] for name in env.cameras}, [], [], []
    for t, action in enumerate(drive(env, rng, scale, max_steps, steps_after)):
        observation = env.observe()
        for name, image in observation["images"].items():
            images[name].append(encode_jpeg(image))
        states.append(observation["state"])
        actions.append(action)
        facts.append(env.facts(all_views=t % ALL_VIEWS_EVERY == 0))
    if not env.success:
        return None
    return Episode(
        images, np.array(states), np.array(actions), annotate(env, instruction, facts), seed
    )


def start(
    env: Environment, seed: int, noise: tuple[float, float]
) -> tuple[np.random.Generator, float, str]:
    """Resets, and returns the episode's random numbers, its noise and its instruction."""
    rng = np.random.default_rng([seed, zlib.crc32(env.task.instructions[0].encode())])
    scale = rng.uniform(*noise)
    env.reset(seed)
    return rng, scale, env.instruction(rng)


def drive(
    env: Environment,
    rng: np.random.Generator,
    scale: float,
    max_steps: int,
    steps_after: int,
) -> Iterator[np.ndarray]:
    """The expert's action at every step; what is carried out, after the caller has looked, is that and noise."""
    left = steps_after
    for _ in range(max_steps):
        action = env.expert_action()
        yield action
        left -= env.success
        if left < 0:
            return
        push = rng.standard_normal(len(action)) * (np.arange(len(action)) < 3)  # the position alone
        env.step(action + scale * push)


def annotate(env: Environment, instruction: str, facts: list[dict]) -> Annotation:
    """The facts of T steps of a successful episode as an annotation."""
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
        **{name: np.array([fact[name] for fact in facts]) for name in STEP_FIELDS},
    )
