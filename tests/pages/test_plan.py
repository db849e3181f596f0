"""The picture of a plan."""

import numpy as np
from PIL import Image

from etcvla.pages.plan import plot_plan
from etcvla.train.stage import make_plan
from tests.train.nano import nano_config


def test_picture_shows_a_plan_with_more_steps_than_its_intervals(tmp_path):
    config = nano_config(tmp_path, tmp_path, steps=1000)
    plot_plan(config, make_plan(config), tmp_path / "plan.png")
    with Image.open(tmp_path / "plan.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape == (1080, 1080, 3)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
