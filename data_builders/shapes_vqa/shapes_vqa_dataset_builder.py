"""TFDS builder of 2-D shapes with questions: a small substitute for image-text data of the web."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import tensorflow_datasets as tfds

from data_builders.common.build import EpisodeBuilder, beam_examples
from data_builders.common.config import changed_parts, check_minimum
from data_builders.common.progress import show_progress
from data_builders.common.rlds_schema import encode_items, vqa_features
from data_builders.shapes_vqa.episodes import ShapesJob, make_image
from etcvla.etc import shapes


@dataclasses.dataclass
class ShapesConfig(tfds.core.BuilderConfig):
    """Number, size and seed of the images. Raises UserError for a number that is too small."""

    name: str = ""  # made of the fields that differ from their default
    episodes: int = 6000  # training images
    val_episodes: int = 400  # validation images
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

    def jobs(self, split: str) -> list[ShapesJob]:
        """Return the job of every image of a split."""
        count = self.episodes if split == "train" else self.val_episodes
        return [ShapesJob(split, index, self.seed, self.image_size) for index in range(count)]


def make_example(job: ShapesJob) -> tuple[str, dict]:
    """Return (key, example) of a job."""
    made = make_image(job)
    # TFDS's own encoder is slow, because it starts a TensorFlow session for every image.
    step = {"observation": {"image": made.jpeg()}, "etc": encode_items(made.items)}
    return job.episode_id, {"steps": [step], "episode_metadata": {"episode_id": job.episode_id}}


class Builder(EpisodeBuilder):
    """One image per episode of one step, with five to eight checked items."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [ShapesConfig()]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=shapes.__doc__,
            license="Apache-2.0",
            metadata=self.provenance(
                ("numpy", "pillow"), seeding="each image: [seed, split, index]"
            ),
            features=vqa_features(image_size=self.builder_config.image_size),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        generators = {}
        for split in ("train", "val"):
            jobs = self.builder_config.jobs(split)
            if self.use_beam:
                generators[split] = beam_examples(jobs, make_example)
            else:
                generators[split] = self._generate_examples(split, jobs)
        return generators

    def _generate_examples(self, split: str, jobs: list[ShapesJob]) -> Iterator[tuple[str, dict]]:
        for job in show_progress(jobs, total=len(jobs), label=f"shapes_vqa {split}"):
            yield make_example(job)
