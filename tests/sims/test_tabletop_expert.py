"""The tabletop's expert and the success of its tasks, as functions of positions."""

import dataclasses

import numpy as np
import pytest

from etcvla.sims.tabletop import expert, tasks
from etcvla.sims.tabletop.layouts import make_layout
from etcvla.sims.tabletop.tasks import TASKS

STEP = 0.02
HALF_SIZE = np.array([0.03, 0.03, 0.03])


def _view(hand, held=-1, target=0):
    """Return a view of three cubes on the table."""
    centres = np.array([[0, 0, 0.03], [0.1, 0, 0.03], [0, 0.14, 0.03]])
    bounds = np.stack([centres - HALF_SIZE, centres + HALF_SIZE], axis=1)
    return expert.View(np.array(hand, float), held, bounds, target)


def _boxes(*centres):
    return [np.stack([centre - HALF_SIZE, centre + HALF_SIZE]) for centre in np.array(centres)]


def test_limit_keeps_the_direction_in_the_plane():
    action = expert.limit(np.array([0.06, 0.03, -0.5]), STEP)
    np.testing.assert_allclose(action, [1, 0.5, -1])
    assert action.dtype == np.float32
    np.testing.assert_allclose(expert.limit(np.array([0.01, 0, 0.002]), STEP), [0.5, 0, 0.1])


def test_a_low_hand_rises_before_it_moves_sideways():
    goal = np.array([0.1, 0, 0.06])
    low = expert.approach(np.array([0, 0, 0.03]), goal)
    assert low[2] > 0
    assert not low[:2].any()
    high = expert.approach(np.array([0, 0, 0.15]), goal)
    np.testing.assert_allclose(high[:2], [0.1, 0])
    above = expert.approach(np.array([0.095, 0, 0.12]), goal)
    np.testing.assert_allclose(above, [0.005, 0, -0.06])


def test_a_loaded_hand_moves_higher():
    hand = np.array([0, 0, 0.1])
    goal = np.array([0.1, 0, 0.06])
    assert expert.approach(hand, goal)[0] > 0
    assert expert.approach(hand, goal, load=0.06)[0] == 0


def test_the_tip_touches_the_top_of_the_target():
    view = _view([0.1, 0, 0.2], target=1)
    np.testing.assert_allclose(view.contact_point[:2], [0.1, 0])
    assert 0.055 < view.contact_point[2] < 0.06
    assert not view.is_touching
    assert dataclasses.replace(view, hand=view.contact_point).is_touching
    assert not dataclasses.replace(view, hand=np.array([0.1, 0.02, 0.057])).is_touching


@pytest.mark.parametrize("direction", [-1, 1])
def test_a_push_starts_on_the_other_side_and_corrects_itself(direction):
    start, suction = expert.push(_view([0, 0, 0.2]), direction)
    assert start[0] * direction < -0.03
    assert not suction
    behind = _view([-direction * 0.05, 0.01, 0.014])
    displacement, _ = expert.push(behind, direction)
    assert displacement[0] == direction
    assert displacement[1] == pytest.approx(-0.01)
    passed, _ = expert.push(_view([direction * 0.05, 0, 0.014]), direction)
    assert passed[2] > 0  # rises to go around the object


def test_a_pick_switches_the_suction_near_the_object_and_at_the_goal():
    goal = np.array([0.1, 0.1, 0.032])
    far, suction = expert.put(_view([0.2, 0, 0.2]), goal)
    assert far[0] < 0
    assert not suction
    assert expert.put(_view([0, 0, 0.07]), goal)[1]
    carried, suction = expert.put(_view([0, 0, 0.06], held=0), goal)
    assert suction
    np.testing.assert_allclose(carried[:2], [0, 0])  # rises first
    at_goal = expert.put(_view([0, 0, 0.06], held=0), np.array([0, 0, 0.03]))
    assert not at_goal[1]
    wrong, suction = expert.put(_view([0.1, 0, 0.06], held=1), goal)
    assert not wrong.any()
    assert not suction


def test_places_are_on_and_beside_the_other_object():
    view = _view([0, 0, 0.06], held=0)
    on = expert.place_on(view, 1)
    np.testing.assert_allclose(on, [0.1, 0, 0.092])
    beside = expert.place_beside(view, 2)
    distance = np.linalg.norm(beside[:2] - view.centres[2, :2])
    assert distance == pytest.approx(0.085)
    assert np.linalg.norm(beside[:2] - view.centres[1, :2]) > 0.1
    assert beside[2] == pytest.approx(0.032)


def test_success_of_a_push_counts_its_direction():
    start = np.zeros(3)
    for task, direction in (("push-left", -1), ("push-right", 1)):
        assert tasks.is_pushed(TASKS[task], start, np.array([direction * 0.07, 0.02, 0]))
        assert not tasks.is_pushed(TASKS[task], start, np.array([direction * 0.05, 0, 0]))
        assert not tasks.is_pushed(TASKS[task], start, np.array([-direction * 0.07, 0, 0]))


def test_success_of_a_put_counts_distance_and_height():
    support = _boxes([0, 0, 0.03])[0]
    on, off, high, near, far = _boxes(
        [0.01, 0, 0.09], [0.05, 0, 0.09], [0, 0, 0.12], [0.09, 0, 0.03], [0.14, 0, 0.03]
    )
    assert tasks.is_put(TASKS["pick-on"], on, support)
    for bounds in (off, high, near):
        assert not tasks.is_put(TASKS["pick-on"], bounds, support)
    assert tasks.is_put(TASKS["pick-beside"], near, support)
    for bounds in (far, on):
        assert not tasks.is_put(TASKS["pick-beside"], bounds, support)


def test_reference_is_another_object_that_is_not_near():
    for number in range(100):
        layout = make_layout("A0", number)
        for target in range(5):
            assert tasks.choose_reference(TASKS["touch"], layout, target) == target
            for name in ("pick-on", "pick-beside"):
                reference = tasks.choose_reference(TASKS[name], layout, target)
                assert reference != target
                gaps = np.linalg.norm(layout.positions - layout.positions[target], axis=1)
                if name == "pick-beside" and gaps.max() > tasks.MIN_TRAVEL:
                    assert gaps[reference] > tasks.MIN_TRAVEL


def test_things_are_put_on_flat_objects():
    nouns = set()
    for number in range(60):
        layout = make_layout("A0", number)
        flat = [shown.noun in ("cube", "can") for shown in layout.objects]
        for target in range(5):
            reference = tasks.choose_reference(TASKS["pick-on"], layout, target)
            if any(is_flat for n, is_flat in enumerate(flat) if n != target):
                nouns.add(layout.objects[reference].noun)
    assert nouns == {"cube", "can"}


def test_wordings_name_the_objects_and_are_held_out():
    for task in TASKS.values():
        assert not set(task.instructions) & set(task.held_out)
        for text in task.instructions + task.held_out:
            assert text.count("{x}") == 1
            assert text.count("{y}") == (task.kind in ("on", "beside"))
            assert len(text.split()) <= 10
