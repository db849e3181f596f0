"""Phases from positions and contacts, without a simulator."""

import numpy as np

from etcvla.sims.phases import PhaseTracker
from etcvla.sims.task import Phase

PHASES = (
    Phase("move to the puck", "touch"),
    Phase("grasp the puck", "moved"),
    Phase("carry the puck"),
)
HALF_SIZE = 0.02


def _update(tracker, step, centre, grasp_centre=(1, 1, 1), contact=False):
    centre = np.array(centre, float)
    return tracker.update(
        step,
        grasp_centre=np.array(grasp_centre, float),
        grasp_point=centre,
        bounds=(centre - HALF_SIZE, centre + HALF_SIZE),
        contact=contact,
    )


def _settled_tracker():
    tracker = PhaseTracker(PHASES)
    for step in range(12):
        _update(tracker, step, (0, 0, 0))
    return tracker


def test_phases_follow_contact_and_motion_and_never_go_back():
    tracker = _settled_tracker()
    beside = (0, 0, 0.08)
    assert _update(tracker, 12, (0, 0, 0), beside) == 0
    assert _update(tracker, 13, (0, 0, 0), beside, contact=True) == 1
    assert _update(tracker, 14, (0, 0, 0), beside) == 1
    assert _update(tracker, 15, (0, 0, 0.03), beside) == 2
    assert _update(tracker, 16, (0, 0, 0), beside) == 2


def test_small_distance_counts_as_contact():
    assert _update(_settled_tracker(), 12, (0, 0, 0), grasp_centre=(0, 0, 0.019)) == 1
    assert _update(_settled_tracker(), 12, (0, 0, 0), grasp_centre=(0, 0, 0.021)) == 0


def test_motion_counts_only_beside_the_gripper():
    tracker = _settled_tracker()
    for step, drift in enumerate((0.01, 0.02, 0.03), 12):  # moves while the gripper is far away
        assert _update(tracker, step, (0, 0, drift)) == 0
    assert _update(tracker, 15, (0, 0, 0.035), grasp_centre=(0, 0.1, 0)) == 0
    assert _update(tracker, 16, (0, 0, 0.045), grasp_centre=(0, 0.1, 0)) == 1


def test_contact_and_motion_do_not_count_while_the_scene_settles():
    tracker = PhaseTracker(PHASES)
    gripper = (0, 0, 0.1)
    for step in range(12):
        assert _update(tracker, step, (0, 0, 0.12 - 0.01 * step), gripper, contact=True) == 0
    assert _update(tracker, 12, (0, 0, 0.01), gripper) == 0


def test_unknown_grasp_point_counts_as_no_contact():
    point = np.zeros(3)
    phase = _settled_tracker().update(
        12,
        grasp_centre=point,
        grasp_point=point * np.nan,
        bounds=(point - HALF_SIZE, point + HALF_SIZE),
        contact=False,
    )
    assert phase == 0


def test_reset_returns_to_the_first_phase():
    tracker = _settled_tracker()
    _update(tracker, 12, (0, 0, 0), contact=True)
    tracker.reset()
    assert _update(tracker, 0, (0, 0, 0), contact=True) == 0
