"""Base classes of builders that make their episodes in a simulator.

Worker processes (or Beam's machines) make the episodes; the builder counts and writes them.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from data_builders.common import worker_pool
from data_builders.common.build import EpisodeBuilder, beam_examples
from data_builders.common.config import check_minimum
from data_builders.common.jobs import EpisodeJob, EpisodeResult
from data_builders.common.progress import show_progress
from data_builders.common.rlds_schema import encode_episode
from etcvla.errors import UserError
from etcvla.etc.balance import Tally
from etcvla.etc.items import LOCATIONS
from etcvla.names import lookup


@dataclasses.dataclass
class SimulatedConfig(tfds.core.BuilderConfig):
    """Fields that all simulated datasets have; a builder's subclass sets their defaults."""

    name: str = ""  # made of the other fields
    tasks: tuple[str, ...] = ()
    scene: str = ""
    episodes: int = 0  # training episodes per task; 0: the builder's default
    held_out: float = 0.12  # validation episodes per training episode, rounded up
    image_size: int = 96  # height and width in pixels
    noise: tuple[float, float] = (0.0, 0.0)  # range of the action noise's standard deviation
    locations: str = "loc"  # format of coordinates: "loc" tokens, or "integers"

    def validate(self, scenes: Mapping[str, Any] | None = None) -> None:
        """Raise UserError for a scene or location format without an entry, and for bad numbers.

        Without `scenes`, the field `scene` is not checked.

        `tfds build --config` reads JSON lists; they become tuples.
        """
        self.tasks = tuple(self.tasks)
        self.noise = tuple(self.noise)
        if scenes is not None:
            lookup(scenes, self.scene, "scene")
        lookup(dict.fromkeys(LOCATIONS), self.locations, "locations")
        check_minimum(self, {"episodes": 0, "held_out": 0, "image_size": 16})
        if not 0 <= self.noise[0] <= self.noise[1]:
            raise UserError(f"noise {self.noise} must be an ascending range of numbers from 0")

    def name_parts(self) -> dict[str, str]:
        """Return field -> the part of the config's name that states the field's value."""
        low, high = self.noise
        return {
            "episodes": f"{self.episodes}ep",
            "held_out": f"heldout{self.held_out}",
            "image_size": f"{self.image_size}px",
            "noise": f"noise{low}to{high}",
            "locations": self.locations,
        }

    def jobs(self) -> list[EpisodeJob]:
        """Return the job of every episode, task by task."""
        raise NotImplementedError


def make_example(result: EpisodeResult, *, num_objects: int) -> tuple[str, dict] | None:
    """Return (key, example) of a result; None for a demonstration that does not end in success."""
    job = result.job
    if result.episode is None:
        return None
    example = encode_episode(
        result.episode,
        result.items,
        num_objects=num_objects,
        episode_id=job.episode_id,
        task=job.task,
        scene=job.appearance,
    )
    return job.episode_id, example


class SimulatedBuilder(EpisodeBuilder, skip_registration=True):
    """Writes the successful episodes of `builder_config.jobs()`.

    Attributes:
      make_episode: function that runs one job, in a module that imports no TensorFlow, because the
        worker processes import it.
      workers: number of processes; not a config field, because the data do not depend on it.
    """

    make_episode: Callable[[EpisodeJob], EpisodeResult]
    workers = os.cpu_count() or 1

    @property
    @abc.abstractmethod
    def num_objects(self) -> int:
        """Number of object slots of the annotation."""

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        jobs = self.builder_config.jobs()
        jobs_by_split = {}
        for split in ("train", "val"):
            split_jobs = [job for job in jobs if job.split == split]
            if split_jobs:
                jobs_by_split[split] = split_jobs
        if self.use_beam:
            encode = functools.partial(make_example, num_objects=self.num_objects)
            steps = (type(self).make_episode, encode)
            return {split: beam_examples(found, *steps) for split, found in jobs_by_split.items()}
        results = worker_pool.ResultsBySplit(self._run(jobs))
        return {
            split: self._generate_examples(results.take(split), split) for split in jobs_by_split
        }

    def _generate_examples(
        self, results: Iterator[EpisodeResult], split: str
    ) -> Iterator[tuple[str, dict]]:
        is_empty = True
        for result in results:
            example = make_example(result, num_objects=self.num_objects)
            if example is not None:
                is_empty = False
                yield example
        if is_empty:
            raise UserError(
                f"{self.info.full_name}: no demonstration of the split {split!r} ends in success; "
                "give more demonstrations, or change --held_out"
            )

    def _run(self, jobs: Sequence[EpisodeJob]) -> Iterator[EpisodeResult]:
        """Yield all results with progress lines; write success rates and counts to metadata."""
        statistics = _BuildStatistics()
        results = worker_pool.run_jobs(type(self).make_episode, jobs, self.workers)
        label = f"{self.name} {self.builder_config.name}"
        for result in show_progress(results, total=len(jobs), label=label):
            statistics.add(result)
            yield result
        self.info.metadata.update(statistics.metadata())
        statistics.print_summary()


class _BuildStatistics:
    """Counts of episodes and items of a build."""

    def __init__(self):
        self._episodes: Counter[str] = Counter()
        self._attempts: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._tally = Tally()

    def add(self, result: EpisodeResult) -> None:
        """Count one result."""
        task = result.job.task
        self._episodes[task] += result.episode is not None
        self._attempts[task] += result.attempts
        self._dropped.update(result.dropped)
        for items in result.items:
            self._tally.add(items, task=task, split=result.job.split)

    def metadata(self) -> dict[str, Any]:
        """Return the counts in the form of metadata.json."""
        tasks = {}
        for task, episodes in self._episodes.items():
            attempts = self._attempts[task]
            tasks[task] = {
                "episodes": episodes,
                "attempts": attempts,
                "success_rate": round(episodes / attempts, 3),
            }
        return {
            "tasks": tasks,
            "dropped_items": dict(self._dropped.most_common()),
            "majority_answers": self._tally.majorities(),
        }

    def print_summary(self) -> None:
        """Print the counts, and a warning for answers that can be guessed, to stderr."""
        for task, episodes in self._episodes.items():
            print(
                f"{task}: {episodes} episodes from {self._attempts[task]} attempts",
                file=sys.stderr,
            )
        print(f"dropped items: {dict(self._dropped.most_common())}", file=sys.stderr)
        for problem in self._tally.unbalanced():
            print(f"warning: answers can be guessed: {problem}", file=sys.stderr)
