"""Datasets with other conventions as adapters read them: public fixtures, filters and inverses."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from etcvla.data.adapted_dataset import AdaptedDataset, open_dataset
from etcvla.data.adapters import (
    ADAPTERS,
    STEP_FILTERS,
    Adapter,
    commands_from_gripper_states,
    find_adapter,
    gripper_states_from_commands,
)
from etcvla.data.assets import Assets
from etcvla.data.norm_stats import compute_norm_stats
from etcvla.data.rlds import RLDSDataset
from etcvla.data.stage_dataset import StageDataset
from etcvla.data.tokenizer import Tokenizer
from etcvla.errors import UserError
from tests.data.handmade_rlds import METADATA, png, write_rlds
from tests.golden_dir import golden

REPOSITORY = Path(__file__).parents[2]
STATE = "observation/state"
INSTRUCTION = "language_instruction"
PUBLIC = {"bridge_dataset": "bridge_v2", "libero_spatial_no_noops": "libero"}
PUBLIC_FOLDERS = [folder for folder in golden("rlds_tfrecord") if folder.name in PUBLIC]


@pytest.fixture(params=PUBLIC_FOLDERS, ids=lambda folder: folder.name)
def public(request, tmp_path):
    """(the dataset as stored, the dataset as its adapter reads it)."""
    folder = shutil.copytree(request.param, tmp_path / request.param.name)
    return RLDSDataset(folder), open_dataset(folder, adapter=PUBLIC[request.param.name])


def is_bridge(dataset):
    return "bridge" in str(dataset.directory)


def kept_steps(stored, adapter):
    """[(stored episode, its kept steps)]: Bridge keeps the episodes with an instruction."""
    episodes = []
    for episode, length in enumerate(stored.lengths.tolist()):
        if is_bridge(stored) and not stored.metadata(episode)["has_language"]:
            continue
        actions = stored.steps(episode, 0, length, ["action"])["action"]
        drop = STEP_FILTERS[adapter.step_filter](actions, adapter.motion_dims)
        steps = np.flatnonzero(~drop)
        if len(steps):
            episodes.append((episode, steps))
    return episodes


def test_public_fixtures_keep_episodes_and_steps(public):
    stored, adapted = public
    episodes = kept_steps(stored, adapted.adapter)
    assert adapted.lengths.tolist() == [len(steps) for _, steps in episodes]
    for number, (episode, _) in enumerate(episodes):
        assert adapted.where(number) == stored.where(episode)


def test_public_fixtures_keep_the_values_of_each_frame(public):
    stored, adapted = public
    camera = "observation/image_0" if is_bridge(stored) else "observation/image"
    frame = 0
    for episode, steps in kept_steps(stored, adapted.adapter):
        for step in steps.tolist():
            names = ["observation/front", STATE, "action", INSTRUCTION]
            values = adapted.frame(frame, names)
            stored_frame = int(stored.starts[episode]) + step
            raw = stored.frame(stored_frame, [camera, STATE, "action", INSTRUCTION])
            np.testing.assert_array_equal(values["observation/front"], raw[camera])
            np.testing.assert_array_equal(values[STATE], raw[STATE])
            np.testing.assert_array_equal(values["action"][:6], raw["action"][:6])
            assert values[INSTRUCTION] == raw[INSTRUCTION]
            assert values["action"][6] in (0.0, 1.0)
            is_open = raw["action"][6] == (1 if is_bridge(stored) else -1)
            assert values["action"][6] == is_open
            frame += 1
    assert frame == adapted.num_frames
    assert adapted.metadata(0)["rate"] == (5.0 if is_bridge(stored) else 20.0)


def test_statistics_are_of_adapted_values(public):
    _, adapted = public
    actions = adapted.column("action")
    stats = compute_norm_stats(adapted)["action"]
    np.testing.assert_allclose(stats.mean, actions.mean(0, np.float64), rtol=1e-5, atol=1e-6)
    assert stats.count == adapted.num_frames
    assert stats.transform == adapted.adapter.digest


def test_to_robot_inverts_windows(public):
    stored, adapted = public
    frame = 0
    for episode, steps in kept_steps(stored, adapted.adapter):
        length = int(stored.lengths[episode])
        raw = stored.steps(episode, 0, length, ["action"])["action"][steps]
        for i in range(len(steps)):
            chunk, inside = adapted.window(frame, "action", 6)
            state = adapted.frame(frame, [STATE])[STATE]
            window = np.minimum(np.arange(i, i + 6), len(steps) - 1)
            assert inside.tolist() == [i + k < len(steps) for k in range(6)]
            robot_actions = adapted.adapter.to_robot(chunk, state)
            np.testing.assert_allclose(robot_actions, raw[window], atol=1e-6)
            frame += 1


POINTWISE = [name for name, adapter in ADAPTERS.items() if not adapter.gripper_command_dims]
VALUES = st.floats(-3, 3, width=32)


@pytest.mark.parametrize("name", POINTWISE)
@settings(max_examples=20, deadline=None)
@given(
    actions=hnp.arrays(np.float32, (5, 8), elements=VALUES),
    state=hnp.arrays(np.float32, 8, elements=VALUES),
)
def test_to_robot_inverts_every_adapter(name, actions, state):
    adapter = ADAPTERS[name]
    adapted = adapter.to_relative(adapter.from_robot(actions), state)
    np.testing.assert_allclose(adapter.to_robot(adapted, state), actions, atol=1e-5)
    assert Adapter.from_dict(json.loads(json.dumps(adapter.to_dict()))) == adapter


@settings(deadline=None)
@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=12))
def test_gripper_commands_become_states_and_back(commands):
    states = gripper_states_from_commands(np.array(commands, np.float32))
    state = None
    for t, command in enumerate(commands):
        state = {1: 0.0, -1: 1.0, 0: state}[command]
        assert state is None or states[t] == state
    again = commands_from_gripper_states(states)
    np.testing.assert_array_equal(gripper_states_from_commands(again), states)
    assert again[0] != 0
    assert np.abs(np.diff(states))[np.flatnonzero(again[1:])].all()  # commands only at changes


def test_step_filters_drop_still_steps():
    still = np.zeros(7, np.float32)
    move = np.float32([0.1, 0, 0, 0, 0, 0, 0])
    close = np.float32([0, 0, 0, 0, 0, 0, 1])
    actions = np.stack([still, close, move, still, still, close, close])
    no_ops = STEP_FILTERS["no_ops"](actions, 6)
    assert no_ops.tolist() == [True, True, False, True, True, False, True]
    assert STEP_FILTERS["first_zero"](actions, 6).tolist() == [True] + [False] * 6
    assert not STEP_FILTERS["first_zero"](actions[2:], 6).any()
    assert not STEP_FILTERS["none"](actions, 6).any()


def tensor(size, dtype="float32"):
    """Describe a vector as features.json does."""
    return "tensor.Tensor", {"tensor": {"dtype": dtype, "shape": {"dimensions": [str(size)]}}}


def image(height, width):
    """Describe an image as features.json does."""
    shape = {"dimensions": [str(height), str(width), "3"]}
    return "image.Image", {"image": {"dtype": "uint8", "shape": shape}}


TEXT = ("text.Text", {"text": {}})
DROID_WIDTHS = {"joint_position": 7, "joint_velocity": 7, "gripper_position": 1}
DROID_CAMERAS = ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")


def droid_set(folder):
    """Write two successes and a failure; the second success does not move for twenty steps."""
    steps = {f"action_dict/{name}": tensor(size, "float64") for name, size in DROID_WIDTHS.items()}
    steps["observation/joint_position"] = tensor(7, "float64")
    steps["observation/gripper_position"] = tensor(1, "float64")
    steps |= {f"observation/{name}": image(4, 4) for name in DROID_CAMERAS}
    steps |= {f"{INSTRUCTION}{suffix}": TEXT for suffix in ("", "_2", "_3")}
    steps[f"{METADATA}file_path"] = TEXT
    rng = np.random.default_rng(0)

    def _episode(length, still_steps, path, instructions):
        velocity = rng.uniform(0.1, 1, (length, 7)).astype(np.float32)
        velocity[:still_steps] = 0
        position = np.cumsum(velocity, axis=0)
        gripper = np.linspace(0, 1, length).astype(np.float32)
        gripper[: still_steps + 1] = 0
        picture = png(np.full((4, 4, 3), 9, np.uint8))
        values = {
            "action_dict/joint_velocity": velocity.ravel(),
            "action_dict/joint_position": position.ravel(),
            "action_dict/gripper_position": gripper,
            "observation/joint_position": (position - velocity).ravel(),
            "observation/gripper_position": gripper,
            INSTRUCTION: [instructions[0]] * length,
            f"{INSTRUCTION}_2": [instructions[1]] * length,
            f"{INSTRUCTION}_3": [b""] * length,
            f"{METADATA}file_path": [path],
        }
        return values | {f"observation/{name}": [picture] * length for name in DROID_CAMERAS}

    episodes = [
        _episode(12, 0, b"a/success/x", (b"", b"lift it")),
        _episode(9, 0, b"a/failure/y", (b"no", b"")),
        _episode(30, 20, b"a/success/z", (b"wait", b"")),
    ]
    write_rlds(folder, episodes, steps=steps)
    return folder


def test_droid_adapter(tmp_path):
    dataset = open_dataset(droid_set(tmp_path), adapter="droid")
    assert dataset.lengths.tolist() == [12, 30] and dataset.where(1)[1] == 2
    assert dataset.column(INSTRUCTION) == ["lift it"] * 12 + ["wait"] * 30
    frame = dataset.frame(3, ["action", STATE])
    assert frame["action"].shape == (8,) and frame[STATE].shape == (8,)
    raw = RLDSDataset(tmp_path)
    closed = raw.frame(3, ["action_dict/gripper_position"])["action_dict/gripper_position"]
    np.testing.assert_allclose(frame["action"][7], 1 - closed[0], atol=1e-6)
    # A chunk may begin where something moves within eight steps.
    candidates = StageDataset(dataset, ("front", "wrist")).candidates("action")
    assert candidates.tolist() == [*range(12), *range(12 + 13, 42)]


# RT-1's gripper commands: 1 close, -1 open, 0 continue; and the states that follow.
COMMANDS = ([0, 0, 1, 0, 0, -1, 0, 0], [0, 0, 0])
STATES = [1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1]


def fractal_set(folder):
    """Write a dataset with RT-1's public structure."""
    widths = {
        "action/world_vector": 3,
        "action/rotation_delta": 3,
        "action/gripper_closedness_action": 1,
        "action/base_displacement_vector": 2,
        "observation/base_pose_tool_reached": 7,
        "observation/gripper_closed": 1,
        "observation/natural_language_embedding": 512,
    }
    steps = {
        **{name: tensor(width) for name, width in widths.items()},
        "action/terminate_episode": tensor(3, "int32"),
        "observation/natural_language_instruction": TEXT,
        "observation/image": image(16, 20),
    }
    rng = np.random.default_rng(0)

    def _episode(commands, instruction):
        length = len(commands)
        values = {
            name: rng.normal(size=length * width).astype(np.float32)
            for name, width in widths.items()
        }
        return values | {
            "action/gripper_closedness_action": np.array(commands, np.float32),
            "action/terminate_episode": [0, 1, 0] * length,
            "observation/natural_language_instruction": [instruction] * length,
            "observation/image": [png(np.full((16, 20, 3), t, np.uint8)) for t in range(length)],
        }

    episodes = [_episode(COMMANDS[0], b"pick coke can"), _episode(COMMANDS[1], b"open drawer")]
    write_rlds(folder, episodes, steps=steps)
    return folder


