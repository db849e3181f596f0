"""The picture of a plan."""

import numpy as np
from PIL import Image

from etcvla.data.plan import Plan, Stream
from etcvla.pages.plan import plot_plan


def test_picture_shows_a_plan_with_more_steps_than_its_intervals(tmp_path):
    streams = [
        Stream("actions", "robot", "action", ((0.0, 1.0), (1.0, 3.0)), extra_segments=0),
        Stream("questions", "robot", "any", ((0.0, 1.0),), extra_segments=0),
    ]
    plan = Plan.make(streams, batch_size=8, steps=1000, seed=0)
    plot_plan(plan, tmp_path / "plan.png", "stage:variant")
    with Image.open(tmp_path / "plan.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape == (720, 1080, 3)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
