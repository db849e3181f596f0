"""Grasps of point clouds, without LIBERO."""

import mujoco
import numpy as np
import pytest

from etcvla.sims.libero.expert import SceneGeometry, grasps

RNG = np.random.default_rng(0)
NOTHING = np.zeros((0, 3))


def _box(size, centre=(0, 0, 0), turn=0.0):
    """Return points on the sides of a box."""
    points = RNG.uniform(-0.5, 0.5, (6000, 3))
    points[np.arange(6000), RNG.integers(0, 3, 6000)] = RNG.choice([-0.5, 0.5], 6000)
    cosine = np.cos(turn)
    sine = np.sin(turn)
    rotation = np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]])
    return points * size @ rotation + centre


def _bowl(radius=0.065, height=0.05):
    """Return points on a round wall and a flat bottom."""
    angle = RNG.uniform(0, 2 * np.pi, 8000)
    heights = RNG.uniform(0, height, 8000)
    wall = np.column_stack([radius * np.cos(angle), radius * np.sin(angle), heights])
    bottom = np.column_stack([RNG.uniform(-0.04, 0.04, (2000, 2)), np.zeros(2000)])
    return np.concatenate([wall, bottom])


@pytest.mark.parametrize("turn", [0, 30, 60])
def test_box_is_grasped_across_its_narrow_side(turn):
    best = grasps(_box((0.15, 0.04, 0.05), turn=np.deg2rad(turn)), NOTHING, 0.0)[0]
    across = np.deg2rad(turn) + np.pi / 2
    assert abs(np.sin(best.yaw - across)) < np.sin(np.deg2rad(20))
    np.testing.assert_allclose(best.point[:2], 0, atol=0.005)


@pytest.mark.parametrize(("height", "expected"), [(0.2, 0.1 - 0.03), (0.03, -0.015 + 0.011)])
def test_tall_objects_are_grasped_near_the_top_and_flat_ones_above_the_bottom(height, expected):
    best = grasps(_box((0.05, 0.05, height)), NOTHING, 0.0)[0]
    assert best.point[2] == pytest.approx(expected, abs=0.002)


def test_too_wide_object_has_no_grasp():
    assert not grasps(_box((0.1, 0.1, 0.05)), NOTHING, 0.0)


def test_bowl_is_grasped_by_its_rim():
    best = grasps(_bowl(), NOTHING, 0.0)[0]
    assert np.linalg.norm(best.point[:2]) == pytest.approx(0.065, abs=0.003)
    radial = best.point[:2] / np.linalg.norm(best.point[:2])
    assert abs(radial @ [np.cos(best.yaw), np.sin(best.yaw)]) > 0.99
    assert 0.02 < best.point[2] < 0.05


def test_grasp_keeps_clear_of_other_objects():
    bowl = _bowl()
    wall = _box((0.02, 0.4, 0.15), (0.1, 0, 0.05))
    assert grasps(bowl, wall, 0.0)[0].point[0] < 0.03
    assert grasps(bowl, wall - [0.2, 0, 0], 0.0)[0].point[0] > -0.03


def test_grasp_with_the_least_wrist_rotation_is_preferred():
    can = _bowl(0.03, 0.1)
    for yaw in (-0.8, 0.0, 0.8):
        assert abs(np.sin(grasps(can, NOTHING, yaw)[0].yaw - yaw)) < 0.1


def test_points_are_on_the_surface_and_move_with_the_body():
    model = mujoco.MjModel.from_xml_string(
        """<mujoco><worldbody>
             <body name="b" pos="1 2 3">
               <freejoint/> <geom name="g" type="box" size=".1 .2 .3"/>
             </body>
           </worldbody></mujoco>"""
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    scene = SceneGeometry(model, data, [np.array([0])])
    local = scene.points(0) - [1, 2, 3]
    np.testing.assert_allclose(np.abs(local / [0.1, 0.2, 0.3]).max(-1), 1, atol=1e-6)
    np.testing.assert_allclose(np.ptp(local, axis=0), [0.2, 0.4, 0.6], atol=1e-6)
    data.qpos[0] = 5
    mujoco.mj_forward(model, data)
    np.testing.assert_allclose(scene.points(0) - [5, 2, 3], local)
