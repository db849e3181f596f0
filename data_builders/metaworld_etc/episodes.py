"""Rolling out demonstrations in worker processes. Imports no TensorFlow: a worker is small and starts in a second."""

from __future__ import annotations

import dataclasses
import zlib

from data_builders.common import jobs
from data_builders.common.jobs import EpisodeResult
from etcvla.etc import make_items, scene
from etcvla.etc.annotation import Annotation
from etcvla.sims.metaworld.environment import MetaWorld, NoRoomError
from etcvla.sims.metaworld.rerender import initial_frames, record_expert, rerender
from etcvla.sims.rollout import Episode, rollout_expert
from etcvla.sims.seeds import EVAL_SEED_BASE, demo_seed

MAX_ATTEMPTS = 20
NUM_LAYOUTS = 12  # from which is told what is so in nearly every episode
LAYOUT_SEED = EVAL_SEED_BASE // 2  # neither demonstrated nor evaluated in
STRIDE = 4  # control steps between two frames that are rendered again


@dataclasses.dataclass(frozen=True)
class MetaWorldJob(jobs.EpisodeJob):
    """One demonstration to make."""

    absent: tuple[str, ...] = scene.ABSENT  # nouns to ask for in vain
    condition: str = ""  # the episode is rendered again under it, and has no actions

    @property
    def look(self) -> str:
        """The named look of the scene."""
        return f"{self.scene}+{self.condition}" if self.condition else self.scene

    @property
    def episode_id(self) -> str:
        return f"metaworld/{self.look}/{self.task}/{self.index:05d}"


def roll(job: MetaWorldJob) -> EpisodeResult:
    """Makes the job's episode: the first of its layouts in which the expert succeeds.

    Raises RuntimeError if it fails in `MAX_ATTEMPTS` of them, or there is never room for what the look adds.
    """
    env = _environment(job.task, job.scene, job.image_size)
    for attempt in range(MAX_ATTEMPTS):
        if episode := _make(env, job, demo_seed(job.index, attempt)):
            items, dropped = make_items(
                episode.annotation,
                zlib.crc32(job.episode_id.encode()),
                absent=job.absent,
                locations=job.locations,
                layouts=_layouts(job.task, job.scene, job.image_size, job.condition),
            )
            return EpisodeResult(job, episode, items, dropped, attempt + 1)
    adds = " (or there was no room for what the look adds)" if job.condition else ""
    raise RuntimeError(
        f"{job.episode_id}: the expert failed in {MAX_ATTEMPTS} layouts with noise {job.noise}{adds}"
    )


def _make(env: MetaWorld, job: MetaWorldJob, seed: int) -> Episode | None:
    """The demonstration in this layout, or how it would have looked; None if the expert fails or there is no room."""
    if not job.condition:
        return rollout_expert(env, seed, job.noise)
    states = record_expert(env, seed, job.noise)
    shown = _environment(job.task, job.scene, job.image_size, job.condition)
    try:
        return states and rerender(shown, states, seed, STRIDE)
    except NoRoomError:
        return None


_current: dict[tuple, MetaWorld] = {}
_starts: dict[tuple, Annotation] = {}


def _environment(task: str, *key) -> MetaWorld:
    """The worker's environment; jobs come task by task, so those of one task are kept at a time."""
    if (task, *key) not in _current:
        for other in [other for other in _current if other[0] != task]:
            _current.pop(other).close()
            _starts.pop(other, None)
        _current[task, *key] = MetaWorld(task, *key)
    return _current[task, *key]


def _layouts(*key) -> Annotation:
    """The starts of other episodes, to know what is nearly always so in this task and look."""
    if key not in _starts:
        _starts[key] = initial_frames(
            _environment(*key), range(LAYOUT_SEED, LAYOUT_SEED + NUM_LAYOUTS)
        )
    return _starts[key]
