"""Makes the pictures of the tabletop with their items. Imports no TensorFlow."""

from __future__ import annotations

import functools

from data_builders.common.pictures import Picture, PictureJob
from data_builders.tabletop_vqa import questions
from data_builders.tabletop_vqa.table import Table

get_table = functools.lru_cache(maxsize=1)(Table)  # of this process


class TableJob(PictureJob):
    """One picture of the tabletop to make."""

    prefix = "tabletop"


def make_picture(job: TableJob) -> Picture:
    """Render the picture of a job. Raises RuntimeError if an item contradicts its scene."""
    rng = job.random_generator()
    image, scene = get_table(job.image_size).draw(rng)
    items = questions.make_items(scene, rng)
    for item in items:
        error = questions.check(item, scene)
        if error:
            raise RuntimeError(f"tabletop_vqa {job.split} {job.index}: {error}")
    return Picture(image, items)
