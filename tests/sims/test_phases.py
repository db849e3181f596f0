"""Phases from relations alone."""

import numpy as np

from etcvla.sims.phases import PhaseTracker
from etcvla.sims.task import Phase

PHASES = (
    Phase("move to the puck", "touch"),
    Phase("grasp the puck", "moved"),
    Phase("carry the puck"),
)
HALF = 0.02


def _update(tracker, step, centre, grasp_centre=(1, 1, 1), contact=False):
    centre = np.array(centre, float)
    return tracker.update(
        step,
        grasp_centre=np.array(grasp_centre, float),
        grasp_point=centre,
        bounds=(centre - HALF, centre + HALF),
        contact=contact,
    )


def _settled():
    tracker = PhaseTracker(PHASES)
    for step in range(12):
        _update(tracker, step, (0, 0, 0))
    return tracker


def test_contact_then_motion_and_never_back():
    tracker, beside = _settled(), (0, 0, 0.08)
    assert _update(tracker, 12, (0, 0, 0), beside) == 0
    assert _update(tracker, 13, (0, 0, 0), beside, contact=True) == 1
    assert _update(tracker, 14, (0, 0, 0), beside) == 1
    assert _update(tracker, 15, (0, 0, 0.03), beside) == 2
    assert _update(tracker, 16, (0, 0, 0), beside) == 2


def test_nearness_is_as_good_as_contact():
    assert _update(_settled(), 12, (0, 0, 0), grasp_centre=(0, 0, 0.019)) == 1
    assert _update(_settled(), 12, (0, 0, 0), grasp_centre=(0, 0, 0.021)) == 0


def test_motion_counts_beside_the_gripper_only():
    tracker = _settled()
    for step, drift in enumerate(
        (0.01, 0.02, 0.03), 12
    ):  # swings by itself while the gripper is far
        assert _update(tracker, step, (0, 0, drift)) == 0
    assert _update(tracker, 15, (0, 0, 0.035), grasp_centre=(0, 0.1, 0)) == 0
    assert _update(tracker, 16, (0, 0, 0.045), grasp_centre=(0, 0.1, 0)) == 1


def test_what_happens_while_the_scene_settles_does_not_count():
    tracker = PhaseTracker(PHASES)
    phases = [
        _update(tracker, step, (0, 0, 0.12 - 0.01 * step), grasp_centre=(0, 0, 0.1), contact=True)
        for step in range(12)
    ]
    assert phases == [0] * 12
    assert _update(tracker, 12, (0, 0, 0.01), grasp_centre=(0, 0, 0.1)) == 0


def test_an_unknown_grasp_point_is_no_touch():
    tracker = _settled()
    at = np.zeros(3)
    phase = tracker.update(
        12, grasp_centre=at, grasp_point=at * np.nan, bounds=(at - HALF, at + HALF), contact=False
    )
    assert phase == 0


def test_reset_starts_over():
    tracker = _settled()
    _update(tracker, 12, (0, 0, 0), contact=True)
    tracker.reset()
    assert _update(tracker, 0, (0, 0, 0), contact=True) == 0
