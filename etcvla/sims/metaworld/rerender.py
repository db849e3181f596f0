"""Meta-World demonstrations, rendered again under a condition (see `etcvla.sims.conditions`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from etcvla.etc.annotation import Annotation
from etcvla.sims.metaworld.environment import MetaWorld, State
from etcvla.sims.rollout import Episode, annotate, drive, encode_jpeg, start


def record_expert(
    env: MetaWorld,
    seed: int,
    noise: tuple[float, float] = (0.1, 0.3),
    max_steps: int = 200,
    steps_after: int = 5,
) -> list[State] | None:
    """The states of the demonstration that `rollout_expert` makes of the same arguments; no image is drawn."""
    rng, scale, _ = start(env, seed, noise)
    states = [env.snapshot(env.phase()) for _ in drive(env, rng, scale, max_steps, steps_after)]
    return states if env.success else None


def rerender(env: MetaWorld, states: Sequence[State], seed: int, stride: int) -> Episode:
    """Every `stride`-th recorded state and the last two, as `env`'s condition shows them. There are no actions.

    Raises `metaworld.NoRoomError` if what the condition adds finds no room.
    """
    env.place_added(states, np.random.default_rng(seed))
    kept = [state for t, state in enumerate(states) if t % stride == 0 or t >= len(states) - 2]
    images, facts = {name: [] for name in env.cameras}, []
    for state in kept:
        env.show(state)
        for name, image in env.observe()["images"].items():
            images[name].append(encode_jpeg(image))
        facts.append(env.shown_facts(state))
    hands = np.array([state.hand for state in kept], np.float32)
    # The canonical instruction names no colours, which a condition may have changed.
    annotation = dataclasses.replace(
        annotate(env, env.instruction(), facts), rate=env.rate / stride
    )
    return Episode(images, hands, None, annotation, seed)


def initial_frames(env: MetaWorld, seeds: Iterable[int]) -> Annotation:
    """The first frames of other episodes, as an annotation of as many steps."""
    facts = []
    for seed in seeds:
        env.reset(seed)
        env.place_added([env.snapshot(0)], np.random.default_rng(seed))
        facts.append(env.facts())
    return annotate(env, env.instruction(), facts)