def test_fractal_adapter_concatenates_features(tmp_path):
    dataset = open_dataset(fractal_set(tmp_path), adapter="fractal")
    raw = RLDSDataset(tmp_path)
    assert dataset.lengths.tolist() == [8, 3] and dataset.metadata(0)["rate"] == 3.0
    action_names = ("action/world_vector", "action/rotation_delta")
    state_names = ("observation/base_pose_tool_reached", "observation/gripper_closed")
    for frame in (0, 4, 9):
        values = dataset.frame(frame, ["action", STATE, INSTRUCTION, "observation/front"])
        stored = raw.frame(frame, (*action_names, *state_names, "observation/image"))
        action = np.concatenate([stored[name] for name in action_names])
        state = np.concatenate([stored[name] for name in state_names])
        np.testing.assert_array_equal(values["action"][:6], action)
        np.testing.assert_array_equal(values[STATE], state)
        np.testing.assert_array_equal(values["observation/front"], stored["observation/image"])
        assert values[INSTRUCTION] == ("open drawer" if frame == 9 else "pick coke can")


def test_fractal_adapter_turns_gripper_commands_into_states(tmp_path):
    dataset = open_dataset(fractal_set(tmp_path), adapter="fractal")
    assert dataset.column("action")[:, 6].tolist() == STATES
    chunk, inside = dataset.window(1, "action", 9)
    assert inside.tolist() == [True] * 7 + [False] * 2
    assert chunk[:, 6].tolist() == [*STATES[1:8], 1, 1]
    commands = dataset.adapter.to_robot(chunk, np.zeros(8, np.float32))[:, 6]
    # The first step commands the present state, later steps only changes.
    assert commands.tolist() == [-1, 1, 0, 0, -1, 0, 0, 0, 0]


