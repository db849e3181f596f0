"""Makes LIBERO episodes in worker processes: the expert acts, or a demonstration is replayed.

Imports neither TensorFlow nor, before the first job, the simulator.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections import Counter

from data_builders.common.environments import EnvironmentKey, get_environment, get_initial_frames
from data_builders.common.jobs import EpisodeJob, EpisodeResult, first_success
from data_builders.libero_etc import demos
from etcvla.errors import UserError
from etcvla.etc import make_items
from etcvla.sims import Environment
from etcvla.sims.libero.tasks import ABSENT
from etcvla.sims.rollout import Episode, rollout_expert
from etcvla.sims.seeds import demo_seed, eval_seed

MAX_ATTEMPTS = 10
MAX_STEPS = 240
NUM_LAYOUTS = 8  # layouts from which answers that are nearly always the same are known
_UNUSED_IMAGE_SIZE = 32  # pixels, for trials that render no image


@dataclasses.dataclass(frozen=True)
class LiberoJob(EpisodeJob):
    """One demonstration to make."""

    file: str = ""  # file of recorded demonstrations; "": the expert acts
    demo: str = ""  # name of the demonstration in the file

    @property
    def episode_id(self) -> str:
        """Unique name of the episode; it seeds the items."""
        return f"libero/{self.scene}/{self.task}/{self.demo or format(self.index, '05d')}"


def make_episode(job: LiberoJob) -> EpisodeResult:
    """Make the episode of a job.

    The expert's episode is of the first layout in which it succeeds; a recorded demonstration that
    does not end in success gives a result without episode.

    Raises UserError if the expert fails in `MAX_ATTEMPTS` layouts, or if a demonstration cannot be
    read or is of another task.
    """
    key = _key(job.task, job.scene, job.image_size)
    environment = get_environment(key)
    seed = zlib.crc32(job.episode_id.encode())
    attempts = 1
    if job.file:
        episode = replay_demo(environment, job, seed)
    else:
        episode, attempts = first_success(
            job,
            lambda attempt: rollout_expert(
                environment, demo_seed(job.index, attempt), job.noise, MAX_STEPS
            ),
            MAX_ATTEMPTS,
        )
    if episode is None:
        return EpisodeResult(job, None, [], Counter(), attempts)
    items, dropped = make_items(
        episode.annotation,
        seed,
        absent=ABSENT,
        layouts=get_initial_frames(key, NUM_LAYOUTS),
        locations=job.locations,
    )
    return EpisodeResult(job, episode, items, dropped, attempts)


def replay_demo(environment: Environment, job: LiberoJob, seed: int) -> Episode | None:
    """Return the recorded demonstration of a job; None if it does not end in success."""
    demo = demos.read_demo(job.file, job.demo)
    try:
        return demos.replay(environment, demo, seed)
    except ValueError as error:
        raise UserError(f"{job.file}: data/{job.demo}: {error}") from error


@dataclasses.dataclass(frozen=True)
class ExpertTrial:
    """One trial of the expert."""

    task: str  # "suite/name"
    state: int  # number of the task's fixed initial state
    success: int = 0
    steps: int = 0  # control steps until success, or until the limit
    grasps: int = 0  # number of grasps that the expert attempts


def run_expert_trial(trial: ExpertTrial) -> ExpertTrial:
    """Run the expert without noise for at most `MAX_STEPS` steps, and return the trial's result."""
    environment = get_environment(_key(trial.task, "rlds", _UNUSED_IMAGE_SIZE))
    environment.reset(eval_seed(trial.state))
    steps = 0
    while steps < MAX_STEPS and not environment.success:
        environment.step(environment.expert_action())
        steps += 1
    return dataclasses.replace(
        trial,
        success=int(environment.success),
        steps=steps,
        grasps=environment.expert_grasps,
    )


def _key(task: str, scene: str, image_size: int) -> EnvironmentKey:
    return EnvironmentKey("libero", task, scene, image_size)
