"""Makes the images of 2-D shapes with their items. Imports no TensorFlow."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
from PIL import Image

from etcvla.etc import shapes
from etcvla.etc.items import Item

SPLITS = ("train", "val")


@dataclasses.dataclass(frozen=True)
class ShapesJob:
    """One image to make. The image is a pure function of these fields."""

    split: str
    index: int
    seed: int
    image_size: int

    @property
    def episode_id(self) -> str:
        """The unique name of the image."""
        return f"shapes_{self.seed}_{self.split}_{self.index:07d}"


@dataclasses.dataclass(frozen=True)
class ShapesImage:
    """An image uint8[H, W, 3] with its items."""

    image: np.ndarray
    items: list[Item]

    def jpeg(self) -> bytes:
        """Return the image as a JPEG file."""
        encoded = io.BytesIO()
        Image.fromarray(self.image).save(encoded, "JPEG", quality=95)
        return encoded.getvalue()


def make_image(job: ShapesJob) -> ShapesImage:
    """Draw the image of a job. Raises RuntimeError if an item does not follow from its scene."""
    rng = np.random.default_rng([job.seed, SPLITS.index(job.split), job.index])
    image, scene = shapes.draw_scene(rng, job.image_size)
    items = shapes.make_items(scene, rng)
    for item in items:
        error = shapes.check(item, scene)
        if error:
            raise RuntimeError(f"shapes_vqa {job.split} {job.index}: {error}")
    return ShapesImage(image, items)
