"""Meta-World: layouts, scene variants, expert and oracle.

Tests share environments, because creating one takes half a second.
"""

import functools

import numpy as np
import pytest

from etcvla.etc.annotation import STEP_FIELDS, project
from etcvla.sims.metaworld.environment import CAMERAS, SCENES, MetaWorld
from etcvla.sims.metaworld.tasks import DEMO_TASKS, TASKS
from etcvla.sims.rollout import rollout_expert
from etcvla.sims.seeds import EVAL_SEED_BASE, demo_seed, eval_seed


@functools.cache
def _environment(task: str, scene: str = "source") -> MetaWorld:
    return MetaWorld(task, scene, image_size=64)


def _run_expert(env: MetaWorld, steps: int = 200) -> int:
    """Return the number of steps until the expert succeeds; -1 if it does not."""
    for step in range(steps):
        if env.step(env.expert_action()):
            return step + 1
    return -1


def _assert_same_observation(one: MetaWorld, other: MetaWorld) -> None:
    observation = one.observe()
    expected = other.observe()
    for camera in CAMERAS:
        np.testing.assert_array_equal(observation["images"][camera], expected["images"][camera])
    np.testing.assert_array_equal(observation["state"], expected["state"])


@pytest.mark.parametrize("task", ["reach", "drawer-close", "door-open", "sweep-into"])
def test_reset_depends_only_on_the_seed(task):
    env = _environment(task)
    fresh = MetaWorld(task, image_size=64)
    env.reset(3)
    _run_expert(env, 60)
    env.reset(7)
    fresh.reset(7)
    for _ in range(3):
        _assert_same_observation(env, fresh)
        env.step(env.expert_action())
        fresh.step(fresh.expert_action())
    fresh.close()


def test_seeds_draw_different_layouts():
    env = _environment("reach")
    positions = []
    for seed in range(4):
        env.reset(seed)
        positions.append(env.facts()["position"][0])
    assert np.ptp(positions, axis=0)[:2].min() > 0.02


@pytest.mark.parametrize("scene", SCENES)
def test_drawer_tasks_start_alike_and_differ_in_the_instruction(scene):
    opening = _environment("drawer-open", scene)
    closing = _environment("drawer-close", scene)
    for seed in (demo_seed(0), eval_seed(5)):
        opening.reset(seed)
        closing.reset(seed)
        _assert_same_observation(opening, closing)
    assert not set(TASKS["drawer-open"].instructions) & set(TASKS["drawer-close"].instructions)


def test_drawer_starts_half_open_and_both_experts_succeed():
    for task, direction in {"drawer-open": -1, "drawer-close": 1}.items():
        env = _environment(task)
        env.reset(2)
        assert env._data.joint("goal_slidey").qpos[0] == pytest.approx(-0.1, abs=1e-3)
        start = env.facts()["position"][env.target]
        assert _run_expert(env) > 0
        moved = env.facts()["position"][env.target] - start
        assert direction * moved[1] > 0.05


@pytest.mark.parametrize("task", DEMO_TASKS)
def test_experts_succeed(task):
    env = _environment(task)
    for trial in range(3):
        env.reset(eval_seed(trial))
        assert 5 < _run_expert(env) < 150


def test_success_stays_until_reset():
    env = _environment("drawer-close")
    env.reset(0)
    assert not env.success
    _run_expert(env)
    for _ in range(10):
        assert env.step(np.array([0, -1, 1, -1]))
    env.reset(0)
    assert not env.success


def test_actions_are_clipped():
    env = _environment("reach")
    states = []
    for size in (1, 50):
        env.reset(0)
        for _ in range(5):
            env.step(np.full(4, size))
        states.append(env.state())
    np.testing.assert_array_equal(*states)


def test_state_contains_only_the_hand():
    env = _environment("reach")
    rows = []
    for seed in range(3):
        env.reset(seed)
        rows.append(env.state())
    assert rows[0].shape == (4,)
    assert rows[0].dtype == np.float32
    np.testing.assert_allclose(rows[0], rows[1], atol=2e-3)  # layouts differ, the hand does not
    np.testing.assert_allclose(rows[0], rows[2], atol=2e-3)
    env.step(np.array([1, 0, 0, 0]))
    env.step(np.array([1, 0, 0, 0]))
    assert env.state()[0] > rows[2][0]


def test_scene_variants_differ_in_images_but_not_in_states():
    images = []
    states = []
    for scene in SCENES:
        env = _environment("door-open", scene)
        env.reset(1)
        observation = env.observe()
        images.append(observation["images"]["front"].astype(int))
        states.append(observation["state"])
    assert np.abs(images[0] - images[1]).mean() > 20
    np.testing.assert_array_equal(*states)


