"""Success against delay: what late chunks cost, and what real-time chunking (arXiv 2506.07339) wins back.

Time is simulated: a chunk is there `delay` control steps after its look, however long this machine takes. Meanwhile
the robot executes the chunk before, as `client.RealTimeChunks` has it. The trials of a task run abreast, so that all looks of a
step are one batch. Only for the first chunk of an episode the robot stands still.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from etcvla import sims
from etcvla.policy import Policy
from etcvla.serve.client import RealTimeChunks
from etcvla.sims.seeds import eval_seed
from etcvla.stats import wilson


@dataclasses.dataclass(frozen=True)
class DelaySpec:
    """What is run. Raises ValueError for numbers that mean nothing."""

    tasks: tuple[str, ...]
    trials: int  # a task
    delays: tuple[int, ...]  # control steps
    execute: int = 5  # control steps between looks, at least
    scene: str = "source"
    max_steps: int = 250
    image_size: int = 96
    simulator: str = "metaworld"

    def __post_init__(self):
        if min(self.delays, default=-1) < 0 or self.execute < 1 or self.trials < 1:
            raise ValueError(f"delays must be 0 or more, execute and trials 1 or more, got {self}")


class _Episode:
    """One trial: an environment, its chunks, and the one that is on its way."""

    def __init__(self, env: Any, trial: int, instruction: str, chunks: RealTimeChunks, delay: int):
        self.env, self.instruction, self.seed, self.delay = (
            env,
            instruction,
            eval_seed(trial),
            delay,
        )
        env.reset(self.seed)
        self.chunks, self.steps, self._due = chunks, 0, (0, None)

    def look(self) -> dict[str, Any] | None:
        """The observation, where it is time for one."""
        self._take()
        extra = self.chunks.look()
        if extra is None:
            return None
        return {**self.env.observe(), "instruction": self.instruction, **extra.get("rtc", {})}

    def answer(self, chunk: np.ndarray) -> None:
        """The chunk for the last look; nobody knows of it before its time."""
        self._due = self.steps + self.delay, chunk

    def step(self) -> None:
        """One control step."""
        self._take()
        self.env.step(self.chunks.next())
        self.steps += 1

    def _take(self) -> None:
        """The chunk, if it is there by now."""
        due, chunk = self._due
        if chunk is not None and (self.steps >= due or self.chunks.empty):
            self.chunks.arrive(chunk)
            self._due = 0, None


def evaluate(policy: Policy, spec: DelaySpec) -> list[dict[str, Any]]:
    """A row for each delay, guided and not: successes by task, trials, rate and its 95 % interval; prints them.

    Raises ValueError if a delay is so long that chunks run out.
    """
    longest = max(spec.delays) + spec.execute
    if longest > policy.config.horizon:
        raise ValueError(
            f"a delay of {max(spec.delays)} and {spec.execute} steps between looks are {longest}, more "
            f"than the {policy.config.horizon} steps of a chunk"
        )
    rows = [
        {"delay": delay, "guided": guided, "tasks": dict.fromkeys(spec.tasks, 0)}
        for delay in spec.delays
        for guided in (False, True)
    ]
    for task in spec.tasks:
        envs = _environments(task, spec)
        for row in rows:
            row["tasks"][task] = _run(policy, spec, task, envs, row["delay"], row["guided"])
        for env in envs:
            env.close()
        print(
            f"{task}: "
            + ", ".join(f"{_name(row)} {row['tasks'][task]}/{spec.trials}" for row in rows),
            flush=True,
        )
    for row in rows:
        won, total = sum(row["tasks"].values()), spec.trials * len(spec.tasks)
        low, high = wilson(won, total)
        row |= {"successes": won, "trials": total, "rate": won / total, "low": low, "high": high}
        print(
            f"{_name(row):24}{won}/{total} = {won / total:.0%} [{low:.0%}, {high:.0%}]", flush=True
        )
    return rows


def _name(row: dict) -> str:
    return f"delay {row['delay']}, {'guided' if row['guided'] else 'jumping'}"


def _environments(task: str, spec: DelaySpec) -> list[Any]:
    return [
        sims.make(spec.simulator, task, spec.scene, spec.image_size) for _ in range(spec.trials)
    ]


def _run(
    policy: Policy, spec: DelaySpec, task: str, envs: Sequence[Any], delay: int, guided: bool
) -> int:
    """Successes of the trials of one task."""
    instruction = sims.get(spec.simulator).instruction(task)
    episodes = [
        _Episode(
            env, trial, instruction, RealTimeChunks(spec.execute, delay=delay, guided=guided), delay
        )
        for trial, env in enumerate(envs)
    ]
    for _ in range(spec.max_steps):
        alive = [episode for episode in episodes if not episode.env.success]
        looks = [(episode, look) for episode in alive if (look := episode.look()) is not None]
        if looks:
            padded = (looks * spec.trials)[: spec.trials]  # one shape is compiled
            chunks = policy.act(
                [look for _, look in padded], [(e.seed, e.steps) for e, _ in padded]
            )
            for (episode, _), chunk in zip(looks, chunks, strict=False):
                episode.answer(chunk)
        for episode in alive:
            episode.step()
    return sum(episode.env.success for episode in episodes)
