"""Recorded Meta-World states rendered again under conditions."""

import functools
import io

import numpy as np
import pytest
from PIL import Image

from etcvla.errors import UserError
from etcvla.etc import make_items
from etcvla.etc.annotation import project
from etcvla.sims.conditions import (
    CONDITIONS,
    HELD_OUT,
    TRAIN,
    CameraMove,
    Orbit,
    combine,
    shared_side,
)
from etcvla.sims.metaworld.environment import MetaWorld
from etcvla.sims.metaworld.rerender import record_expert, rerender
from etcvla.sims.rollout import rollout_expert
from etcvla.sims.seeds import demo_seed

NO_NOISE = (0.0, 0.0)
SIZE = 64


@functools.cache
def _recorded():
    """Return states of a demonstration, its recorded episode, and the rerendered states."""
    env = MetaWorld("reach", image_size=SIZE)
    states = record_expert(env, demo_seed(0), NO_NOISE)
    episode = rollout_expert(env, demo_seed(0), NO_NOISE)
    rerendered = rerender(env, states, 0, stride=1)
    env.close()
    return states, episode, rerendered


@functools.cache
def _rerendered(condition):
    env = MetaWorld("reach", image_size=SIZE, condition=condition)
    states, _, _ = _recorded()
    episode = rerender(env, states, 0, stride=8)
    env.close()
    return episode


def _questions_and_answers(annotation):
    items, dropped = make_items(annotation, 0, absent=())
    assert not [reason for reason in dropped if "wrong" in reason]
    texts = []
    for step in items:
        texts += [item.question + item.answer for item in step]
    return " ".join(texts)


def test_training_and_held_out_conditions_cannot_be_mixed():
    assert shared_side(["evening", "clutter"]) == TRAIN
    assert shared_side(["night"]) == HELD_OUT
    with pytest.raises(UserError, match="cannot mix train and held_out in one dataset"):
        shared_side(["evening", "night"])
    with pytest.raises(ValueError, match="unknown condition 'evning', did you mean 'evening'"):
        shared_side(["evning"])


def _visible_changes(side):
    changes = set()
    for condition in CONDITIONS.values():
        if condition.side == side:
            added = [*condition.added, condition.swapped]
            changes |= {condition.camera, condition.pattern, condition.light, *condition.shades}
            changes |= set(condition.colors)
            changes |= {solid.noun for solid in added if solid}
            changes |= {solid.color for solid in added if solid}
    return changes - {None, "", (1.0, 1.0, 1.0)}


def test_training_and_held_out_conditions_share_nothing_visible():
    assert _visible_changes(TRAIN)
    assert _visible_changes(HELD_OUT)
    assert not _visible_changes(TRAIN) & _visible_changes(HELD_OUT)


def test_rerendering_without_a_condition_repeats_the_episode():
    _, episode, rerendered = _recorded()
    assert rerendered.action is None
    for camera, frames in episode.images.items():
        assert frames == rerendered.images[camera]
    before = episode.annotation
    after = rerendered.annotation
    np.testing.assert_array_equal(after.box[:, 0], before.box[:, 0])
    np.testing.assert_array_equal(after.box[::4, 1], before.box[::4, 1])
    for name in ("gripper_position", "phase", "contact", "position"):
        np.testing.assert_allclose(getattr(after, name), getattr(before, name), atol=1e-6)


@pytest.mark.parametrize(
    "condition", ["checker_table", "high_camera", "recolored", "clutter", "ball_for_it"]
)
def test_condition_changes_the_images_but_not_the_states(condition):
    _, _, original = _recorded()
    changed = _rerendered(condition)
    assert changed.images["front"][0] != original.images["front"][0]
    positions = changed.annotation.gripper_position
    np.testing.assert_allclose(positions[0], original.annotation.gripper_position[0])
    assert _questions_and_answers(changed.annotation)


def test_questions_use_the_new_color_of_a_recolored_object():
    annotation = _rerendered("recolored").annotation
    assert annotation.colors[1] == "orange"
    text = _questions_and_answers(annotation)
    assert "orange puck" in text
    assert "red puck" not in text


def test_added_objects_are_visible_and_out_of_the_way():
    annotation = _rerendered("clutter").annotation
    assert annotation.objects[2:] == ("cube", "can")
    assert annotation.colors[2:] == ("blue", "yellow")
    assert np.isfinite(annotation.box[:, 0, 2:]).all()
    assert (annotation.visible[:, 0, 2:] > 0.5).all()
    own = annotation.position[0, :2]
    added = annotation.position[0, 2:]
    assert not ((added > own.min(0)) & (added < own.max(0))).all()
    for n in (2, 3):
        pixel = project(annotation.camera_matrix[0, 0], annotation.position[0, n])
        box = annotation.box[0, 0, n]
        assert (box[:2] - 0.02 < pixel).all()
        assert (pixel < box[2:] + 0.02).all()


def test_swapped_object_is_rendered_in_its_box_and_named_in_questions():
    episode = _rerendered("ball_for_it")
    annotation = episode.annotation
    assert annotation.objects == ("goal marker", "ball")
    text = _questions_and_answers(annotation)
    assert "ball" in text
    assert "puck" not in text
    boxes = annotation.box[:, 0, 1]
    assert np.isfinite(boxes).all()
    for jpeg, box in zip(episode.images["front"], boxes, strict=True):
        y, x = (SIZE * (box[:2] + box[2:]) / 2).astype(int)
        red, green, _ = np.asarray(Image.open(io.BytesIO(jpeg)))[y, x].astype(int)
        assert green > red + 30


def test_task_without_a_free_object_cannot_swap():
    with pytest.raises(UserError, match="none of puck, block"):
        MetaWorld("door-open", image_size=SIZE, condition="cube_for_it")


def test_camera_moves_around_its_point_and_stays_above():
    orbit = Orbit(lookat=(0, 0, 0), distance=2.0, azimuth=10, elevation=-60)
    moved = orbit.moved(CameraMove(azimuth=15, elevation=20, distance=0.5))
    assert moved == Orbit(lookat=(0, 0, 0), distance=1.0, azimuth=25, elevation=-40)
    assert orbit.moved(CameraMove()) == orbit
    assert orbit.moved(CameraMove(elevation=-50)).elevation == -85
    assert orbit.moved(CameraMove(elevation=80)).elevation == -5


def test_combined_condition_has_the_changes_of_both():
    combined = combine(CONDITIONS["evening"], CONDITIONS["dotted_table"])
    assert combined.light == CONDITIONS["evening"].light
    assert combined.pattern == "dots"
    assert combined.side == HELD_OUT
    assert combine(CONDITIONS["evening"], CONDITIONS["night"]).light == CONDITIONS["night"].light
