"""Demonstrations: the expert drives, noise pushes, the oracle writes down.

Axes: T steps, C cameras, S state width, A action width.
"""

from __future__ import annotations

import dataclasses
import io
import zlib
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from etcvla.etc.annotation import STEP_FIELDS, Annotation

if TYPE_CHECKING:  # one simulator does without the other's packages
    from etcvla.sims.libero import Libero
    from etcvla.sims.metaworld import MetaWorld

CAMERAS = ("front", "wrist")


@dataclasses.dataclass
class Episode:
    """One demonstration of T steps."""

    images: dict[str, list[bytes]]  # camera -> T JPEG files
    state: np.ndarray  # float32[T, S]
    action: np.ndarray  # float32[T, A]
    annotation: Annotation
    seed: int


def encode_jpeg(image: np.ndarray, quality: int = 92) -> bytes:
    """uint8[H, W, 3] as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", quality=quality)
    return buffer.getvalue()


def rollout_expert(env: MetaWorld | Libero, seed: int, noise: tuple[float, float] = (0.1, 0.3), max_steps: int = 200,
                   steps_after: int = 5) -> Episode | None:
    """One successful demonstration in the layout `seed`, or None if the expert fails within `max_steps`.

    Gaussian noise, its standard deviation drawn per episode from the range `noise`, moves the hand off the expert's
    path, and what is recorded is the expert's own action in the state it was pushed to (as in DART): the data show how
    to come back, and its labels stay clean. `steps_after` steps past the first success are kept.
    """
    rng = np.random.default_rng([seed, zlib.crc32(env.task.instructions[0].encode())])
    scale = rng.uniform(*noise)
    env.reset(seed)
    instruction = env.instruction(rng)
    images, states, actions, facts = {name: [] for name in CAMERAS}, [], [], []
    left = steps_after
    for _ in range(max_steps):
        observation = env.observe()
        for name, image in observation["images"].items():
            images[name].append(encode_jpeg(image))
        states.append(observation["state"])
        actions.append(env.expert_action())
        facts.append(env.facts())
        left -= env.success
        if left < 0:
            break
        push = rng.standard_normal(len(actions[-1])) * (np.arange(len(actions[-1])) < 3)  # the position alone
        env.step(actions[-1] + scale * push)
    if not env.success:
        return None
    return Episode(images, np.array(states), np.array(actions), annotate(env, instruction, facts), seed)


def annotate(env: MetaWorld | Libero, instruction: str, facts: list[dict]) -> Annotation:
    """The facts of T steps of a successful episode as an annotation."""
    objects = env.task.objects
    return Annotation(
        instruction=instruction, cameras=CAMERAS, objects=tuple(spec.name for spec in objects),
        colors=tuple(spec.color for spec in objects), phases=tuple(phase.text for phase in env.task.phases),
        target=env.target, success=True, rate=env.rate,
        **{name: np.array([fact[name] for fact in facts]) for name in STEP_FIELDS})
