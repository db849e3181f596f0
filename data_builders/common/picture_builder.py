"""Base classes of builders that make pictures with questions: one picture is one episode."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import ClassVar

import tensorflow_datasets as tfds

from data_builders.common import worker_pool
from data_builders.common.build import EpisodeBuilder, beam_examples
from data_builders.common.config import changed_parts, check_minimum
from data_builders.common.pictures import SPLITS, Picture, PictureJob
from data_builders.common.progress import show_progress
from data_builders.common.rlds_schema import encode_items, vqa_features

PictureMaker = Callable[[PictureJob], Picture]


@dataclasses.dataclass
class PictureConfig(tfds.core.BuilderConfig):
    """Number, size and seed of the pictures. Raises UserError for a number that is too small."""

    job_class: ClassVar[type[PictureJob]]

    name: str = ""  # made of the fields that differ from their default
    episodes: int = 6000  # training pictures
    val_episodes: int = 400  # validation pictures
    image_size: int = 96  # height and width in pixels
    seed: int = 0

    def __post_init__(self):
        check_minimum(self, {"episodes": 1, "val_episodes": 1, "image_size": 32, "seed": 0})
        parts = {
            "episodes": f"{self.episodes}ep",
            "val_episodes": f"{self.val_episodes}val",
            "image_size": f"{self.image_size}px",
            "seed": f"seed{self.seed}",
        }
        self.name = "_".join(changed_parts(self, parts)) or "default"

    def jobs(self, split: str) -> list[PictureJob]:
        """Return the job of every picture of a split."""
        count = self.episodes if split == "train" else self.val_episodes
        return [self.job_class(split, index, self.seed, self.image_size) for index in range(count)]


def make_example(job: PictureJob, make_picture: PictureMaker) -> tuple[str, dict]:
    """Return (key, example) of a job."""
    return encode_picture(job, make_picture(job))


def encode_picture(job: PictureJob, picture: Picture) -> tuple[str, dict]:
    """Return (key, example) of the picture that a job made."""
    # TFDS's own encoder is slow, because it starts a TensorFlow session for every image.
    step = {"observation": {"image": picture.jpeg()}, "etc": encode_items(picture.items)}
    return job.episode_id, {"steps": [step], "episode_metadata": {"episode_id": job.episode_id}}


class PictureBuilder(EpisodeBuilder, skip_registration=True):
    """Writes the pictures of `builder_config.jobs(split)`.

    Attributes:
      make_picture: runs one job; a function of a module that imports no TensorFlow, because worker
        processes import it.
      packages: packages whose versions change the pictures.
      workers: number of worker processes; 0: this process.
    """

    VERSION = tfds.core.Version("1.0.0")
    make_picture: PictureMaker
    packages: tuple[str, ...]
    workers = 0

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            license="Apache-2.0",
            metadata=self.provenance(self.packages, seeding="each picture: [seed, split, index]"),
            features=vqa_features(image_size=self.builder_config.image_size),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        generators = {}
        for split in SPLITS:
            jobs = self.builder_config.jobs(split)
            if self.use_beam:
                make = functools.partial(make_example, make_picture=type(self).make_picture)
                generators[split] = beam_examples(jobs, make)
            else:
                generators[split] = self._generate_examples(split, jobs)
        return generators

    def _generate_examples(self, split: str, jobs: list[PictureJob]) -> Iterator[tuple[str, dict]]:
        make_picture = type(self).make_picture
        if self.workers:
            pictures = worker_pool.run_jobs(make_picture, jobs, self.workers)
        else:
            pictures = map(make_picture, jobs)
        progress = show_progress(pictures, total=len(jobs), label=f"{self.name} {split}")
        for job, picture in zip(jobs, progress, strict=True):
            yield encode_picture(job, picture)
