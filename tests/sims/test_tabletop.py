"""The tabletop's environment: episodes, expert, facts, conditions and suites."""

import functools
import itertools

import numpy as np
import pytest

from etcvla import sims
from etcvla.bench import simulator
from etcvla.errors import UserError
from etcvla.etc import make_items
from etcvla.etc.annotation import STEP_FIELDS, project
from etcvla.sims import suites
from etcvla.sims.conditions import COLORS, CONTEXT_CONDITIONS
from etcvla.sims.environment import Environment, PairedEnvironment
from etcvla.sims.episode_metrics import EpisodeMetrics
from etcvla.sims.perturbations import Perturbation
from etcvla.sims.rollout import rollout_expert, start_expert
from etcvla.sims.seeds import eval_seed
from etcvla.sims.tabletop import environment, scene, shapes
from etcvla.sims.tabletop.tasks import TASKS
from etcvla.sims.tabletop.words import ALL_COLORS, ALL_NOUNS

SIZE = 96
DOWN = np.array([0, 0, -1, 0])


@functools.cache
def _environment(task="touch", scene_name="A0", condition=""):
    return sims.make("tabletop", task, scene_name, SIZE, condition)


def _act(env, max_steps=80):
    """Let the expert act without noise and return the number of steps."""
    for step in range(max_steps):
        if env.done:
            return step
        env.step(env.expert_action())
    return max_steps


def test_environment_has_the_declared_members():
    env = _environment()
    env.reset(0)
    assert isinstance(env, Environment)
    assert isinstance(env, PairedEnvironment)
    assert sims.get("tabletop").trials_per_layout == 5


def test_a_seed_always_gives_the_same_episode():
    env = _environment()
    first = []
    for seed in (3, eval_seed(7), 3, eval_seed(7)):
        env.reset(seed)
        observation = env.observe()
        env.step(np.array([1, 0.5, -1, 0]))
        first.append((observation["images"]["front"], env.state(), env.instruction()))
    for one, again in ((first[0], first[2]), (first[1], first[3])):
        np.testing.assert_array_equal(one[0], again[0])
        np.testing.assert_array_equal(one[1], again[1])
        assert one[2] == again[2]
    assert (first[0][0] != first[1][0]).any()


def test_seeds_of_a_layout_share_the_picture_and_name_each_object():
    env = _environment()
    images = []
    named = []
    for seed in range(10, 15):
        env.reset(seed)
        images.append(env.observe()["images"]["front"])
        named.append(env.task.target)
        assert env.target == seed % 5
        assert env.task.target in env.instruction()
        assert env.instruction() == env.instruction_for(env.target)
    for image in images[1:]:
        np.testing.assert_array_equal(image, images[0])
    assert sorted(named) == sorted(spec.name for spec in env.objects)
    assert env.instruction_for(0) == f"touch the {named[0]}"


def test_evaluations_use_wordings_that_demonstrations_lack():
    env = _environment()
    rng = np.random.default_rng(0)
    wordings = {}
    for first in (0, eval_seed(0)):
        texts = set()
        for seed in range(first, first + 60):
            env.reset(seed)
            for text in (env.instruction(), env.instruction(rng)):
                texts.add(text.replace(env.task.target, "it"))
        wordings[first] = texts
    demonstrated, held_out = wordings.values()
    assert len(demonstrated) == 4
    assert len(held_out) == 3
    assert not demonstrated & held_out


@pytest.mark.parametrize(
    ("task", "share"), [(name, 0.98 if name == "touch" else 0.9) for name in TASKS]
)
def test_expert_succeeds_with_noise(task, share):
    env = _environment(task)
    successes = []
    for seed in range(24):
        _, actions = start_expert(env, seed, max_steps=80, steps_after_success=0)
        for action in actions:
            assert np.abs(action).max() <= 1
        successes.append(env.success)
    assert np.mean(successes) >= share


def test_a_touch_takes_about_twelve_steps():
    env = _environment()
    steps = []
    for seed in range(40):
        env.reset(seed)
        steps.append(_act(env))
        assert env.success
    assert 8 < np.mean(steps) < 15


