"""Builders of a simulator's episodes: made by worker processes (or Beam's machines), counted, and written."""

from __future__ import annotations

import abc
import functools
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator

import tensorflow_datasets as tfds

from data_builders.common import worker_pool
from data_builders.common.build import EpisodeBuilder, beam_examples, progress
from data_builders.common.jobs import EpisodeJob, EpisodeResult
from data_builders.common.rlds_schema import encode_episode
from etcvla.etc.balance import Tally


def make_example(result: EpisodeResult, *, num_objects: int) -> tuple[str, dict] | None:
    """A result as it stands on disk, under its key; None for a demonstration that does not end in success."""
    job, episode = result.job, result.episode
    return episode and (
        job.episode_id,
        encode_episode(
            episode.annotation,
            images=episode.images,
            state=episode.state,
            action=episode.action,
            items=result.items,
            num_objects=num_objects,
            episode_id=job.episode_id,
            task=job.task,
            scene=job.look,
        ),
    )


class SimulatedBuilder(EpisodeBuilder, skip_registration=True):
    """Writes the successful ones of `builder_config.jobs()`, split as these say.

    Attributes:
      roll: makes a job's episode; a function of a module that imports no TensorFlow, for workers to import.
      workers: processes; not in the config, for the data do not depend on it.
    """

    roll: Callable[[EpisodeJob], EpisodeResult]
    workers = os.cpu_count() or 1

    @property
    @abc.abstractmethod
    def num_objects(self) -> int:
        """Object slots of an annotation."""

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        jobs = self.builder_config.jobs()
        by_split = {
            split: found
            for split in ("train", "val")
            if (found := [j for j in jobs if j.split == split])
        }
        if self.by_beam:
            example = functools.partial(make_example, num_objects=self.num_objects)
            return {
                split: beam_examples(found, type(self).roll, example)
                for split, found in by_split.items()
            }
        results = worker_pool.BySplit(self._run(jobs))
        return {split: self._generate_examples(results.take(split), split) for split in by_split}

    def _generate_examples(
        self, results: Iterator[EpisodeResult], split: str
    ) -> Iterator[tuple[str, dict]]:
        found = filter(
            None, (make_example(result, num_objects=self.num_objects) for result in results)
        )
        if (first := next(found, None)) is None:
            raise ValueError(
                f"{self.info.full_name}: no demonstration of the split {split!r} ends in success; give "
                "more demonstrations, or another share to hold out"
            )
        yield first
        yield from found

    def _run(self, jobs: list[EpisodeJob]) -> Iterator[EpisodeResult]:
        """All results, with a progress line; what succeeded, and which items were left out, goes to the metadata."""
        made, tries, dropped, tally = Counter(), Counter(), Counter(), Tally()
        running = worker_pool.run(type(self).roll, jobs, self.workers)
        for result in progress(
            running, total=len(jobs), what=f"{self.name} {self.builder_config.name}"
        ):
            made[result.job.task] += result.episode is not None
            tries[result.job.task] += result.attempts
            dropped.update(result.dropped)
            for step in result.items:
                tally.add(step, task=result.job.task, split=result.job.split)
            yield result
        success = {
            task: {
                "episodes": count,
                "tries": tries[task],
                "success": round(count / tries[task], 3),
            }
            for task, count in made.items()
        }
        self.info.metadata.update(
            tasks=success, dropped=dict(dropped.most_common()), majority=tally.majorities()
        )
        for task, row in success.items():
            print(f"{task}: {row['episodes']} episodes from {row['tries']} tries", file=sys.stderr)
        print(f"items left out: {dict(dropped.most_common())}", file=sys.stderr)
        for problem in tally.unbalanced():
            print(f"warning: answers can be guessed: {problem}", file=sys.stderr)
