"""Mirrored facts, the base frame and the phases of pick-and-place, without LIBERO."""

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


def test_mirrored_facts_are_consistent_and_mirroring_twice_restores_them():
    facts = _facts()
    flipped = mirror(facts)
    pixels = project(flipped["camera_matrix"][:, None], POINTS[None])
    np.testing.assert_allclose(flipped["grasp_pixel"], pixels, atol=1e-5)
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


def test_mirrored_box_fits_the_mirrored_image():
    image = np.zeros((40, 40))
    image[10:20, 4:10] = 1
    facts = _facts() | {"box": np.array([[[0.25, 0.1, 0.5, 0.25]]])}
    top, left, bottom, right = np.round(mirror(facts)["box"][0, 0] * 40).astype(int)
    mirrored = image[:, ::-1]
    assert mirrored[top:bottom, left:right].all()
    assert mirrored.sum() == (bottom - top) * (right - left)


def test_base_frame_changes_positions_but_not_pixels():
    rotation = Rotation.from_euler("z", 30, degrees=True).as_matrix()
    origin = np.array([-0.6, 0.1, 0.9])
    facts = _facts()
    moved = to_base_frame(facts, rotation, origin)
    np.testing.assert_allclose(moved["position"] @ rotation.T + origin, facts["position"])
    np.testing.assert_allclose(
        project(moved["camera_matrix"][:, None], moved["position"][None]),
        project(facts["camera_matrix"][:, None], facts["position"][None]),
        atol=1e-5,
    )


def _state(height=0.0, x=0.0, touched=False, within=False):
    return PickPlaceState(np.array([x, 0, height]), np.array([0.3, 0, 0]), touched, within)


def _phases(states, tracker=None):
    tracker = tracker or PickPlaceTracker()
    return [tracker.update(state) for state in states]


def test_phases_of_a_successful_episode():
    states = (
        [_state()] * 3
        + [_state(touched=True)] * 3
        + [_state(0.1, touched=True)] * 3
        + [_state(0.1, 0.27, touched=True)] * 3
        + [_state(0.0, 0.3)] * 8
    )
    assert _phases(states) == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3] + [3] * 8


def test_contact_of_a_single_step_is_ignored():
    assert set(_phases([_state(), _state(touched=True)] * 5)) == {0}


def test_object_between_the_fingers_counts_as_reached():
    states = [_state()] * 10 + [_state(within=True)] * 12 + [_state(touched=True)] * 3
    assert _phases(states) == [0] * 11 + [1] * 14


def test_dropped_object_returns_to_the_first_phase():
    states = (
        [_state()]
        + [_state(touched=True)] * 2
        + [_state(0.1, touched=True)] * 2
        + [_state(0.0, 0.1)] * 6
    )
    tracker = PickPlaceTracker()
    phases = _phases(states, tracker)
    assert phases[4] == 2
    assert phases[-1] == 0
    assert _phases([_state(0.0, 0.1, touched=True)] * 2, tracker) == [0, 1]


def test_reset_returns_to_the_first_phase():
    tracker = PickPlaceTracker()
    assert _phases([_state(touched=True)] * 3, tracker)[-1] > 0
    tracker.reset()
    assert tracker.update(_state(0.5)) == 0
