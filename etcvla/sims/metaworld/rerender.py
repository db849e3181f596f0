"""Meta-World demonstrations rendered again under a condition (see `etcvla.sims.conditions`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from etcvla.sims.metaworld.environment import MetaWorld, State
from etcvla.sims.rollout import Episode, FrameRecorder, start_expert


def record_expert(
    env: MetaWorld, seed: int, noise: tuple[float, float] = (0.1, 0.3)
) -> list[State] | None:
    """Return the states of the demonstration that `rollout_expert` makes with these arguments.

    Renders no image. Returns None if the expert does not succeed.
    """
    _, actions = start_expert(env, seed, noise)
    states = [env.snapshot() for _ in actions]
    return states if env.success else None


def rerender(env: MetaWorld, states: Sequence[State], seed: int, stride: int) -> Episode:
    """Render every `stride`-th recorded state and the last two under the condition of `env`.

    There are no actions.

    Raises NoRoomError if there is no room for an object that the condition adds.
    """
    env.place_added(states, seed)
    last_two = len(states) - 2
    recorder = FrameRecorder(env)
    for t, state in enumerate(states):
        if t % stride == 0 or t >= last_two:
            env.restore(state)
            recorder.add(env.observe(), env.facts_of(state))
    # The canonical instruction names no colors, which the condition may have changed.
    episode = recorder.episode(env.instruction(), action=None, seed=seed)
    annotation = dataclasses.replace(episode.annotation, rate=env.rate / stride)
    return dataclasses.replace(episode, annotation=annotation)
