"""TFDS builder of procedural 2-D shapes with questions: the small stand-in for web image-text data."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from data_builders.common.build import EpisodeBuilder, beam_examples, progress, provenance
from data_builders.common.rlds_schema import encode_items, vqa_features
from etcvla.etc import shapes

SPLITS = ("train", "val")


@dataclasses.dataclass
class ShapesConfig(tfds.core.BuilderConfig):
    """How many images, how large, from which seed.

    The name says what differs from the default, so that another choice is another directory. Raises ValueError for
    a number that is too small.
    """

    name: str = ""  # made of the others
    train: int = 6000
    val: int = 400
    image_size: int = 96
    seed: int = 0

    def __post_init__(self):
        for field, least in {"train": 1, "val": 1, "image_size": 32, "seed": 0}.items():
            if getattr(self, field) < least:
                raise ValueError(
                    f"shapes_vqa: {field} must be at least {least}, got {getattr(self, field)}"
                )
        other = [
            field.name
            for field in dataclasses.fields(ShapesConfig)
            if isinstance(field.default, int) and getattr(self, field.name) != field.default
        ]
        self.name = "_".join(f"{name}{getattr(self, name)}" for name in other) or "default"


def make_image(
    split: str, index: int, *, seed: int, image_size: int
) -> tuple[str, np.ndarray, shapes.ShapesScene, list]:
    """The picture of an id: (id, uint8[H, W, 3], scene, items). A pure function, and another one in each split.

    Raises RuntimeError if an item does not follow from its scene.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    image, scene = shapes.draw_scene(rng, image_size)
    items = shapes.make_items(scene, rng)
    if wrong := [error for item in items if (error := shapes.check(item, scene))]:
        raise RuntimeError(f"shapes_vqa {split} {index}: {wrong[0]}")
    return f"shapes_{seed}_{split}_{index:07d}", image, scene, items


def _jpeg(image: np.ndarray) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "JPEG", quality=95)
    return encoded.getvalue()


def make_example(job: tuple[str, int, int, int]) -> tuple[str, dict]:
    """The image of (split, index, seed, image_size) as it stands on disk, under its key."""
    split, index, seed, image_size = job
    name, image, _, items = make_image(split, index, seed=seed, image_size=image_size)
    # Encoded here: TFDS's own encoder starts a TensorFlow session an image.
    step = {"observation": {"image": _jpeg(image)}, "etc": encode_items(items)}
    return name, {"steps": [step], "episode_metadata": {"episode_id": name}}


class Builder(EpisodeBuilder):
    """One image a one-step episode, with five to eight checked items."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [ShapesConfig()]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=shapes.__doc__,
            license="Apache-2.0",
            metadata=provenance(
                self.builder_config, ("numpy", "pillow"), seeds="an image: [seed, split, index]"
            ),
            features=vqa_features(image_size=self.builder_config.image_size),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        config = self.builder_config
        jobs = {
            split: [
                (split, index, config.seed, config.image_size)
                for index in range(getattr(config, split))
            ]
            for split in SPLITS
        }
        if self.by_beam:
            return {split: beam_examples(found, make_example) for split, found in jobs.items()}
        return {split: self._generate_examples(split, found) for split, found in jobs.items()}

    def _generate_examples(self, split: str, jobs: list[tuple]) -> Iterator[tuple[str, dict]]:
        return map(make_example, progress(jobs, total=len(jobs), what=f"shapes_vqa {split}"))
