"""A robot dataset without a simulator: made-up episodes in the schema of `robot_features`."""

import dataclasses

import numpy as np
import tensorflow_datasets as tfds

from data_builders.common.build import EpisodeBuilder, beam_examples, provenance
from data_builders.common.rlds_schema import encode_episode, robot_features
from etcvla.etc import make_items
from tests.etc.synthetic_annotation import make_annotation

CAMERAS, SIZE, STEPS = ("camera0", "camera1"), 32, 12


@dataclasses.dataclass
class TinyConfig(tfds.core.BuilderConfig):
    """`count` training episodes and one of validation; if nobody acted, a dataset without actions."""

    name: str = "tiny"
    count: int = 3
    acted: bool = True


def make_example(job):
    """The episode of (split, index, acted); None for a negative index."""
    split, index, acted = job
    if index < 0:
        return None
    annotation, rng = (
        make_annotation(index, steps=STEPS),
        np.random.default_rng([len(split), index]),
    )
    items, _ = make_items(annotation, index)
    name = f"tiny/{split}/{index}"
    return name, encode_episode(
        annotation,
        images={
            camera: rng.integers(0, 255, (STEPS, SIZE, SIZE, 3), np.uint8) for camera in CAMERAS
        },
        state=rng.normal(size=(STEPS, 3)).astype(np.float32),
        action=rng.normal(size=(STEPS, 4)).astype(np.float32) if acted else None,
        items=items,
        num_objects=4,
        episode_id=name,
        task="stack|lift",
        scene="made-up",
    )


class Builder(EpisodeBuilder):
    """Made-up episodes."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [TinyConfig()]
    name = "tiny_robot"

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description="Made up.",
            license="CC-BY-4.0",
            citation="@misc{made, title={Up}}",
            metadata=provenance(self.builder_config, ("numpy",), seeds="the episode's index"),
            features=robot_features(
                cameras=CAMERAS,
                image_size=SIZE,
                state_doc="Numbers.",
                state_size=3,
                action_doc="Numbers.",
                num_objects=4,
                action_size=4 if self.builder_config.acted else 0,
            ),
        )

    def _split_generators(self, dl_manager):
        config = self.builder_config
        jobs = {
            "train": [("train", index, config.acted) for index in range(-1, config.count)],
            "val": [("val", 90, config.acted)],
        }
        if self.by_beam:
            return {split: beam_examples(found, make_example) for split, found in jobs.items()}
        return {split: self._generate_examples(found) for split, found in jobs.items()}

    def _generate_examples(self, jobs):
        return filter(None, map(make_example, jobs))