def test_relative_actions_and_their_statistics(tmp_path):
    dataset = open_dataset(droid_set(tmp_path), adapter="droid_joint_position")
    chunk, _ = dataset.window(2, "action", 5)
    raw = RLDSDataset(tmp_path)
    velocity = raw.window(2, "action_dict/joint_velocity", 5)[0]
    np.testing.assert_allclose(chunk[:, :7], np.cumsum(velocity, axis=0), atol=1e-5)
    stats = compute_norm_stats(dataset, horizon=5)["action"]
    windows = [dataset.window(frame, "action", 5) for frame in range(dataset.num_frames)]
    values = np.concatenate([window[inside] for window, inside in windows])
    np.testing.assert_allclose(stats.max, values.max(0), rtol=1e-6)
    assert stats.count == len(values) == 5 * 42 - 2 * 10
    state = dataset.frame(2, [STATE])[STATE]
    positions = dataset.adapter.to_robot(chunk, state)[:, :7]
    stored = raw.window(2, "action_dict/joint_position", 5)[0]
    np.testing.assert_allclose(positions, stored, atol=1e-5)


def test_assets_contain_the_adapter(tmp_path):
    dataset = open_dataset(droid_set(tmp_path), adapter="droid")
    assets = Assets(Tokenizer.load())
    assets.fit_actions(dataset, horizon=4, fast_vocab=128, mode="quantile")
    assets.describe_actions(dataset, horizon=4, cameras=("front",), prompt="pi0")
    again = Assets.from_json(json.loads(json.dumps(assets.to_json())))
    assert again.adapter == ADAPTERS["droid"]
    assert again.action_stats.transform == ADAPTERS["droid"].digest
    assert Assets(Tokenizer.load()).adapter == Adapter()


