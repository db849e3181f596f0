"""Meta-World itself: layouts, looks, expert and oracle. Environments are shared, for each costs half a second."""

import functools

import numpy as np
import pytest

from etcvla.etc.annotation import STEP_FIELDS, project
from etcvla.sims.metaworld.environment import CAMERAS, SCENES, MetaWorld
from etcvla.sims.metaworld.tasks import DEMO_TASKS, TASKS
from etcvla.sims.rollout import rollout_expert
from etcvla.sims.seeds import EVAL_SEED_BASE, demo_seed, eval_seed


@functools.cache
def make(task: str, scene: str = "source") -> MetaWorld:
    return MetaWorld(task, scene, image_size=64)


def drive(env: MetaWorld, steps: int = 200) -> int:
    """Lets the expert act; the number of steps until success, or -1."""
    for step in range(steps):
        if env.step(env.expert_action()):
            return step + 1
    return -1


@pytest.mark.parametrize("task", ["reach", "drawer-close", "door-open", "sweep-into"])
def test_a_seed_fixes_everything_whatever_happened_before(task):
    env, fresh = make(task), MetaWorld(task, image_size=64)
    env.reset(3)
    drive(env, 60)
    env.reset(7)
    fresh.reset(7)
    for _ in range(3):
        one, other = env.observe(), fresh.observe()
        for camera in CAMERAS:
            np.testing.assert_array_equal(one["images"][camera], other["images"][camera])
        np.testing.assert_array_equal(one["state"], other["state"])
        env.step(env.expert_action())
        fresh.step(fresh.expert_action())
    fresh.close()


def test_seeds_make_different_layouts():
    env = make("reach")
    places = []
    for seed in range(4):
        env.reset(seed)
        places.append(env.facts()["position"][0])
    assert np.ptp(places, axis=0)[:2].min() > 0.02


@pytest.mark.parametrize("scene", SCENES)
def test_the_drawer_pair_starts_alike_and_only_the_instruction_differs(scene):
    opening, closing = make("drawer-open", scene), make("drawer-close", scene)
    for seed in (demo_seed(0), eval_seed(5)):
        opening.reset(seed)
        closing.reset(seed)
        one, other = opening.observe(), closing.observe()
        for camera in CAMERAS:
            np.testing.assert_array_equal(one["images"][camera], other["images"][camera])
        np.testing.assert_array_equal(one["state"], other["state"])
    assert not set(TASKS["drawer-open"].instructions) & set(TASKS["drawer-close"].instructions)


def test_the_drawer_starts_half_open_and_both_experts_succeed():
    for task, direction in {"drawer-open": -1, "drawer-close": 1}.items():
        env = make(task)
        env.reset(2)
        assert env._data.joint("goal_slidey").qpos[0] == pytest.approx(-0.1, abs=1e-3)
        start = env.facts()["position"][env.target]
        assert drive(env) > 0
        moved = env.facts()["position"][env.target] - start
        assert direction * moved[1] > 0.05


@pytest.mark.parametrize("task", DEMO_TASKS)
def test_experts_succeed(task):
    env = make(task)
    for trial in range(3):
        env.reset(eval_seed(trial))
        assert 5 < drive(env) < 150


def test_success_is_latched_and_cleared_by_reset():
    env = make("drawer-close")
    env.reset(0)
    assert not env.success
    drive(env)
    for _ in range(10):
        assert env.step(np.array([0, -1, 1, -1]))
    env.reset(0)
    assert not env.success


def test_actions_are_clipped():
    env, states = make("reach"), []
    for size in (1, 50):
        env.reset(0)
        for _ in range(5):
            env.step(np.full(4, size))
        states.append(env.state())
    np.testing.assert_array_equal(*states)


def test_the_state_is_the_hand_alone():
    env, rows = make("reach"), []
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


def test_domains_look_different_but_behave_the_same():
    images, states = [], []
    for scene in SCENES:
        env = make("door-open", scene)
        env.reset(1)
        observation = env.observe()
        images.append(observation["images"]["front"].astype(int))
        states.append(observation["state"])
    assert np.abs(images[0] - images[1]).mean() > 20
    np.testing.assert_array_equal(*states)


