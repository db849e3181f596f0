"""Makes Meta-World demonstrations in worker processes. Imports no TensorFlow."""

from __future__ import annotations

import dataclasses
import zlib

from data_builders.common.environments import EnvironmentKey, get_environment, get_initial_frames
from data_builders.common.jobs import EpisodeJob, EpisodeResult, first_success
from etcvla.etc import make_items, scene
from etcvla.sims.metaworld.environment import MetaWorld, NoRoomError
from etcvla.sims.metaworld.rerender import record_expert, rerender
from etcvla.sims.rollout import Episode, rollout_expert
from etcvla.sims.seeds import demo_seed

MAX_ATTEMPTS = 20
NUM_LAYOUTS = 12  # layouts from which answers that are nearly always the same are known
STRIDE = 4  # control steps between two frames that are rendered again


@dataclasses.dataclass(frozen=True)
class MetaWorldJob(EpisodeJob):
    """One demonstration to make."""

    absent: tuple[str, ...] = scene.ABSENT  # nouns for questions about absent objects
    condition: str = ""  # appearance in which the states are rendered again, without actions

    @property
    def appearance(self) -> str:
        """Name of the scene's appearance, stored as episode_metadata/scene."""
        return f"{self.scene}+{self.condition}" if self.condition else self.scene

    @property
    def episode_id(self) -> str:
        """Unique name of the episode; it seeds the items."""
        return f"metaworld/{self.appearance}/{self.task}/{self.index:05d}"


def make_episode(job: MetaWorldJob) -> EpisodeResult:
    """Make the episode of a job in the first of its layouts in which the expert succeeds.

    Raises UserError if there is none among `MAX_ATTEMPTS` layouts.
    """
    reason = "the expert fails"
    if job.condition:
        reason += f", or the objects of condition {job.condition!r} find no place,"
    episode, attempts = first_success(
        job, lambda attempt: _record(job, demo_seed(job.index, attempt)), MAX_ATTEMPTS, reason
    )
    items, dropped = make_items(
        episode.annotation,
        zlib.crc32(job.episode_id.encode()),
        absent=job.absent,
        locations=job.locations,
        layouts=get_initial_frames(_key(job, job.condition), NUM_LAYOUTS),
    )
    return EpisodeResult(job, episode, items, dropped, attempts)


def _record(job: MetaWorldJob, seed: int) -> Episode | None:
    """Return the demonstration in the layout `seed`, as the job's condition shows it.

    Returns None if the expert fails, or if objects that the condition adds find no place.
    """
    environment = _environment(job)
    if not job.condition:
        return rollout_expert(environment, seed, job.noise)
    states = record_expert(environment, seed, job.noise)
    if states is None:
        return None
    try:
        return rerender(_environment(job, job.condition), states, seed, STRIDE)
    except NoRoomError:
        return None


def _key(job: MetaWorldJob, condition: str = "") -> EnvironmentKey:
    return EnvironmentKey("metaworld", job.task, job.scene, job.image_size, condition)


def _environment(job: MetaWorldJob, condition: str = "") -> MetaWorld:
    return get_environment(_key(job, condition))