def test_markers_are_rendered_only_for_tasks_that_name_them():
    def _max_greenness(task):
        env = _environment(task)
        env.reset(1)
        image = env.observe()["images"]["front"].astype(int)
        return (image[..., 1] - image[..., [0, 2]].max(-1)).max()

    assert _max_greenness("reach") > 100
    for task in ("door-open", "button-press-topdown", "window-close"):
        assert _max_greenness(task) < 40


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("task", DEMO_TASKS)
def test_facts_are_consistent_and_the_workspace_is_in_view(task, scene):
    env = _environment(task, scene)
    objects = len(env.task.objects)
    for seed in (0, 1):
        env.reset(seed)
        facts = env.facts()
        assert set(facts) == set(STEP_FIELDS)
        front = facts["box"][0]
        assert np.isfinite(front).all()
        assert (front[:, 2:] > front[:, :2]).all()
        assert ((front >= 0) & (front <= 1)).all()
        assert (facts["visible"][0] > 0.2).all()
        assert (facts["visible"][0] <= 1).all()
        wrist = facts["box"][1]
        in_wrist = np.isfinite(wrist[:, 0])
        assert (facts["visible"][1, ~in_wrist] == 0).all()
        assert np.isnan(facts["visible"][1, in_wrist]).all()  # the visible share is unknown
        assert ((wrist[in_wrist] >= 0) & (wrist[in_wrist] <= 1)).all()
        assert ((facts["gripper_pixel"][0] > 0) & (facts["gripper_pixel"][0] < 1)).all()
        pixels = project(facts["camera_matrix"][:1], facts["position"])
        margin = 2 / 64
        assert ((pixels > front[:, :2] - margin) & (pixels < front[:, 2:] + margin)).all()
        assert facts["contact"].shape == (objects,)
        assert facts["phase"] == 0


@pytest.mark.parametrize("task", ["reach", "door-open", "drawer-open"])
def test_target_is_in_its_wrist_box_after_success(task):
    env = _environment(task)
    env.reset(0)
    _run_expert(env)
    facts = env.facts()
    pixel = project(facts["camera_matrix"][1], facts["position"][env.target])
    pixel = pixel.clip(0, 1)  # the object may be cut off
    box = facts["box"][1, env.target]
    assert (box[:2] - 2 / 64 < pixel).all()
    assert (pixel < box[2:] + 2 / 64).all()


def test_contact_with_unnamed_geoms_counts_for_the_named_part():
    env = _environment("handle-pull-side")  # the gripper lifts the handle by its unnamed arm
    env.reset(0)
    touched = []
    for _ in range(60):
        env.step(env.expert_action())
        touched.append(env.facts(all_views=False)["contact"][0])
    assert np.mean(touched[30:]) > 0.5
    handle, drawer = _environment("drawer-open")._oracle.objects[:2]
    assert set(handle.solid_geoms) < set(drawer.solid_geoms)


def test_gripper_pixel_is_between_the_fingers():
    env = _environment("reach")
    env.reset(0)
    facts = env.facts()
    labels = env._renderer.labels(env.scene.camera)
    names = ("rightpad_geom", "leftpad_geom", "rightclaw_it", "leftclaw_it")
    fingers = [env._model.geom(name).id for name in names]
    rows, columns = np.nonzero(np.isin(labels, fingers))
    y, x = facts["gripper_pixel"][0] * 64
    assert columns.min() - 1 <= x <= columns.max() + 1
    assert rows.min() - 1 <= y <= rows.max() + 3  # the grasp centre is at the finger tips


def test_visible_share_drops_when_the_gripper_covers_the_button():
    env = _environment("button-press-topdown")
    env.reset(0)
    before = env.facts()["visible"][0, 0]
    _run_expert(env)
    after = env.facts()["visible"][0, 0]
    assert before > 0.85
    assert after < before - 0.1


def test_demonstration_has_consistent_phases_contacts_and_positions():
    env = _environment("drawer-open")
    episode = rollout_expert(env, demo_seed(0))
    facts = episode.annotation
    assert facts.success
    assert facts.rate == pytest.approx(80)
    assert facts.instruction in env.task.instructions
    assert facts.objects[facts.target] == "drawer handle"
    assert (np.diff(facts.phase) >= 0).all()
    assert set(facts.phase) == {0, 1}
    grasped = np.flatnonzero(facts.phase == 1)[0]
    assert facts.contact[: grasped - 1, facts.target].sum() == 0
    assert facts.contact[grasped - 1 :, facts.target].sum() > 0
    handle = facts.position[:, facts.target, 1]
    assert np.ptp(handle[: grasped - 1]) < 0.01
    assert handle[grasped - 1] - handle[-1] > 0.06
    assert ((facts.gripper_open >= 0) & (facts.gripper_open <= 1)).all()


def test_pick_and_place_has_three_phases():
    env = _environment("pick-place")
    episode = rollout_expert(env, demo_seed(1), noise=(0, 0))
    assert sorted(set(episode.annotation.phase)) == [0, 1, 2]
    puck = episode.annotation.position[:, episode.annotation.target]
    carried = episode.annotation.phase == 2
    assert np.linalg.norm(puck[carried][0] - puck[0]) == pytest.approx(0.025, abs=0.015)


def test_instruction_is_canonical_or_a_random_paraphrase():
    env = _environment("reach")
    assert env.instruction() == TASKS["reach"].instructions[0]
    drawn = {env.instruction(np.random.default_rng(i)) for i in range(50)}
    assert drawn == set(TASKS["reach"].instructions)


def test_seeds_of_demonstrations_and_evaluations_are_disjoint():
    assert demo_seed(999_999, 999) < EVAL_SEED_BASE <= eval_seed(0)
    seeds = set()
    for episode in range(50):
        seeds |= {demo_seed(episode, attempt) for attempt in range(20)}
    assert len(seeds) == 1000
    for episode, attempt in ((1_000_000, 0), (0, 1000), (-1, 0)):
        with pytest.raises(ValueError, match="below"):
            demo_seed(episode, attempt)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("drawer-opne",), "unknown task 'drawer-opne', did you mean 'drawer-open'"),
        (("reach", "sorce"), "unknown scene 'sorce', did you mean 'source'"),
    ],
)
def test_unknown_name_is_an_error_with_the_nearest_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        MetaWorld(*arguments)
