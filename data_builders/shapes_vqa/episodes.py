"""Makes the images of 2-D shapes with their items. Imports no TensorFlow."""

from __future__ import annotations

from data_builders.common.pictures import Picture, PictureJob
from etcvla.etc import shapes


class ShapesJob(PictureJob):
    """One image of shapes to make."""

    prefix = "shapes"


def make_image(job: ShapesJob) -> Picture:
    """Draw the image of a job. Raises RuntimeError if an item does not follow from its scene."""
    rng = job.random_generator()
    image, scene = shapes.draw_scene(rng, job.image_size)
    items = shapes.make_items(scene, rng)
    for item in items:
        error = shapes.check(item, scene)
        if error:
            raise RuntimeError(f"shapes_vqa {job.split} {job.index}: {error}")
    return Picture(image, items)
