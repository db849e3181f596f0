"""Counterfactual looks of recorded states."""

import functools
import io

import numpy as np
import pytest
from PIL import Image

from etcvla.etc import make_items
from etcvla.etc.annotation import project
from etcvla.sims.conditions import CONDITIONS, HELD_OUT, TRAIN, shared_side
from etcvla.sims.metaworld.environment import MetaWorld
from etcvla.sims.metaworld.rerender import record_expert, rerender
from etcvla.sims.rollout import rollout_expert
from etcvla.sims.seeds import demo_seed

NOISE = (0.0, 0.0)
SIZE = 64


@functools.cache
def recorded():
    env = MetaWorld("reach", image_size=SIZE)
    states = record_expert(env, demo_seed(0), NOISE)
    episode = rollout_expert(env, demo_seed(0), NOISE)
    plain = rerender(env, states, 0, stride=1)
    env.close()
    return states, episode, plain


@functools.cache
def shown(condition):
    env = MetaWorld("reach", image_size=SIZE, condition=condition)
    found = rerender(env, recorded()[0], 0, stride=8)
    env.close()
    return found


def test_sides_never_meet():
    assert shared_side(["evening", "clutter"]) == TRAIN
    assert shared_side(["night"]) == HELD_OUT
    with pytest.raises(ValueError, match="cannot mix train and held_out in one dataset"):
        shared_side(["evening", "night"])
    with pytest.raises(ValueError, match="unknown condition 'evning', did you mean 'evening'"):
        shared_side(["evning"])


def test_sides_share_nothing_that_is_seen():
    def looks(side):
        chosen = [condition for condition in CONDITIONS.values() if condition.side == side]
        things = [
            thing
            for condition in chosen
            for thing in (*condition.added, condition.swapped)
            if thing
        ]
        return {
            *(condition.camera for condition in chosen),
            *(condition.pattern for condition in chosen),
            *(condition.light for condition in chosen),
            *(shade for c in chosen for shade in c.shades),
            *(word for c in chosen for word, _ in c.colors),
            *(thing.noun for thing in things),
            *(thing.color for thing in things),
        } - {None, "", (1.0, 1.0, 1.0)}

    assert looks(TRAIN) and looks(HELD_OUT)
    assert not looks(TRAIN) & looks(HELD_OUT)


def test_without_a_condition_a_recorded_state_looks_as_it_did():
    _, episode, plain = recorded()
    assert plain.action is None
    for camera, frames in episode.images.items():
        assert frames == plain.images[camera]
    np.testing.assert_array_equal(plain.annotation.box[:, 0], episode.annotation.box[:, 0])
    np.testing.assert_array_equal(plain.annotation.box[::4, 1], episode.annotation.box[::4, 1])
    for name in ("gripper_position", "phase", "contact", "position"):
        np.testing.assert_allclose(
            getattr(plain.annotation, name), getattr(episode.annotation, name), atol=1e-6
        )


@pytest.mark.parametrize(
    "condition", ["checker_table", "high_camera", "recolored", "clutter", "ball_for_it"]
)
def test_a_condition_is_seen_and_items_speak_of_it(condition):
    plain, other = recorded()[2], shown(condition)
    assert other.images["front"][0] != plain.images["front"][0]
    facts = other.annotation
    np.testing.assert_allclose(facts.gripper_position[0], plain.annotation.gripper_position[0])
    items, dropped = make_items(facts, 0, absent=())
    assert not [reason for reason in dropped if "wrong" in reason]
    text = " ".join(item.question + item.answer for step in items for item in step)
    if condition == "recolored":
        assert facts.colors[1] == "orange" and "orange puck" in text and "red puck" not in text
    if condition == "clutter":
        assert facts.objects[2:] == ("cube", "can") and facts.colors[2:] == ("blue", "yellow")
        assert np.isfinite(facts.box[:, 0, 2:]).all() and (facts.visible[:, 0, 2:] > 0.5).all()
        low, high = facts.position[0, :2].min(0), facts.position[0, :2].max(0)
        assert not ((facts.position[0, 2:] > low) & (facts.position[0, 2:] < high)).all()
    if condition == "ball_for_it":
        assert facts.objects == ("goal marker", "ball") and "puck" not in text and "ball" in text
        assert np.isfinite(facts.box[:, 0, 1]).all()
        for jpeg, box in zip(
            other.images["front"], facts.box[:, 0, 1], strict=True
        ):  # the ball is where its box is
            y, x = (SIZE * (box[:2] + box[2:]) / 2).astype(int)
            red, green, _ = np.asarray(Image.open(io.BytesIO(jpeg)))[y, x].astype(int)
            assert green > red + 30


def test_added_things_lie_where_their_pixels_are():
    facts = shown("clutter").annotation
    for n in (2, 3):
        pixel = project(facts.camera_matrix[0, 0], facts.position[0, n])
        box = facts.box[0, 0, n]
        assert (box[:2] - 0.02 < pixel).all() and (pixel < box[2:] + 0.02).all()


def test_a_task_without_a_free_thing_cannot_swap():
    with pytest.raises(ValueError, match="none of puck, block"):
        MetaWorld("door-open", image_size=SIZE, condition="cube_for_it")