def test_touching_another_object_ends_the_episode_without_success():
    env = _environment()
    for seed, other in itertools.product(range(4), range(5)):
        env.reset(seed)
        metrics = EpisodeMetrics(env)
        actions, count = env.expert_chunk(other, 60)
        for action in actions[:count]:
            env.step(action)
            metrics.update()
        assert env.done
        assert env.success == (other == env.target)
        assert np.flatnonzero(env.touched()) == [other]
        assert metrics.intention == env.success
        assert metrics.progress == 1 if env.success else metrics.progress < 1
        state = env.state()
        np.testing.assert_array_equal(env.expert_action(), [0, 0, 0, -1])
        env.step(-DOWN)
        np.testing.assert_array_equal(env.state(), state)


def test_touching_the_table_counts_for_the_nearest_object_without_success():
    env = _environment()
    env.reset(0)
    beside = env.layout.positions[env.target] + [0, -0.048]
    while np.linalg.norm(env.state()[:2] - beside) > 1e-3:
        offset = (beside - env.state()[:2]) / environment.STEP
        env.step(np.append(offset, [0, 0]))
    assert not env.touched().any()
    for _ in range(20):
        env.step(DOWN)
    assert env.done
    assert not env.success
    assert env.touched().argmax() == env.target


@pytest.mark.parametrize("noun", ALL_NOUNS)
def test_every_shape_is_solid_at_its_top_and_its_side(noun):
    env = _environment(scene_name="N0" if noun in ("star", "arch") else _scene_with(noun))
    for seed in itertools.count(0):
        env.reset(seed)
        if env.shapes[env.target] == noun and env.state()[2] > 0.12:
            break
    _act(env)
    assert env.success
    height = env.state()[2] - 2 * env.facts()["position"][env.target][2]
    assert abs(height) < environment.STEP / 2


def _scene_with(noun):
    """Return a scene of demonstrations with this noun."""
    return "A0" if noun in ("cube", "ball", "can", "cone") else "A2"


def test_chunks_of_a_touch_are_what_the_expert_does():
    env = _environment()
    for seed in range(10):
        env.reset(seed)
        actions, count = env.expert_chunk(env.target, 60)
        assert not actions[count:].any()
        short, short_count = env.expert_chunk(env.target, 4)
        np.testing.assert_array_equal(short, actions[:4])
        assert short_count == 4
        for action in actions[:count]:
            np.testing.assert_allclose(env.expert_action(), action, atol=1e-3)
            env.step(action)
        assert env.success
    assert env.expert_chunk(0, 3)[1] == 0


def _nearest_to_hand(env):
    return np.linalg.norm(env.layout.positions - env.layout.hand[:2], axis=1).argmin()


def _nearest_to_centre(env):
    return np.linalg.norm(env.layout.positions, axis=1).argmin()


def _hub(env):
    """Return the object whose noun and color most others have."""
    words = [{shown.noun, shown.color} for shown in env.layout.objects]
    return np.argmax([sum(len(own & other) for other in words) for own in words])


@pytest.mark.parametrize("choose", [_nearest_to_hand, _nearest_to_centre, _hub])
@pytest.mark.parametrize("scene_name", ["A0", "C0"])
def test_a_policy_that_ignores_the_words_succeeds_in_a_fifth_of_the_trials(scene_name, choose):
    env = _environment(scene_name=scene_name)
    successes = []
    for trial in range(100):
        env.reset(eval_seed(trial))
        actions, count = env.expert_chunk(int(choose(env)), 60)
        for action in actions[:count]:
            env.step(action)
        assert env.done
        successes.append(env.success)
    assert np.mean(successes) == 0.2


def test_chunks_lead_from_any_state_to_the_object():
    env = _environment()
    rng = np.random.default_rng(0)
    for seed in range(30):
        env.reset(seed)
        for _ in range(rng.integers(7)):
            env.step(env.expert_action() + np.append(0.3 * rng.standard_normal(3), 0))
        if env.done:
            continue
        other = int(env.target + rng.integers(1, 5)) % 5
        actions, count = env.expert_chunk(other, 60)
        for action in actions[:count]:
            assert not env.done
            env.step(action)
        assert env.done
        assert env.touched().argmax() == other


