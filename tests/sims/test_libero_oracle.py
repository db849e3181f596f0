"""Mirrored images, the base frame and the subtasks of picking and placing, without LIBERO."""

import numpy as np
from scipy.spatial.transform import Rotation

from etcvla.etc.annotation import project
from etcvla.sims.libero.oracle import PickPlaceState, PickPlaceTracker, mirror, to_base_frame

MATRIX = np.array([[[0.9, 0.1, -0.5, 1.0], [0.0, -0.9, -0.5, 1.2], [0.1, 0.0, -1.0, 2.0]]] * 2)
POINTS = np.array([[0.1, 0.2, 0.3], [-0.2, 0.1, 0.5]])


def _facts():
    pixels = project(MATRIX[:, None], np.broadcast_to(POINTS, (2, 2, 3)))
    box = np.concatenate([pixels - 0.05, pixels + 0.1], -1)
    box[1, 1] = np.nan
    return {
        "camera_matrix": MATRIX.astype(np.float32),
        "gripper_pixel": pixels[:, 0],
        "grasp_pixel": pixels,
        "box": box,
        "position": POINTS,
        "gripper_position": POINTS[0],
        "visible": np.ones((2, 2)),
    }


def test_mirrored_facts_agree_with_each_other_and_twice_is_nothing():
    facts, flipped = _facts(), mirror(_facts())
    seen = project(flipped["camera_matrix"][:, None], POINTS[None])
    np.testing.assert_allclose(flipped["grasp_pixel"], seen, atol=1e-5)
    np.testing.assert_allclose(flipped["grasp_pixel"][..., 1], 1 - facts["grasp_pixel"][..., 1])
    np.testing.assert_allclose(flipped["grasp_pixel"][..., 0], facts["grasp_pixel"][..., 0])
    np.testing.assert_allclose(flipped["box"][0, :, 3] - flipped["box"][0, :, 1], 0.15, atol=1e-6)
    centre = (flipped["box"][..., :2] + flipped["box"][..., 2:]) / 2
    np.testing.assert_allclose(
        centre[0, :, 1], 1 - (facts["box"][0, :, 1] + facts["box"][0, :, 3]) / 2
    )
    assert np.isnan(flipped["box"][1, 1]).all()
    for name, value in mirror(flipped).items():
        np.testing.assert_allclose(value, facts[name], atol=1e-6)


def test_mirrored_facts_are_those_of_the_mirrored_picture():
    """A bright square left of the middle is right of it afterwards, and its box moves along."""
    image = np.zeros((40, 40))
    image[10:20, 4:10] = 1
    facts = _facts() | {"box": np.array([[[0.25, 0.1, 0.5, 0.25]]])}
    top, left, bottom, right = np.round(mirror(facts)["box"][0, 0] * 40).astype(int)
    shown = image[:, ::-1]
    assert shown[top:bottom, left:right].all()
    assert shown.sum() == (bottom - top) * (right - left)


def test_the_base_frame_moves_places_and_not_pixels():
    rotation, origin = (
        Rotation.from_euler("z", 30, degrees=True).as_matrix(),
        np.array([-0.6, 0.1, 0.9]),
    )
    facts, moved = _facts(), to_base_frame(_facts(), rotation, origin)
    np.testing.assert_allclose(moved["position"] @ rotation.T + origin, facts["position"])
    np.testing.assert_allclose(
        project(moved["camera_matrix"][:, None], moved["position"][None]),
        project(facts["camera_matrix"][:, None], facts["position"][None]),
        atol=1e-5,
    )


def _moment(height=0.0, x=0.0, touched=False, within=False):
    return PickPlaceState(np.array([x, 0, height]), np.array([0.3, 0, 0]), touched, within)


def _run(moments, phases=None):
    phases = phases or PickPlaceTracker()
    return [phases.update(moment) for moment in moments], phases


def test_move_grasp_carry_place():
    story = (
        [_moment()] * 3
        + [_moment(touched=True)] * 3
        + [_moment(0.1, touched=True)] * 3
        + [_moment(0.1, 0.27, touched=True)] * 3
        + [_moment(0.0, 0.3)] * 8
    )
    assert _run(story)[0] == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3] + [3] * 8


def test_a_flicker_is_no_phase():
    assert set(_run([_moment(), _moment(touched=True)] * 5)[0]) == {0}


def test_within_reach_is_a_grasp_before_the_fingers_touch():
    story = [_moment()] * 10 + [_moment(within=True)] * 12 + [_moment(touched=True)] * 3
    assert _run(story)[0] == [0] * 11 + [1] * 14


def test_what_is_dropped_on_the_way_is_moved_to_again():
    story = (
        [_moment()]
        + [_moment(touched=True)] * 2
        + [_moment(0.1, touched=True)] * 2
        + [_moment(0.0, 0.1)] * 6
    )
    walked, phases = _run(story)
    assert walked[4] == 2
    assert walked[-1] == 0
    assert _run([_moment(0.0, 0.1, touched=True)] * 2, phases)[0] == [0, 1]


def test_reset_starts_over():
    _, phases = _run([_moment(touched=True)] * 3)
    phases.reset()
    assert phases.update(_moment(0.5)) == 0
