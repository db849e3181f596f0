"""TFDS builder of 2-D shapes with questions: a small substitute for image-text data of the web."""

from __future__ import annotations

import dataclasses

from data_builders.common.picture_builder import PictureBuilder, PictureConfig
from data_builders.shapes_vqa.episodes import ShapesJob, make_image


@dataclasses.dataclass
class ShapesConfig(PictureConfig):
    """Number, size and seed of the images."""

    job_class = ShapesJob


class Builder(PictureBuilder):
    """Pictures of 2-D shapes, a text in some of them, and five to eight checked items each."""

    BUILDER_CONFIGS = [ShapesConfig()]
    make_picture = staticmethod(make_image)
    packages = ("numpy", "pillow")
