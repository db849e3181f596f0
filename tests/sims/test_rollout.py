"""Demonstrations, recorded in a one-dimensional environment without a simulator."""

import dataclasses
import io

import numpy as np
from PIL import Image

from etcvla.etc.annotation import STEP_FIELDS
from etcvla.sims.metaworld.tasks import TASKS
from etcvla.sims.rollout import rollout_expert


@dataclasses.dataclass
class LineEnvironment:
    """The hand has to move from 0 to 10 along x. The expert's action is the distance, at most 1."""

    goal: float = 10.0
    task = TASKS["reach"]
    target = 0
    rate = 80.0
    cameras = ("front", "wrist")
    axes = ("right", "front", "up")
    objects = TASKS["reach"].objects
    shapes = ("", "")

    def reset(self, seed):
        """Start at 0."""
        self.x = 0.0
        self.success = False
        self.executed = []

    def observe(self):
        """Return gray images."""
        image = np.full((16, 16, 3), 100, np.uint8)
        state = np.array([self.x, 0, 0, 1], np.float32)
        return {"images": {"front": image, "wrist": image}, "state": state}

    def expert_action(self):
        """Move towards the goal."""
        return np.array([np.clip(self.goal - self.x, -1, 1), 0, 0, 0.5], np.float32)

    def step(self, action):
        """Move by the first dimension of the action."""
        self.executed.append(action)
        self.x += action[0]
        self.success = self.success or abs(self.x - self.goal) < 0.5
        return self.success

    @property
    def done(self):
        return self.success

    def rename_objects(self, text):
        """Return the text itself."""
        return text

    def instruction(self, rng=None):
        """Return a random instruction."""
        return str(rng.choice(self.task.instructions))

    def facts(self, all_views=True):
        """Return zeros, except for the gripper's position."""
        sizes = {"C": 2, "N": 2}
        facts = {}
        for name, axes in STEP_FIELDS.items():
            shape = [sizes.get(axis, axis) for axis in axes]
            facts[name] = np.zeros(shape)
        return {**facts, "gripper_position": np.array([self.x, 0, 0])}


def test_recorded_actions_are_the_experts_without_noise():
    env = LineEnvironment()
    episode = rollout_expert(env, seed=1, noise=(0.2, 0.2))
    expected = np.clip(env.goal - episode.state[:, 0], -1, 1)
    np.testing.assert_allclose(episode.action[:, 0], expected, atol=1e-5)
    executed = np.array(env.executed)
    noise = executed - episode.action[: len(executed)]
    assert 0.05 < noise[:, :3].std() < 0.5
    assert (noise[:, 3] == 0).all()  # no noise on the gripper


def test_episode_has_one_jpeg_per_step_and_camera():
    episode = rollout_expert(LineEnvironment(), seed=1)
    steps = len(episode.action)
    assert steps == len(episode.state) == len(episode.annotation)
    assert len(episode.images["front"]) == len(episode.images["wrist"]) == steps
    image = Image.open(io.BytesIO(episode.images["front"][0]))
    assert (image.format, image.size) == ("JPEG", (16, 16))
    positions = episode.annotation.gripper_position[:, 0]
    np.testing.assert_allclose(positions, episode.state[:, 0], atol=1e-6)


def test_five_steps_after_success_are_recorded():
    episode = rollout_expert(LineEnvironment(), seed=3, noise=(0, 0))
    is_reached = np.abs(episode.state[:, 0] - 10) < 0.5
    assert len(episode.state) == np.argmax(is_reached) + 1 + 5


def test_failed_episode_returns_none():
    assert rollout_expert(LineEnvironment(goal=300.0), seed=0, max_steps=50) is None


def test_same_seed_repeats_the_episode():
    first = rollout_expert(LineEnvironment(), seed=4)
    again = rollout_expert(LineEnvironment(), seed=4)
    other = rollout_expert(LineEnvironment(), seed=5)
    np.testing.assert_array_equal(first.state, again.state)
    assert first.annotation.instruction == again.annotation.instruction
    assert not np.array_equal(first.state[:8], other.state[:8])
