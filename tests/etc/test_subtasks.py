"""Subtasks from fingers, speed and contact."""

import numpy as np
import pytest

from etcvla.etc.subtasks import (
    APPROACH,
    CARRY,
    GRASP,
    RELEASE,
    agreement,
    label_subtasks,
    steady,
    switch,
)

RATE = 20.0


def _pick_and_place():
    """Move (20 steps), close (10), carry (20), open (5), move away (10), at 0.2 m/s."""
    speed = np.repeat([0.2, 0.0, 0.2, 0.0, 0.2], [20, 10, 20, 5, 10])
    position = np.zeros((65, 3))
    position[:, 0] = np.cumsum(speed) / RATE
    fingers = np.concatenate(
        [np.ones(20), np.linspace(1, 0.3, 6), np.full(24, 0.3), np.linspace(0.3, 1, 5), np.ones(10)]
    )
    return position, fingers


def test_subtasks_follow_from_fingers_and_speed():
    position, fingers = _pick_and_place()
    labels = label_subtasks(position, fingers, RATE)
    assert (labels[:20] == APPROACH).all()
    assert (labels[26:29] == GRASP).all()
    assert (labels[32:49] == CARRY).all()
    assert (labels[56:] == RELEASE).all()
    assert np.count_nonzero(np.diff(labels)) <= 5


def test_known_contact_has_priority_over_fingers():
    position, fingers = _pick_and_place()
    contact = np.zeros(65)
    contact[35:45] = 1
    labels = label_subtasks(position, fingers, RATE, contact)
    assert (labels[:35] == APPROACH).all()
    assert (labels[35:45] != APPROACH).all()
    assert (labels[45:] == RELEASE).all()


def test_subtasks_are_unknown_if_the_fingers_do_not_move():
    position, _ = _pick_and_place()
    assert (label_subtasks(position, np.full(65, 0.5), RATE) == -1).all()


def test_switch_has_hysteresis():
    signal = np.array([0.0, 0.5, 0.7, 0.5, 0.4, 0.5, 0.2, 0.5, np.nan, 0.9, np.nan])
    expected = [False] * 2 + [True] * 4 + [False] * 3 + [True] * 2
    assert switch(signal, 0.3, 0.6).tolist() == expected


@pytest.mark.parametrize(
    ("contact", "expected"),
    [
        ("0001000111", "0000000111"),
        ("0111011100", "0111111100"),
        ("1110000111", "1110000111"),
        ("0000", "0000"),
    ],
)
def test_steady_removes_short_runs(contact, expected):
    result = steady(np.array(list(contact)) == "1", 2)
    assert result.tolist() == (np.array(list(expected)) == "1").tolist()


def test_agreement_is_the_fraction_of_known_steps():
    contact = np.repeat([0.0, 1.0], [10, 10])
    assert agreement(np.repeat([0, 1], [10, 10]), contact, RATE) == 1
    early = np.repeat([0, 1], [8, 12])
    assert agreement(early, contact, RATE) == pytest.approx(0.9)
    partly_unknown = np.where(np.arange(20) < 10, np.nan, contact)
    assert agreement(early, partly_unknown, RATE) == 1
    assert np.isnan(agreement(np.full(20, -1), contact, RATE))