@pytest.mark.parametrize("task", ["push-left", "pick-on"])
def test_chunks_of_a_simulated_task_leave_the_state_as_it_is(task):
    env = _environment(task)
    env.reset(2)
    for _ in range(16):
        env.step(env.expert_action())
    before = env.facts()
    instruction = env.instruction()
    for target in range(5):
        actions, count = env.expert_chunk(target, 8)
        assert actions.shape == (8, 4)
        assert 0 < count <= 8
    assert env.instruction() == instruction
    for name, value in env.facts().items():
        np.testing.assert_allclose(value, before[name], atol=1e-6)
    own, count = env.expert_chunk(env.target, 8)
    for action in own[:count]:
        np.testing.assert_allclose(env.expert_action(), action, atol=1e-6)
        env.step(action)


def test_a_push_moves_the_object_to_the_side_of_the_image():
    for task, direction in (("push-left", -1), ("push-right", 1)):
        env = _environment(task)
        env.reset(1)
        start = env.facts()
        _act(env)
        end = env.facts()
        assert env.success
        moved = end["position"][env.target] - start["position"][env.target]
        assert direction * moved[0] > 0.05
        center = [facts["box"][0, env.target, 1::2].mean() for facts in (start, end)]
        assert direction * (center[1] - center[0]) > 0.05
        assert sims.get("tabletop").opposite_task(task) != task


def test_a_pick_puts_the_object_on_the_other():
    env = _environment("pick-on")
    env.reset(6)
    names = [spec.name for spec in env.objects]
    assert names[env.reference] in env.instruction()
    phases = []
    while not env.done:
        env.step(env.expert_action())
        phases.append(env.phase())
    assert sorted(set(phases)) == [0, 1, 2]
    assert env.state()[3] == 0
    positions = env.facts()["position"]
    assert positions[env.target, 2] > positions[env.reference, 2] + 0.02


def test_facts_describe_the_frame():
    env = _environment(scene_name="N3")
    for seed in range(10):
        env.reset(seed)
        image = env.observe()["images"]["front"].astype(int)
        facts = env.facts()
        assert set(facts) == set(STEP_FIELDS)
        np.testing.assert_allclose(facts["gripper_position"], env.state()[:3], atol=1e-6)
        assert not facts["contact"].any()
        for n, shown in enumerate(env.layout.objects):
            box = facts["box"][0, n]
            pixel = project(facts["camera_matrix"][0], facts["position"][n])
            if facts["visible"][0, n] < 0.99:
                continue
            assert (box[:2] - 0.02 < pixel).all()
            assert (pixel < box[2:] + 0.02).all()
            low, high = (box.reshape(2, 2) * SIZE).round().astype(int)
            pixels = image[low[0] : high[0], low[1] : high[1]].reshape(-1, 3)
            is_shown = np.abs(pixels - _closest(pixels, shown.color)).sum(1) < 90
            assert is_shown.mean() > 0.15, shown


def _closest(pixels, color):
    """Return the color of each pixel if it had the object's hue at its own brightness."""
    rgb = np.array(scene.RGB[color])
    return pixels.max(1, keepdims=True) * rgb / rgb.max()


def test_all_objects_are_in_view_and_boxes_are_large_enough():
    env = _environment()
    for seed in range(0, 150, 5):
        env.reset(seed)
        facts = env.facts()
        box = facts["box"][0][facts["visible"][0] > 0.9]
        assert len(box) >= 3
        assert (box > 0).all()
        assert (box < 1).all()
        assert ((box[:, 2:] - box[:, :2]) * SIZE).max(1).min() >= 8


def test_annotation_makes_items_of_all_kinds_that_verify():
    env = _environment()
    kinds = set()
    for seed in range(4):
        episode = rollout_expert(env, seed, max_steps=40, steps_after_success=0)
        annotation = episode.annotation
        assert annotation.contact[-1, annotation.target] == 1
        assert not annotation.contact[:-1].any()
        assert annotation.phase[-1] == 1
        items, dropped = make_items(annotation, 0, absent=())
        assert not [reason for reason in dropped if "wrong" in reason]
        kinds |= {item.kind for step in items for item in step}
    assert len(kinds) == 5


