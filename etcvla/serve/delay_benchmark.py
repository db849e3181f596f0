"""Success by delay: how late chunks hurt, and how much real-time chunking helps (arXiv 2506.07339).

Time is simulated: a chunk arrives `delay` control steps after its observation, independent of the
speed of this machine. Meanwhile the robot executes the previous chunk (`RealTimeChunks`); it waits
only for the first chunk of an episode. The trials of a task run in parallel, so that all
observations of a step form one batch.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np

from etcvla import sims
from etcvla.chunks import RealTimeChunks
from etcvla.errors import UserError
from etcvla.policy import Policy
from etcvla.sims.environment import Environment
from etcvla.sims.seeds import eval_seed
from etcvla.stats import wilson


@dataclasses.dataclass(frozen=True)
class DelaySpec:
    """What the benchmark runs."""

    tasks: tuple[str, ...]
    trials: int  # per task
    delays: tuple[int, ...]  # control steps
    execute: int = 5  # minimum control steps between two queries
    scene: str = "source"
    max_steps: int = 250
    image_size: int = 96
    simulator: str = "metaworld"

    def __post_init__(self):
        if min(self.delays, default=-1) < 0 or self.execute < 1 or self.trials < 1:
            raise UserError(f"delays must be 0 or more, execute and trials 1 or more, got {self}")


@dataclasses.dataclass
class _Episode:
    """One trial: an environment and its chunks, one of which may be delayed."""

    env: Environment
    seed: int
    chunks: RealTimeChunks
    delay: int
    steps: int = 0
    delayed_chunk: np.ndarray | None = None
    arrival_step: int = 0

    def observe(self) -> dict[str, Any] | None:
        """Return the observation for the policy without instruction; None if no query is due."""
        self._receive()
        fields = self.chunks.request_fields()
        return None if fields is None else self.env.observe() | fields.get("rtc", {})

    def send(self, chunk: np.ndarray) -> None:
        """Send the chunk for the last observation; it arrives after the delay."""
        self.delayed_chunk = chunk
        self.arrival_step = self.steps + self.delay

    def step(self) -> None:
        """Execute one control step."""
        self._receive()
        self.env.step(self.chunks.next())
        self.steps += 1

    def _receive(self) -> None:
        """Add the delayed chunk if it has arrived, or if the robot has to wait for it."""
        if self.delayed_chunk is None:
            return
        if self.steps >= self.arrival_step or self.chunks.empty:
            self.chunks.add(self.delayed_chunk)
            self.delayed_chunk = None


def evaluate(policy: Policy, spec: DelaySpec) -> list[dict[str, Any]]:
    """Run the benchmark and print its results.

    Returns:
      A row for each delay, without and with guidance: "delay", "guided", "tasks" (task ->
      successes), "successes", "trials", "rate", and the 95 % interval "low" to "high".

    Raises UserError if chunks are too short for the delay.
    """
    needed = max(spec.delays) + spec.execute
    if needed > policy.config.horizon:
        raise UserError(
            f"a delay of {max(spec.delays)} and {spec.execute} steps between queries need chunks "
            f"of {needed} steps, but the policy's chunks have {policy.config.horizon}"
        )
    settings = itertools.product(spec.delays, (False, True))
    rows = [{"delay": delay, "guided": guided, "tasks": {}} for delay, guided in settings]
    for task in spec.tasks:
        arguments = (spec.simulator, task, spec.scene, spec.image_size)
        envs = [sims.make(*arguments) for _ in range(spec.trials)]
        for row in rows:
            row["tasks"][task] = _count_successes(policy, spec, task, envs, row)
            print(f"{task}, {_name(row)}: {row['tasks'][task]}/{spec.trials}", flush=True)
        for env in envs:
            env.close()
    trials = spec.trials * len(spec.tasks)
    for row in rows:
        successes = sum(row["tasks"].values())
        rate = successes / trials
        low, high = wilson(successes, trials)
        row |= {"successes": successes, "trials": trials, "rate": rate, "low": low, "high": high}
        print(
            f"{_name(row):24}{successes}/{trials} = {rate:.0%} [{low:.0%}, {high:.0%}]", flush=True
        )
    return rows


def _name(row: dict) -> str:
    return f"delay {row['delay']}, {'guided' if row['guided'] else 'not guided'}"


def _count_successes(
    policy: Policy, spec: DelaySpec, task: str, envs: list[Environment], row: dict
) -> int:
    """Run the trials of one task with the delay and the guidance of a row; count successes."""
    episodes = []
    for trial, env in enumerate(envs):
        seed = eval_seed(trial)
        env.reset(seed)
        chunks = RealTimeChunks(spec.execute, delay=row["delay"], guided=row["guided"])
        episodes.append(_Episode(env, seed, chunks, row["delay"]))
    instruction = sims.get(spec.simulator).instruction(task)
    for _ in range(spec.max_steps):
        running = [episode for episode in episodes if not episode.env.success]
        _query(policy, running, instruction, spec.trials)
        for episode in running:
            episode.step()
    return sum(episode.env.success for episode in episodes)


def _query(policy: Policy, episodes: list[_Episode], instruction: str, batch_size: int) -> None:
    """Send chunks to all episodes that need one."""
    observing = []
    observations = []
    for episode in episodes:
        observation = episode.observe()
        if observation is not None:
            observing.append(episode)
            observations.append(observation | {"instruction": instruction})
    if not observing:
        return
    # Rows are repeated up to the batch size, so that one shape is compiled.
    rows = np.arange(batch_size) % len(observing)
    seeds = [(observing[i].seed, observing[i].steps) for i in rows]
    chunks = policy.act([observations[i] for i in rows], seeds)
    for episode, chunk in zip(observing, chunks, strict=False):
        episode.send(chunk)