def test_rotated_cameras_are_rotated(public):
    stored, adapted = public
    camera = next(iter(adapted.adapter.cameras))
    name = f"observation/{camera}"
    rotated = AdaptedDataset(
        stored, dataclasses.replace(adapted.adapter, rotated_cameras=(camera,))
    )
    frame = adapted.num_frames - 1
    upright = adapted.frame(frame, [name])[name]
    np.testing.assert_array_equal(rotated.frame(frame, [name])[name], upright[::-1, ::-1])


def test_camera_flags_say_which_cameras_have_images(public):
    _, adapted = public
    for frame in range(adapted.num_frames):
        flag = True
        if is_bridge(adapted):
            episode, _ = adapted.locate(frame)
            flag = bool(adapted.metadata(episode)["has_image_3"])
        assert adapted.has_camera(frame, "wrist") == flag


def test_errors_name_the_wrong_adapter_or_camera(public):
    stored, adapted = public
    message = "unknown adapter of a dataset 'bridge', did you mean 'bridge_v2'"
    with pytest.raises(ValueError, match=message):
        open_dataset(stored.directory, adapter="bridge")
    message = "adapter does not fit.*no step feature 'observation/exterior_image_1_left'"
    with pytest.raises(UserError, match=message):
        open_dataset(stored.directory, adapter="droid")
    with pytest.raises(UserError, match="no camera 'top'; it has .*front"):
        StageDataset(adapted, ("top",))


