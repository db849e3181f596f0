"""The policy benchmark without its times: inputs of both sides and summaries of seconds."""

import numpy as np
import pytest

from etcvla.bench import model, ours, policy


def test_observations_differ_and_fewer_cameras_are_the_first():
    three, two, other = policy.observe(3, 0, 8), policy.observe(2, 0, 8), policy.observe(3, 1, 8)
    assert list(two["images"]) == list(three["images"])[:2]
    assert all(
        image.shape == (3, 8, 8) and image.dtype == np.uint8 for image in three["images"].values()
    )
    for name in two["images"]:
        np.testing.assert_array_equal(two["images"][name], three["images"][name])
        assert (other["images"][name] != three["images"][name]).any()


def test_the_robots_numbers_are_about_one():
    low, high = (policy.stats(0)[name] for name in ("q01", "q99"))
    assert low.shape == (policy.WIDTH,) and (low < -0.7).all() and (high > 0.7).all()
    assert policy.noise(3).shape == (ours.HORIZON, ours.ACTION_DIM)
    assert (policy.noise(3) != policy.noise(4)).all()


def test_ratios_are_of_medians_by_round():
    """A round that was disturbed, and one slow answer, change neither."""
    us, them = np.full((3, 4), 0.2), np.full((3, 4), 0.4)
    us[1], them[1], us[0, 0] = 2.0, 4.0, 1.0
    seconds = {
        (name, n): value for n in model.FLOORS for name, value in (("ours", us), ("openpi", them))
    }
    found = policy.summarize(seconds, dict.fromkeys(model.FLOORS, [0.1, 0.1, 0.3]))
    for n in model.FLOORS:
        assert found[f"latency_ratio_{n}cam"] == pytest.approx(0.5)
        assert found[f"openpi_p50_ms_{n}cam"] == pytest.approx(400)
        assert found[f"ours_same_images_p50_ms_{n}cam"] == pytest.approx(100)
        assert found[f"ours_actions_per_second_{n}cam"] == pytest.approx(ours.HORIZON / us.mean())
    assert "3 cameras" in policy.table(found) and "0.500x" in policy.table(found)
