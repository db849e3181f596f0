"""Making LIBERO episodes in worker processes, by experts or from recorded demonstrations. Imports no TensorFlow."""

from __future__ import annotations

import dataclasses
import gc
import zlib
from collections import Counter
from typing import TYPE_CHECKING

from data_builders.common import jobs
from data_builders.common.jobs import EpisodeResult
from data_builders.libero_etc import demos
from etcvla.etc import make_items
from etcvla.etc.annotation import Annotation
from etcvla.sims.libero.tasks import ABSENT
from etcvla.sims.rollout import Episode, annotate, rollout_expert
from etcvla.sims.seeds import EVAL_SEED_BASE, demo_seed, eval_seed

if TYPE_CHECKING:
    from etcvla.sims.libero.environment import Libero

MAX_ATTEMPTS = 10
MAX_STEPS = 240
NUM_LAYOUTS = 8  # from which is told what is so in nearly every episode
LAYOUT_SEED = EVAL_SEED_BASE // 2  # neither demonstrated nor evaluated in
_UNSEEN = 32  # pixels of images that nobody asks for


@dataclasses.dataclass(frozen=True)
class LiberoJob(jobs.EpisodeJob):
    """One demonstration to make."""

    file: str = ""  # of recorded demonstrations; "" the expert acts
    demo: str = ""  # its name in the file

    @property
    def episode_id(self) -> str:
        return f"libero/{self.scene}/{self.task}/{self.demo or format(self.index, '05d')}"


def roll(job: LiberoJob) -> EpisodeResult:
    """Makes the job's episode: the first of its layouts in which the expert succeeds, or the recorded one.

    Raises RuntimeError if the expert fails in `MAX_ATTEMPTS` of them, ValueError if a recorded one cannot be read or is
    of another task.
    """
    key = job.task, job.scene, job.image_size
    env = environment(*key)
    seed = zlib.crc32(job.episode_id.encode())
    episode, attempts = _recorded(env, job, seed) if job.file else _expert(env, job)
    items, dropped = (
        make_items(
            episode.annotation, seed, absent=ABSENT, layouts=_layouts(*key), locations=job.locations
        )
        if episode
        else ([], Counter())
    )
    return EpisodeResult(job, episode, items, dropped, attempts)


def _recorded(env: Libero, job: LiberoJob, seed: int) -> tuple[Episode | None, int]:
    demo = demos.read_demo(job.file, job.demo)
    try:
        return demos.replay(env, demo, seed), 1
    except ValueError as error:
        raise ValueError(f"{job.file}: data/{job.demo}: {error}") from error


def _expert(env: Libero, job: LiberoJob) -> tuple[Episode, int]:
    for attempt in range(MAX_ATTEMPTS):
        if episode := rollout_expert(env, demo_seed(job.index, attempt), job.noise, MAX_STEPS):
            return episode, attempt + 1
    raise RuntimeError(
        f"{job.episode_id}: the expert failed in {MAX_ATTEMPTS} layouts with noise {job.noise}"
    )


@dataclasses.dataclass(frozen=True)
class ExpertTrial:
    """The expert's one try at a task."""

    task: str  # "suite/name"
    state: int  # of the task's fixed initial states
    success: int = 0
    steps: int = 0  # control steps until success, or until it is given up
    grasps: int = 0  # how often the hand went for the thing


def try_expert(trial: ExpertTrial) -> ExpertTrial:
    """The trial as it ends: the expert acts from the initial state for at most `MAX_STEPS` steps, without noise."""
    env = environment(trial.task, "rlds", _UNSEEN)
    env.reset(eval_seed(trial.state))
    steps = 0
    while steps < MAX_STEPS and not env.success:
        env.step(env.expert_action())
        steps += 1
    return dataclasses.replace(
        trial, success=int(env.success), steps=steps, grasps=env.expert_grasps
    )


_current: dict[tuple, Libero] = {}
_starts: dict[tuple, Annotation] = {}


def environment(*key) -> Libero:
    """The worker's environment; jobs come task by task, so one is kept at a time."""
    from etcvla.sims.libero.environment import Libero  # here, so that the parent needs no simulator

    if key not in _current:
        while _current:
            _current.popitem()[1].close()
        _starts.clear()
        gc.collect()  # robosuite's objects refer to each other: a gigabyte would wait
        _current[key] = Libero(*key)
    return _current[key]


def _layouts(*key) -> Annotation:
    """The starts of other episodes, to know what is nearly always so in this task."""
    if key not in _starts:
        env, facts = environment(*key), []
        for seed in range(LAYOUT_SEED, LAYOUT_SEED + NUM_LAYOUTS):
            env.reset(seed)
            facts.append(env.facts())
        _starts[key] = annotate(env, env.instruction(), facts)
    return _starts[key]
