"""TFDS builder of pictures of the tabletop with questions: what a tiny base model knows."""

from __future__ import annotations

import dataclasses
import os

from data_builders.common.picture_builder import PictureBuilder, PictureConfig
from data_builders.tabletop_vqa.episodes import TableJob, make_picture


@dataclasses.dataclass
class TableConfig(PictureConfig):
    """Number, size and seed of the pictures."""

    job_class = TableJob

    episodes: int = 16_000
    val_episodes: int = 500


class Builder(PictureBuilder):
    """The tabletop without its robot: three to five objects of all base words, checked items."""

    BUILDER_CONFIGS = [TableConfig()]
    make_picture = staticmethod(make_picture)
    packages = ("mujoco", "numpy", "pillow")
    workers = os.cpu_count() or 1
