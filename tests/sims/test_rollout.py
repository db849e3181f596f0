"""Demonstrations, with a world of one dimension in place of the simulator."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from etcvla.etc.annotation import STEP_FIELDS
from etcvla.sims.metaworld.tasks import TASKS
from etcvla.sims.rollout import rollout_expert


@dataclasses.dataclass
class Line:
    """The hand must get from 0 to 10 along x; the expert says how far it is, at most 1."""

    goal: float = 10.0
    task = TASKS["reach"]
    target, rate = 0, 80.0
    cameras, axes = ("front", "wrist"), ("right", "front", "up")
    objects, shapes = TASKS["reach"].objects, ("", "")

    def reset(self, seed):
        self.x, self.success, self.executed = 0.0, False, []

    def observe(self):
        image = np.full((16, 16, 3), 100, np.uint8)
        return {
            "images": {"front": image, "wrist": image},
            "state": np.array([self.x, 0, 0, 1], np.float32),
        }

    def expert_action(self):
        return np.array([np.clip(self.goal - self.x, -1, 1), 0, 0, 0.5], np.float32)

    def step(self, action):
        self.executed.append(action)
        self.x += action[0]
        self.success = self.success or abs(self.x - self.goal) < 0.5
        return self.success

    def rename_objects(self, text):
        return text

    def instruction(self, rng=None):
        return str(rng.choice(self.task.instructions))

    def facts(self, all_views=True):
        sizes = {"C": 2, "N": 2}
        facts = {
            name: np.zeros([sizes.get(axis, axis) for axis in axes])
            for name, axes in STEP_FIELDS.items()
        }
        return {**facts, "gripper_position": np.array([self.x, 0, 0])}


def test_the_recorded_action_is_the_experts_in_the_state_it_was_pushed_to():
    env = Line()
    episode = rollout_expert(env, seed=1, noise=(0.2, 0.2))
    executed = np.array(env.executed)
    expected = np.clip(env.goal - episode.state[:, 0], -1, 1)
    np.testing.assert_allclose(episode.action[:, 0], expected, atol=1e-5)
    pushed = executed - episode.action[: len(executed)]
    assert 0.05 < pushed[:, :3].std() < 0.5
    assert (pushed[:, 3] == 0).all()  # the fingers are left alone


def test_all_parts_have_the_same_steps_and_images_are_jpeg():
    episode = rollout_expert(Line(), seed=1)
    steps = len(episode.action)
    assert steps == len(episode.state) == len(episode.annotation)
    assert {name: len(frames) for name, frames in episode.images.items()} == {
        "front": steps,
        "wrist": steps,
    }
    image = Image.open(io.BytesIO(episode.images["front"][0]))
    assert (image.format, image.size) == ("JPEG", (16, 16))
    np.testing.assert_allclose(
        episode.annotation.gripper_position[:, 0], episode.state[:, 0], atol=1e-6
    )


@pytest.mark.parametrize("after", [0, 5])
def test_steps_after_the_success_are_kept(after):
    episode = rollout_expert(Line(), seed=3, noise=(0, 0), steps_after=after)
    reached = np.flatnonzero(np.abs(episode.state[:, 0] - 10) < 0.5)[0]
    assert len(episode.state) == reached + 1 + after


def test_a_failure_is_no_demonstration():
    assert rollout_expert(Line(goal=300.0), seed=0, max_steps=50) is None


def test_an_episode_is_a_function_of_its_seed():
    first, again, other = (rollout_expert(Line(), seed=seed) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first.state, again.state)
    assert first.annotation.instruction == again.annotation.instruction
    assert not np.array_equal(first.state[:8], other.state[:8])
