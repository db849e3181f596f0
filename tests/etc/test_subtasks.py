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
    """Go (20 steps), close (10), carry (20), open (5), leave (10), at 0.2 m/s."""
    speed = np.repeat([0.2, 0.0, 0.2, 0.0, 0.2], [20, 10, 20, 5, 10])
    position = np.stack([np.cumsum(speed) / RATE, np.zeros(65), np.zeros(65)], axis=-1)
    fingers = np.concatenate(
        [np.ones(20), np.linspace(1, 0.3, 6), np.full(24, 0.3), np.linspace(0.3, 1, 5), np.ones(10)]
    )
    return position, fingers


def test_fingers_and_speed_tell_the_subtasks():
    position, fingers = _pick_and_place()
    found = label_subtasks(position, fingers, RATE)
    assert (found[:20] == APPROACH).all()
    assert (found[26:29] == GRASP).all()
    assert (found[32:49] == CARRY).all()
    assert (found[56:] == RELEASE).all()
    assert (np.diff(found) != 0).sum() <= 5


def test_known_contact_wins_over_fingers():
    position, fingers = _pick_and_place()
    contact = np.zeros(65)
    contact[35:45] = 1
    found = label_subtasks(position, fingers, RATE, contact)
    assert (
        (found[:35] == APPROACH).all()
        and (found[35:45] != APPROACH).all()
        and (found[45:] == RELEASE).all()
    )


def test_fingers_that_do_not_move_say_nothing():
    position, _ = _pick_and_place()
    assert (label_subtasks(position, np.full(65, 0.5), RATE) == -1).all()


def test_switching_has_hysteresis():
    signal = np.array([0.0, 0.5, 0.7, 0.5, 0.4, 0.5, 0.2, 0.5, np.nan, 0.9, np.nan])
    assert switch(signal, 0.3, 0.6).tolist() == [False] * 2 + [True] * 4 + [False] * 3 + [True] * 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("0001000111", "0000000111"),
        ("0111011100", "0111111100"),
        ("1110000111", "1110000111"),
        ("0000", "0000"),
    ],
)
def test_flicker_is_removed(given, expected):
    found = steady(np.array(list(given)) == "1", 2)
    assert "".join("1" if touching else "0" for touching in found) == expected


def test_agreement_counts_steps_and_leaves_out_what_is_unknown():
    contact = np.repeat([0.0, 1.0], [10, 10])
    assert agreement(np.repeat([0, 1], [10, 10]), contact, RATE) == 1
    assert agreement(np.repeat([0, 1], [8, 12]), contact, RATE) == pytest.approx(0.9)
    assert (
        agreement(np.repeat([0, 1], [8, 12]), np.where(np.arange(20) < 10, np.nan, contact), RATE)
        == 1
    )
    assert np.isnan(agreement(np.full(20, -1), contact, RATE))
