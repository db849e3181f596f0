"""Rolling out demonstrations in worker processes. Imports no TensorFlow: a worker is small and starts in a second."""

from __future__ import annotations

import dataclasses
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence

from data_builders import pool
from etcvla.etc import make_items
from etcvla.etc.items import Item
from etcvla.sims.metaworld import MetaWorld, demo_seed
from etcvla.sims.rollout import Episode, rollout_expert

MAX_ATTEMPTS = 20


@dataclasses.dataclass(frozen=True)
class Job:
    """One demonstration to make."""

    task: str
    domain: str
    split: str
    index: int  # of the task's episodes; with the attempt it fixes the layout
    image_size: int
    noise: tuple[float, float]

    @property
    def episode_id(self) -> str:
        return f"metaworld/{self.domain}/{self.task}/{self.index:05d}"


@dataclasses.dataclass(frozen=True)
class Result:
    """What a worker sends back."""

    job: Job
    episode: Episode
    items: list[list[Item]]  # T lists
    dropped: Counter  # items left out, by reason
    attempts: int  # layouts tried until the expert succeeded


def roll(job: Job) -> Result:
    """Makes the job's episode: the first of its layouts in which the expert succeeds.

    Raises RuntimeError if it fails in `MAX_ATTEMPTS` of them.
    """
    env = _environment(job.task, job.domain, job.image_size)
    for attempt in range(MAX_ATTEMPTS):
        if episode := rollout_expert(env, demo_seed(job.index, attempt), job.noise):
            items, dropped = make_items(episode.annotation, zlib.crc32(job.episode_id.encode()))
            return Result(job, episode, items, dropped, attempt + 1)
    raise RuntimeError(f"{job.episode_id}: the expert failed in {MAX_ATTEMPTS} layouts with noise {job.noise}")


_current: dict[tuple, MetaWorld] = {}


def _environment(*key) -> MetaWorld:
    """The worker's environment; jobs come task by task, so one is kept at a time."""
    if key not in _current:
        for env in _current.values():
            env.close()
        _current.clear()
        _current[key] = MetaWorld(*key)
    return _current[key]


def run(jobs: Sequence[Job], workers: int) -> Iterator[Result]:
    """The jobs' results in order, from `workers` processes that stay a few jobs ahead of the consumer."""
    return pool.run(roll, jobs, workers)
