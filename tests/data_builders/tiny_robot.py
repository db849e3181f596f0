"""Builder of a small robot dataset with synthetic episodes, without a simulator."""

import dataclasses

import numpy as np
import tensorflow_datasets as tfds

from data_builders.common.build import EpisodeBuilder, beam_examples
from data_builders.common.rlds_schema import RobotSchema, encode_episode, robot_features
from etcvla.etc import make_items
from etcvla.sims.rollout import Episode
from tests.etc.synthetic_annotation import make_annotation

CAMERAS = ("camera0", "camera1")
SIZE = 32
STEPS = 12


@dataclasses.dataclass
class TinyConfig(tfds.core.BuilderConfig):
    """Size of the dataset."""

    name: str = "tiny"
    count: int = 3  # training episodes; there is one validation episode
    has_actions: bool = True


@dataclasses.dataclass(frozen=True)
class TinyJob:
    """One episode to make; a negative index makes none."""

    split: str
    index: int
    has_actions: bool


def make_example(job):
    """Return (key, example) of a job, or None."""
    if job.index < 0:
        return None
    annotation = make_annotation(job.index, steps=STEPS)
    items, _ = make_items(annotation, job.index)
    rng = np.random.default_rng([len(job.split), job.index])
    images = {}
    for camera in CAMERAS:
        images[camera] = rng.integers(0, 255, (STEPS, SIZE, SIZE, 3), np.uint8)
    state = rng.normal(size=(STEPS, 3)).astype(np.float32)
    action = None
    if job.has_actions:
        action = rng.normal(size=(STEPS, 4)).astype(np.float32)
    name = f"tiny/{job.split}/{job.index}"
    example = encode_episode(
        Episode(images, state, action, annotation, seed=job.index),
        items,
        num_objects=4,
        episode_id=name,
        task="stack|lift",
        scene="made-up",
    )
    return name, example


class Builder(EpisodeBuilder):
    """Synthetic episodes."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [TinyConfig()]
    name = "tiny_robot"

    def _info(self):
        schema = RobotSchema(
            cameras=CAMERAS,
            image_size=SIZE,
            num_objects=4,
            state_size=3,
            state_doc="Numbers.",
            action_size=4 if self.builder_config.has_actions else 0,
            action_doc="Numbers.",
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description="Made up.",
            license="CC-BY-4.0",
            citation="@misc{made, title={Up}}",
            metadata=self.provenance(("numpy",), seeding="the episode's index"),
            features=robot_features(schema),
        )

    def _split_generators(self, dl_manager):
        config = self.builder_config
        jobs = {
            "train": [TinyJob("train", i, config.has_actions) for i in range(-1, config.count)],
            "val": [TinyJob("val", 90, config.has_actions)],
        }
        if self.use_beam:
            return {split: beam_examples(found, make_example) for split, found in jobs.items()}
        return {split: self._generate_examples(found) for split, found in jobs.items()}

    def _generate_examples(self, jobs):
        for job in jobs:
            example = make_example(job)
            if example is not None:
                yield example
