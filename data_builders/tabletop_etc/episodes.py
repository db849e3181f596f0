"""Makes tabletop demonstrations in worker processes. Imports no TensorFlow."""

from __future__ import annotations

import dataclasses
import itertools
import zlib

import numpy as np

from data_builders.common.environments import EnvironmentKey, get_environment
from data_builders.common.jobs import EpisodeJob, EpisodeResult, first_success
from etcvla.etc import make_items
from etcvla.sims.rollout import Episode, FrameRecorder, Relabels, start_expert
from etcvla.sims.seeds import demo_seed
from etcvla.sims.tabletop.environment import Tabletop
from etcvla.sims.tabletop.layouts import NUM_OBJECTS
from etcvla.sims.tabletop.words import left_out_pairs, tier_words

# Role of a dataset -> tiers of its scenes. Only "demos" has actions.
ROLES = {"demos": "A", "etc": "AB", "ood": "AN"}
MAX_ATTEMPTS = 20
MAX_STEPS = 80  # an expert's touch takes about 12, a pick and place 40
HORIZON = 10  # P, actions of a relabel
_LAYOUTS_PER_ROLE = 100_000  # roles have different layouts


@dataclasses.dataclass(frozen=True)
class TabletopJob(EpisodeJob):
    """One demonstration to make. `scene` is a tier and a rotation, such as "A0"."""

    role: str = "demos"
    absent: tuple[str, ...] = ()  # names for questions about absent objects
    has_relabels: bool = False

    @property
    def episode_id(self) -> str:
        """Unique name of the episode; it seeds the items."""
        return f"tabletop/{self.role}/{self.scene}/{self.task}/{self.index:06d}"

    def seed(self, attempt: int) -> int:
        """Return the seed of an attempt. Every episode has its own layout."""
        layout = demo_seed(self.index + list(ROLES).index(self.role) * _LAYOUTS_PER_ROLE, attempt)
        return layout * NUM_OBJECTS + self.index % NUM_OBJECTS


def absent_names(role: str, rotation: int) -> tuple[str, ...]:
    """Return the names made of the words of a role's tiers, without the left-out pairs."""
    nouns = []
    colors = []
    for tier in ROLES[role]:
        words = tier_words(tier, rotation)
        nouns += words.nouns
        colors += words.colors
    left_out = left_out_pairs(rotation)
    pairs = itertools.product(nouns, colors)
    return tuple(f"{color} {noun}" for noun, color in pairs if (noun, color) not in left_out)


def make_episode(job: TabletopJob) -> EpisodeResult:
    """Make the episode of a job in the first of its layouts in which the expert succeeds.

    Raises UserError if there is none among `MAX_ATTEMPTS` layouts.
    """
    environment = get_environment(EnvironmentKey("tabletop", job.task, job.scene, job.image_size))
    episode, attempts = first_success(
        job, lambda attempt: _record(environment, job, job.seed(attempt)), MAX_ATTEMPTS
    )
    items, dropped = make_items(
        episode.annotation,
        zlib.crc32(job.episode_id.encode()),
        absent=job.absent,
        locations=job.locations,
    )
    return EpisodeResult(job, episode, items, dropped, attempts)


def _record(env: Tabletop, job: TabletopJob, seed: int) -> Episode | None:
    """Return the demonstration in the layout of `seed`, None if the expert fails."""
    instruction, expert_actions = start_expert(env, seed, job.noise, MAX_STEPS, 0)
    recorder = FrameRecorder(env)
    actions = []
    chunks = []
    for action in expert_actions:
        recorder.add(env.observe(), env.facts())
        actions.append(action)
        if job.has_relabels:
            chunks.append([env.expert_chunk(other, HORIZON) for other in _others(env)])
    if not env.success:
        return None
    has_actions = job.role == "demos"
    episode = recorder.episode(instruction, np.array(actions) if has_actions else None, seed)
    if job.has_relabels:
        episode.relabels = _relabels(env, chunks, seed)
    return episode


def _others(env: Tabletop) -> list[int]:
    """Return the objects that the instruction does not name."""
    return [number for number in range(NUM_OBJECTS) if number != env.target]


def _relabels(env: Tabletop, chunks: list[list[tuple[np.ndarray, int]]], seed: int) -> Relabels:
    """Return the relabels of T steps, given (actions, valid) of every step and other object."""
    rng = np.random.default_rng([seed, NUM_OBJECTS])
    actions, valid = zip(*itertools.chain(*chunks), strict=True)
    shape = (len(chunks), NUM_OBJECTS - 1)
    return Relabels(
        instruction=tuple(env.instruction_for(other, rng) for other in _others(env)),
        actions=np.array(actions, np.float32).reshape(*shape, HORIZON, -1),
        valid=np.array(valid, np.int32).reshape(shape),
    )