def test_markers_show_only_where_the_instruction_needs_them():
    def greenest(task):
        env = make(task)
        env.reset(1)
        image = env.observe()["images"]["front"].astype(int)
        return (image[..., 1] - image[..., [0, 2]].max(-1)).max()

    assert greenest("reach") > 100
    for task in ("door-open", "button-press-topdown", "window-close"):
        assert greenest(task) < 40


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("task", DEMO_TASKS)
def test_facts_agree_with_each_other_and_the_workspace_is_in_view(task, scene):
    env = make(task, scene)
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
        wrist, seen = facts["box"][1], np.isfinite(facts["box"][1, :, 0])
        assert (facts["visible"][1, ~seen] == 0).all()  # not there
        assert np.isnan(facts["visible"][1, seen]).all()  # there, and how much of it is not known
        assert ((wrist[seen] >= 0) & (wrist[seen] <= 1)).all()
        assert ((facts["gripper_pixel"][0] > 0) & (facts["gripper_pixel"][0] < 1)).all()
        pixels = project(facts["camera_matrix"][:1], facts["position"])
        margin = 2 / 64
        assert ((pixels > front[:, :2] - margin) & (pixels < front[:, 2:] + margin)).all()
        assert facts["contact"].shape == (objects,)
        assert facts["phase"] == 0


@pytest.mark.parametrize("task", ["reach", "door-open", "drawer-open"])
def test_the_wrist_camera_finds_what_the_gripper_reaches_for(task):
    env = make(task)
    env.reset(0)
    drive(env)
    facts = env.facts()
    pixel = project(facts["camera_matrix"][1], facts["position"][env.target]).clip(
        0, 1
    )  # it may be cut off
    box = facts["box"][1, env.target]
    assert (box[:2] - 2 / 64 < pixel).all() and (pixel < box[2:] + 2 / 64).all()


def test_what_has_no_name_of_its_own_belongs_to_the_part_that_has_one():
    env = make("handle-pull-side")  # the gripper lifts the grip by its nameless arm
    env.reset(0)
    touched = []
    for _ in range(60):
        env.step(env.expert_action())
        touched.append(env.facts(all_views=False)["contact"][0])
    assert np.mean(touched[30:]) > 0.5
    handle, drawer = make("drawer-open")._oracle.objects[:2]
    assert set(handle.solid_geoms) < set(drawer.solid_geoms)


def test_the_gripper_pixel_lies_between_the_fingers():
    env = make("reach")
    env.reset(0)
    facts, labels = env.facts(), env._renderer.labels(env._data, env.scene.camera)
    fingers = [
        env._model.geom(name).id
        for name in ("rightpad_geom", "leftpad_geom", "rightclaw_it", "leftclaw_it")
    ]
    rows, columns = np.nonzero(np.isin(labels, fingers))
    y, x = facts["gripper_pixel"][0] * 64
    assert columns.min() - 1 <= x <= columns.max() + 1
    assert rows.min() - 1 <= y <= rows.max() + 3  # the grasp centre is at the finger tips


def test_an_occluded_object_is_partly_visible_and_a_still_camera_does_not_confuse_it():
    env = make("button-press-topdown")
    env.reset(0)
    before = env.facts()["visible"][0, 0]
    drive(env)
    after = env.facts()["visible"][0, 0]
    assert before > 0.85
    assert after < before - 0.1


def test_a_demonstration_carries_a_story():
    env = make("drawer-open")
    episode = rollout_expert(env, demo_seed(0))
    facts = episode.annotation
    assert facts.success
    assert facts.rate == pytest.approx(80)
    assert facts.instruction in env.task.instructions
    assert facts.objects[facts.target] == "drawer handle"
    assert (np.diff(facts.phase) >= 0).all()
    assert set(facts.phase) == {0, 1}
    switch = np.flatnonzero(facts.phase == 1)[0]
    assert facts.contact[: switch - 1, facts.target].sum() == 0
    assert facts.contact[switch - 1 :, facts.target].sum() > 0
    handle = facts.position[:, facts.target, 1]
    assert np.ptp(handle[: switch - 1]) < 0.01
    assert handle[switch - 1] - handle[-1] > 0.06
    assert ((facts.gripper_open >= 0) & (facts.gripper_open <= 1)).all()


def test_a_grasp_has_three_phases():
    env = make("pick-place")
    episode = rollout_expert(env, demo_seed(1), noise=(0, 0))
    assert sorted(set(episode.annotation.phase)) == [0, 1, 2]
    puck = episode.annotation.position[:, episode.annotation.target]
    carried = episode.annotation.phase == 2
    assert np.linalg.norm(puck[carried][0] - puck[0]) == pytest.approx(0.025, abs=0.015)


def test_instructions():
    env = make("reach")
    assert env.instruction() == TASKS["reach"].instructions[0]
    drawn = {env.instruction(np.random.default_rng(i)) for i in range(50)}
    assert drawn == set(TASKS["reach"].instructions)


def test_evaluation_layouts_are_never_demonstrated():
    assert demo_seed(999_999, 999) < EVAL_SEED_BASE <= eval_seed(0)
    assert (
        len({demo_seed(episode, attempt) for episode in range(50) for attempt in range(20)}) == 1000
    )
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
def test_a_wrong_name_gets_the_nearest_one(arguments, message):
    with pytest.raises(ValueError, match=message):
        MetaWorld(*arguments)