@pytest.mark.parametrize("condition", CONTEXT_CONDITIONS)
def test_conditions_change_the_picture_and_not_the_layout(condition):
    plain = _environment()
    changed = sims.make("tabletop", "touch", "A0", SIZE, condition)
    for seed in (0, 6):
        for env in (plain, changed):
            env.reset(seed)
        before = plain.observe()["images"]["front"].astype(int)
        after = changed.observe()["images"]["front"].astype(int)
        assert np.abs(after - before).mean() > 0.5
        np.testing.assert_array_equal(changed.layout.positions, plain.layout.positions)
        assert len({spec.name for spec in changed.objects}) == len(changed.objects)
        assert len(changed.facts()["box"][0]) == len(changed.objects) == len(changed.touched())
    _act(changed)
    assert changed.success
    changed.close()


def test_default_appearance_returns_after_every_perturbation():
    env = _environment()
    for axis in ("camera", "light", "texture", "layout"):
        env.reset(4)
        before = env.observe()["images"]["front"]
        Perturbation.parse(f"{axis}:3").reset(env, 4)
        during = env.observe()["images"]["front"]
        Perturbation.parse("").reset(env, 4)
        np.testing.assert_array_equal(env.observe()["images"]["front"], before)
        assert np.abs(during.astype(int) - before).mean() > 0.5


def test_an_added_object_never_has_the_name_of_another():
    for seed in range(0, 100, 5):
        env = _environment(scene_name="A1", condition="clutter")
        env.reset(seed)
        names = [spec.name for spec in env.objects]
        assert len(set(names)) == len(names)


def test_suites_name_tasks_and_scenes():
    assert suites.describe("tabletop").tasks == ("touch",)
    assert suites.describe("tabletop_tasks").tasks == tuple(TASKS)
    suite = suites.describe("tabletop")
    assert suite.scene == "A0"
    assert {"A0", "P3", "B7", "C23", "N11"} <= set(suite.scenes)
    assert suite.instructions == ("move the hand to the orange cross",)


def test_bad_names_are_user_errors():
    with pytest.raises(UserError, match="did you mean 'touch'"):
        sims.make("tabletop", "tuch", "A0", SIZE)
    with pytest.raises(UserError, match="unknown scene 'C99'"):
        sims.make("tabletop", "touch", "C99", SIZE)
    with pytest.raises(UserError, match="unknown condition of this simulator 'recolored'"):
        sims.make("tabletop", "touch", "A0", SIZE, "recolored")
    assert set(scene.RGB) == set(ALL_COLORS)
    assert set(COLORS) - set(ALL_COLORS) == {"turquoise", "violet", "olive"}


@pytest.mark.parametrize("noun", sorted(scene._MESHES))
def test_meshes_are_closed_and_centred(noun):
    mesh = scene._MESHES[noun]
    a, b, c = mesh.vertices[mesh.faces].transpose(1, 0, 2)
    normals = np.cross(b - a, c - a)
    np.testing.assert_allclose(normals.sum(0), 0, atol=1e-9)  # closed
    volume = np.einsum("fi,fi->", a, normals) / 6
    assert volume > 0  # faces point outwards
    low_high = np.array([mesh.vertices.min(0), mesh.vertices.max(0)])
    assert abs(low_high[:, 2].mean()) < 1e-3


def test_star_has_as_many_points_as_asked():
    outline = shapes.star_outline(6, 2.0, 1.0)
    assert sorted(np.linalg.norm(outline, axis=1).round(6)) == [1.0] * 6 + [2.0] * 6


def test_benchmark_measures_every_call():
    milliseconds = simulator.measure("tabletop", rounds=1, calls=2)
    assert min(milliseconds.values()) > 0
    table = simulator.table(milliseconds)
    assert len(table.splitlines()) == 2 + len(milliseconds)
    assert f"| reset | {milliseconds['reset']:.2f} ms |" in table