def test_adapter_file_changes_fields_of_its_base(tmp_path, public):
    stored, adapted = public
    base = PUBLIC[stored.directory.parent.name]
    path = tmp_path / "robot.json"
    fields = {"base": base, "rotated_cameras": ["front"], "annotation": {"position": [STATE, 3]}}
    path.write_text(json.dumps(fields))
    found = find_adapter(str(path))
    base_annotation = ADAPTERS[base].annotation
    assert found.annotation == dataclasses.replace(base_annotation, position=(STATE, 3))
    unchanged = dataclasses.replace(found, rotated_cameras=(), annotation=base_annotation)
    assert unchanged == ADAPTERS[base]
    rotated = open_dataset(stored.directory, adapter=str(path))
    upright = adapted.frame(0, ["observation/front"])["observation/front"]
    image = rotated.frame(0, ["observation/front"])["observation/front"]
    np.testing.assert_array_equal(image, upright[::-1, ::-1])


def test_digest_does_not_depend_on_annotation_sources(tmp_path):
    path = tmp_path / "robot.json"
    path.write_text(json.dumps({"base": "libero", "annotation": {"frame": "robot base"}}))
    assert find_adapter(str(path)) != ADAPTERS["libero"]
    assert find_adapter(str(path)).digest == ADAPTERS["libero"].digest


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "robot.json is not JSON"),
        ('{"base": "bridge"}', "unknown base in .*robot.json 'bridge', did you mean"),
        ('{"camera": {}}', "unknown field in .*robot.json 'camera', did you mean 'cameras'"),
        (
            '{"annotation": {"positon": ["a", 0]}}',
            "unknown field in .* 'positon', did you mean 'position'",
        ),
        ('{"cameras": ["front"]}', r'cameras is \["front"\], expected something like \{\}'),
    ],
)
def test_errors_name_what_is_wrong_in_an_adapter_file(tmp_path, text, problem):
    (tmp_path / "robot.json").write_text(text)
    with pytest.raises(ValueError, match=problem):
        find_adapter(str(tmp_path / "robot.json"))


def test_missing_adapter_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no file .*robot.json"):
        find_adapter(str(tmp_path / "robot.json"))


def test_adapter_of_the_documentation_is_valid(tmp_path):
    """The example in docs/train_your_robot.md has fields that exist, with values of their types."""
    page = (REPOSITORY / "docs" / "train_your_robot.md").read_text()
    (example,) = re.findall(r"^```(?:json)?\n(\{.*?\})\n```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "my_robot.json").write_text(example)
    found = find_adapter(str(tmp_path / "my_robot.json"))
    assert found.rotated_cameras == tuple(found.cameras) == ("front",)
    assert found.annotation.position == (STATE, 0)
    assert found.annotation.episode_id == "file_path"


def test_adapter_file_may_be_toml(tmp_path):
    (tmp_path / "robot.toml").write_text('base = "libero"\nrate = 10.0\n')
    found = find_adapter(str(tmp_path / "robot.toml"))
    assert found == dataclasses.replace(ADAPTERS["libero"], rate=10.0)
