"""TFDS builder of Meta-World demonstrations: scripted experts, exact annotation, checked ETC items."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections import Counter
from collections.abc import Iterator

import tensorflow_datasets as tfds

from data_builders import pool
from data_builders.build import progress
from data_builders.metaworld_etc import rollouts
from data_builders.rlds import encode_episode, robot_features
from etcvla.names import lookup
from etcvla.sims import metaworld
from etcvla.sims.metaworld_tasks import DEMO_TASKS, MT10, NUM_OBJECTS, TASKS

TASK_SETS = {"demo": DEMO_TASKS, "mt10": MT10, "mt50": tuple(TASKS)}
EPISODES = {"source": 30, "target": 10}


@dataclasses.dataclass
class MetaWorldConfig(tfds.core.BuilderConfig):
    """What is rolled out. The name says what differs from the domain's default, so that it is another directory.

    Raises ValueError for an unknown domain or task and for numbers out of range.
    """

    name: str = ""  # made of the others
    domain: str = "source"
    tasks: tuple[str, ...] = DEMO_TASKS
    episodes: int = 0  # training episodes a task; 0: the domain's default
    held_out: float = 0.12  # validation episodes for each training episode, rounded up
    image_size: int = 96  # pixels
    noise: tuple[float, float] = (0.1, 0.3)  # range of an episode's action noise (standard deviation)

    def __post_init__(self):
        lookup(metaworld.DOMAINS, self.domain, "domain")
        for task in self.tasks:
            lookup(TASKS, task, "task")
        self.episodes = self.episodes or EPISODES[self.domain]
        if self.episodes < 1 or self.held_out < 0 or self.image_size < 16 or not 0 <= self.noise[0] <= self.noise[1]:
            raise ValueError(f"metaworld_etc: episodes {self.episodes} must be at least 1, held_out {self.held_out} "
                             f"at least 0, image_size {self.image_size} at least 16, noise {self.noise} an ascending "
                             f"range from 0")
        self.name = self._name()

    def _name(self) -> str:
        sets = {tasks: name for name, tasks in TASK_SETS.items()}
        parts = {"tasks": sets.get(self.tasks, "+".join(self.tasks)), "episodes": f"{self.episodes}ep",
                 "held_out": f"{self.val}val", "image_size": f"{self.image_size}px",
                 "noise": "noise{}to{}".format(*self.noise)}
        defaults = {field.name: field.default for field in dataclasses.fields(self)} | {
            "episodes": EPISODES[self.domain]}
        return "_".join([self.domain, *(part for field, part in parts.items()
                                        if getattr(self, field) != defaults[field])])

    @property
    def val(self) -> int:
        """Validation episodes a task."""
        return math.ceil(self.episodes * self.held_out)

    def split(self, index: int) -> str:
        """The split of a task's episode: exactly `val` of them, evenly spread."""
        total = self.episodes + self.val
        return "val" if (index + 1) * self.val // total > index * self.val // total else "train"

    def jobs(self) -> list[rollouts.Job]:
        """Every episode, task by task."""
        return [rollouts.Job(task, self.domain, self.split(index), index, self.image_size, self.noise)
                for task in self.tasks for index in range(self.episodes + self.val)]


class Builder(tfds.core.GeneratorBasedBuilder):
    """Successful demonstrations of Meta-World's scripted experts, split by episode."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [MetaWorldConfig(domain=domain) for domain in metaworld.DOMAINS]
    workers = os.cpu_count() or 1  # processes; not in the config, for the data do not depend on it

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self, description=__doc__, homepage="https://metaworld.farama.org",
            features=robot_features(
                cameras=metaworld.CAMERAS, image_size=self.builder_config.image_size,
                state_doc=metaworld.STATE_DOC, state_size=metaworld.STATE_SIZE,
                action_doc=metaworld.ACTION_DOC, action_size=metaworld.ACTION_SIZE, num_objects=NUM_OBJECTS))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        jobs = self.builder_config.jobs()
        results = pool.BySplit(self._run(jobs))
        return {split: self._generate_examples(results.take(split)) for split in ("train", "val")
                if any(job.split == split for job in jobs)}

    def _generate_examples(self, results: Iterator[rollouts.Result]) -> Iterator[tuple[str, dict]]:
        """Results as they stand on disk."""
        for result in results:
            job, episode = result.job, result.episode
            yield job.episode_id, encode_episode(
                episode.annotation, images=episode.images, state=episode.state, action=episode.action,
                items=result.items, num_objects=NUM_OBJECTS, episode_id=job.episode_id, task=job.task,
                domain=job.domain)

    def _run(self, jobs: list[rollouts.Job]) -> Iterator[rollouts.Result]:
        """All results, with a progress line, and at the end how often experts failed and items were left out."""
        attempts, dropped = Counter(), Counter()
        running = rollouts.run(jobs, self.workers)
        for result in progress(running, total=len(jobs), what=f"metaworld_etc {self.builder_config.name}"):
            attempts[result.job.task] += result.attempts
            dropped.update(result.dropped)
            yield result
        for task, episodes in Counter(job.task for job in jobs).items():
            print(f"{task}: {episodes} episodes from {attempts[task]} tries", file=sys.stderr)
        print(f"items left out: {dict(dropped.most_common())}", file=sys.stderr)
