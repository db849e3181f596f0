"""Pictures with questions, as builders' worker processes make them. Imports no TensorFlow."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from etcvla.etc.items import Item
from etcvla.sims.rollout import encode_jpeg

SPLITS = ("train", "val")
JPEG_QUALITY = 95


@dataclasses.dataclass(frozen=True)
class PictureJob:
    """One picture to make. The picture is a pure function of these fields."""

    prefix: ClassVar[str]  # of the names of a dataset's pictures

    split: str
    index: int
    seed: int
    image_size: int

    @property
    def episode_id(self) -> str:
        """The unique name of the picture."""
        return f"{self.prefix}_{self.seed}_{self.split}_{self.index:07d}"

    def random_generator(self) -> np.random.Generator:
        """Return the generator from which the picture and its items are drawn."""
        return np.random.default_rng([self.seed, SPLITS.index(self.split), self.index])


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image uint8[H, W, 3] with its items."""

    image: np.ndarray
    items: list[Item]

    def jpeg(self) -> bytes:
        """Return the image as a JPEG file."""
        return encode_jpeg(self.image, JPEG_QUALITY)
