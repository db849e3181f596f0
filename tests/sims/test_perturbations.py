"""Perturbations of Meta-World's scenes: what changes, what does not, and the same again."""

import numpy as np
import pytest

from etcvla.sims.episode_metrics import EpisodeMetrics
from etcvla.sims.metaworld.environment import MetaWorld
from etcvla.sims.perturbations import AXES, STRENGTHS, Perturbation
from etcvla.sims.seeds import eval_seed

SEED = eval_seed(3)


@pytest.fixture(scope="module")
def env():
    env = MetaWorld("pick-place", image_size=48)
    yield env
    env.close()


def look(env, name, seed=SEED, step=0):
    changed = Perturbation.parse(name)
    changed.reset(env, seed)
    return changed.perturb_observation(env.observe(), (seed, step))


def same(one, other):
    return (one["state"] == other["state"]).all() and all(
        (one["images"][camera] == other["images"][camera]).all() for camera in one["images"]
    )


def difference(one, other):
    return float(np.abs(one["images"]["front"].astype(int) - other["images"]["front"]).mean())


@pytest.mark.parametrize("axis", [axis for axis in AXES if axis != "language"])
def test_an_axis_changes_what_is_seen_by_its_seed_and_leaves_nothing_behind(env, axis):
    plain, seen = look(env, ""), []
    for strength in STRENGTHS:
        name = f"{axis}:{strength}"
        seen.append(look(env, name))
        assert difference(seen[-1], plain) > 0.3
        assert same(look(env, name), seen[-1])
    assert difference(seen[2], plain) > difference(seen[0], plain)
    assert not same(look(env, f"{axis}:1", eval_seed(4)), seen[0])
    assert same(look(env, ""), plain)
    assert (axis == "robot") != (seen[2]["state"] == plain["state"]).all()


def test_the_hand_starts_elsewhere_and_never_lower(env):
    start = look(env, "")["state"][:3]
    for strength, distance in zip(STRENGTHS, (0.02, 0.04, 0.07), strict=True):
        moved = look(env, f"robot:{strength}")["state"][:3] - start
        assert np.linalg.norm(moved) == pytest.approx(distance, abs=0.012) and moved[2] > -0.005


def test_things_that_lie_free_are_moved(env):
    def puck():
        return env._oracle.objects[env.target].position(env._data)

    look(env, "")
    start = puck()
    look(env, "layout:1")
    np.testing.assert_allclose(puck(), start, atol=1e-6)
    look(env, "layout:3")
    assert np.linalg.norm((puck() - start)[:2]) == pytest.approx(0.04, abs=1e-3)
    assert len(env._renderer.extras) == 5
    look(env, "")
    assert not env._renderer.extras


def test_noise_is_of_the_step(env):
    assert not same(look(env, "noise:1", step=0), look(env, "noise:1", step=1))


def test_paraphrases_say_the_same_in_other_words():
    instruction = "Pick up the red puck and place it on the shelf."
    said = {
        strength: [
            Perturbation.parse(f"language:{strength}").rewrite_instruction(
                instruction, eval_seed(i)
            )
            for i in range(20)
        ]
        for strength in STRENGTHS
    }
    for strength, texts in said.items():
        assert len(set(texts)) > 2 and all(
            "red puck" in text and "the shelf" in text for text in texts
        )
        assert instruction not in texts
        assert texts[0] == Perturbation.parse(f"language:{strength}").rewrite_instruction(
            instruction, eval_seed(0)
        )
    assert all("Pick up" in text for text in said[1]) and not any(
        "pick" in text.lower() for text in said[2]
    )
    assert min(map(len, said[3])) > max(map(len, said[2]))
    assert Perturbation.parse("camera:1").rewrite_instruction(instruction, SEED) == instruction


def test_the_judge_sees_the_experts_subtasks_and_what_it_reaches_for(env):
    env.reset(SEED)
    metrics, progress = EpisodeMetrics(env), []
    for _ in range(150):
        env.step(env.expert_action())
        metrics.update()
        progress.append(metrics.progress)
        if env.success:
            break
    assert env.success and metrics.intention and progress == sorted(progress)
    assert {0.0, 1.0} < set(progress) <= {0.0, 1 / 3, 2 / 3, 1.0}


def test_to_touch_the_wrong_thing_first_is_no_intention():
    class Scripted:
        goal_objects, success, touches = [1], False, iter([[1, 0], [1, 0], [0, 0], [1, 0], [0, 1]])

        def touched(self):
            return np.array(next(self.touches), bool)

        def progress(self):
            return 0.5

    metrics = EpisodeMetrics(Scripted())
    metrics.update()
    assert metrics.intention is None  # touched since the reset
    for _ in range(3):
        metrics.update()
    assert metrics.intention is False and metrics.progress == 0.5
