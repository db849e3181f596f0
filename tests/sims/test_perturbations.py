"""Perturbations of Meta-World's scenes: what changes, what stays, and that they repeat."""

import numpy as np
import pytest

from etcvla.sims.episode_metrics import EpisodeMetrics
from etcvla.sims.metaworld.environment import MetaWorld
from etcvla.sims.perturbations import AXES, STRENGTHS, Perturbation
from etcvla.sims.seeds import eval_seed
from etcvla.sims.task import ObjectSpec

SEED = eval_seed(3)


@pytest.fixture(scope="module")
def env():
    """One environment for all tests, which restores itself at every reset."""
    env = MetaWorld("pick-place", image_size=48)
    yield env
    env.close()


def _observe(env, name, seed=SEED, step=0):
    perturbation = Perturbation.parse(name)
    perturbation.reset(env, seed)
    return perturbation.perturb_observation(env.observe(), (seed, step))


def _are_equal(one, other):
    if (one["state"] != other["state"]).any():
        return False
    for camera, image in one["images"].items():
        if (image != other["images"][camera]).any():
            return False
    return True


def _difference(one, other):
    front = one["images"]["front"].astype(int)
    return float(np.abs(front - other["images"]["front"]).mean())


@pytest.mark.parametrize("axis", [axis for axis in AXES if axis != "language"])
def test_perturbation_depends_on_the_seed_and_is_undone(env, axis):
    original = _observe(env, "")
    perturbed = []
    for strength in STRENGTHS:
        name = f"{axis}:{strength}"
        perturbed.append(_observe(env, name))
        assert _difference(perturbed[-1], original) > 0.3
        assert _are_equal(_observe(env, name), perturbed[-1])
    weak, _, strong = perturbed
    assert _difference(strong, original) > _difference(weak, original)
    assert not _are_equal(_observe(env, f"{axis}:1", eval_seed(4)), weak)
    assert _are_equal(_observe(env, ""), original)
    same_state = (strong["state"] == original["state"]).all()
    assert same_state == (axis != "robot")


def test_robot_perturbation_moves_the_hand_but_not_down(env):
    start = _observe(env, "")["state"][:3]
    for strength, distance in zip(STRENGTHS, (0.02, 0.04, 0.07), strict=True):
        offset = _observe(env, f"robot:{strength}")["state"][:3] - start
        assert np.linalg.norm(offset) == pytest.approx(distance, abs=0.012)
        assert offset[2] > -0.005


def test_layout_perturbation_moves_free_objects_and_adds_others(env):
    def _puck():
        return env._oracle.objects[env.target].position()

    _observe(env, "")
    start = _puck()
    _observe(env, "layout:1")
    np.testing.assert_allclose(_puck(), start, atol=1e-6)
    _observe(env, "layout:3")
    assert np.linalg.norm((_puck() - start)[:2]) == pytest.approx(0.04, abs=1e-3)
    assert len(env._renderer.extras) == 5
    _observe(env, "")
    assert not env._renderer.extras


def test_noise_differs_between_steps(env):
    assert not _are_equal(_observe(env, "noise:1", step=0), _observe(env, "noise:1", step=1))


def _paraphrases(instruction, strength):
    perturbation = Perturbation.parse(f"language:{strength}")
    return [perturbation.rewrite_instruction(instruction, eval_seed(i)) for i in range(20)]


def test_paraphrases_keep_the_objects_and_repeat():
    instruction = "Pick up the red puck and place it on the shelf."
    for strength in STRENGTHS:
        texts = _paraphrases(instruction, strength)
        assert texts == _paraphrases(instruction, strength)
        assert len(set(texts)) > 2
        assert instruction not in texts
        for text in texts:
            assert "red puck" in text
            assert "the shelf" in text


def test_strength_decides_what_a_paraphrase_changes():
    instruction = "Pick up the red puck and place it on the shelf."
    polite, other_verbs, both = [_paraphrases(instruction, strength) for strength in STRENGTHS]
    assert all("Pick up" in text for text in polite)
    assert not any("pick" in text.lower() for text in other_verbs)
    assert min(map(len, both)) > max(map(len, other_verbs))
    camera = Perturbation.parse("camera:1")
    assert camera.rewrite_instruction(instruction, SEED) == instruction


def test_episode_metrics_of_the_expert_reach_every_subtask(env):
    env.reset(SEED)
    metrics = EpisodeMetrics(env)
    progress = []
    while not env.success and len(progress) < 150:
        env.step(env.expert_action())
        metrics.update()
        progress.append(metrics.progress)
    assert env.success
    assert metrics.intention
    assert progress == sorted(progress)
    assert {0.0, 1.0} < set(progress) <= {0.0, 1 / 3, 2 / 3, 1.0}


class ScriptedContacts:
    """An environment with given contacts of two objects. The second object is the goal's."""

    objects = (ObjectSpec("cup", "red"), ObjectSpec("bowl", "blue"))
    goal_objects = (1,)
    success = False

    def __init__(self, contacts):
        self._contacts = iter(contacts)

    def touched(self):
        """Return the next contacts."""
        return np.array(next(self._contacts), bool)

    def progress(self):
        """Return a constant."""
        return 0.5


def test_touching_another_object_first_is_no_intention():
    env = ScriptedContacts([[1, 0], [1, 0], [0, 0], [1, 0], [0, 1]])
    metrics = EpisodeMetrics(env)
    metrics.update()
    assert metrics.intention is None  # this contact exists since the reset
    assert metrics.first_touched == ""
    for _ in range(3):
        metrics.update()
    assert metrics.intention is False
    assert metrics.first_touched == "cup"
    assert metrics.progress == 0.5


def test_touching_two_objects_at_once_counts_as_the_goals():
    metrics = EpisodeMetrics(ScriptedContacts([[0, 0], [1, 1], [1, 0]]))
    metrics.update()
    metrics.update()
    assert metrics.intention is True
    assert metrics.first_touched == "bowl"
