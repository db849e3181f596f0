"""Other people's datasets in our terms: facts of the table, filters, and inverses."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from etcvla.data.adapters import (
    ADAPTERS,
    STEP_FILTERS,
    AdaptedDataset,
    Adapter,
    commands_from_gripper_states,
    find_adapter,
    gripper_states_from_commands,
    open_dataset,
)
from etcvla.data.assets import Assets
from etcvla.data.norm_stats import compute_norm_stats
from etcvla.data.rlds import RLDSDataset
from etcvla.data.stage_dataset import StageDataset
from etcvla.data.tokenizer import Tokenizer
from tests.data.handmade_rlds import METADATA, png, write_rlds
from tests.golden_dir import golden

PUBLIC = {"bridge_dataset": "bridge_v2", "libero_spatial_no_noops": "libero"}


@pytest.fixture(
    params=[f for f in golden("rlds_tfrecord") if f.name in PUBLIC], ids=lambda folder: folder.name
)
def public(request, tmp_path):
    """(stored, in our terms)."""
    folder = shutil.copytree(request.param, tmp_path / request.param.name)
    return RLDSDataset(folder), open_dataset(folder, adapter=PUBLIC[request.param.name])


def test_public_datasets_in_our_terms(public):
    stored, ours = public
    bridge = "bridge" in str(stored.directory)
    assert (
        ours.num_frames == stored.num_frames - bridge * stored.num_episodes
    )  # Bridge's first step is padding
    first = int(bridge)
    frame = ours.frame(
        0,
        [
            "observation/front",
            "observation/wrist",
            "observation/state",
            "action",
            "language_instruction",
        ],
    )
    camera = "observation/image_0" if bridge else "observation/image"
    raw = stored.frame(first, [camera, "observation/state", "action", "language_instruction"])
    np.testing.assert_array_equal(frame["observation/front"], raw[camera])
    np.testing.assert_array_equal(frame["observation/state"], raw["observation/state"])
    np.testing.assert_array_equal(frame["action"][:6], raw["action"][:6])
    assert frame["language_instruction"] == raw["language_instruction"]
    actions, theirs = ours.column("action"), stored.column("action")
    assert set(np.unique(actions[:, 6])) <= {0.0, 1.0}
    if not bridge:
        np.testing.assert_array_equal(actions[:, 6] == 1, theirs[:, 6] == -1)  # open
    assert ours.metadata(0)["rate"] == (5.0 if bridge else 20.0)
    stats = compute_norm_stats(ours)["action"]
    np.testing.assert_allclose(stats.mean, actions.mean(0, np.float64), rtol=1e-5, atol=1e-6)
    assert stats.count == ours.num_frames and stats.transform == ours.adapter.digest


def test_windows_are_of_our_terms_and_invert(public):
    stored, ours = public
    for frame in range(ours.num_frames):
        episode, step = ours.locate(frame)
        chunk, present = ours.window(frame, "action", 6)
        state = ours.frame(frame, ["observation/state"])["observation/state"]
        source = stored.starts[episode] + ours._steps[frame]
        raw, inside = stored.window(int(source), "action", 6)
        np.testing.assert_array_equal(present, inside)
        np.testing.assert_allclose(ours.adapter.to_robot(chunk, state), raw, atol=1e-6)


POINTWISE = [name for name, adapter in ADAPTERS.items() if not adapter.gripper_command_dims]
VALUES = st.floats(-3, 3, width=32)


@pytest.mark.parametrize("name", POINTWISE)
@settings(max_examples=20, deadline=None)
@given(
    actions=hnp.arrays(np.float32, (5, 8), elements=VALUES),
    state=hnp.arrays(np.float32, 8, elements=VALUES),
)
def test_every_transform_has_its_inverse(name, actions, state):
    adapter = ADAPTERS[name]
    ours = adapter.to_relative(adapter.from_robot(actions), state)
    np.testing.assert_allclose(adapter.to_robot(ours, state), actions, atol=1e-5)
    assert Adapter.from_dict(json.loads(json.dumps(adapter.to_dict()))) == adapter


@settings(deadline=None)
@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=12))
def test_gripper_commands_become_states_and_back(commands):
    opened = gripper_states_from_commands(np.array(commands, np.float32))
    state = None
    for t, command in enumerate(commands):
        state = {1: 0.0, -1: 1.0, 0: state}[command]
        assert state is None or opened[t] == state
    again = commands_from_gripper_states(opened)
    np.testing.assert_array_equal(
        gripper_states_from_commands(again), opened
    )  # the same course of the gripper
    assert again[0] != 0 and np.abs(np.diff(opened))[np.flatnonzero(again[1:])].all()


def test_filters():
    still, move = np.zeros(7, np.float32), np.float32([0.1, 0, 0, 0, 0, 0, 0])
    shut = np.float32([0, 0, 0, 0, 0, 0, 1])
    actions = np.stack([still, shut, move, still, still, shut, shut])
    assert STEP_FILTERS["no_ops"](actions, 6).tolist() == [
        True,
        True,
        False,
        True,
        True,
        False,
        True,
    ]
    assert STEP_FILTERS["first_zero"](actions, 6).tolist() == [True] + [False] * 6
    assert (
        not STEP_FILTERS["first_zero"](actions[2:], 6).any()
        and not STEP_FILTERS["none"](actions, 6).any()
    )


def droid_set(folder):
    """Two successes and a failure; the second success rests for twenty steps."""
    width = {"joint_position": 7, "joint_velocity": 7, "gripper_position": 1}

    def tensor(size):
        return "tensor.Tensor", {
            "tensor": {"dtype": "float64", "shape": {"dimensions": [str(size)]}}
        }

    text, image = (
        ("text.Text", {"text": {}}),
        ("image.Image", {"image": {"dtype": "uint8", "shape": {"dimensions": ["4", "4", "3"]}}}),
    )
    steps = {
        **{f"action_dict/{name}": tensor(size) for name, size in width.items()},
        "observation/joint_position": tensor(7),
        "observation/gripper_position": tensor(1),
        **{
            f"observation/{name}": image
            for name in ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")
        },
        **{f"language_instruction{n}": text for n in ("", "_2", "_3")},
        f"{METADATA}file_path": text,
    }
    rng = np.random.default_rng(0)

    def episode(length, rests, path, said):
        velocity = rng.uniform(0.1, 1, (length, 7)).astype(np.float32)
        velocity[:rests] = 0
        position = np.cumsum(velocity, axis=0)
        gripper = np.linspace(0, 1, length).astype(np.float32) * (np.arange(length) > rests)
        return {
            "action_dict/joint_velocity": velocity.ravel(),
            "action_dict/joint_position": position.ravel(),
            "action_dict/gripper_position": gripper,
            "observation/joint_position": (position - velocity).ravel(),
            "observation/gripper_position": gripper,
            **{
                name: [png(np.full((4, 4, 3), 9, np.uint8))] * length
                for name, (kind, _) in steps.items()
                if kind == "image.Image"
            },
            "language_instruction": [said[0]] * length,
            "language_instruction_2": [said[1]] * length,
            "language_instruction_3": [b""] * length,
            f"{METADATA}file_path": [path],
        }

    write_rlds(
        folder,
        [
            episode(12, 0, b"a/success/x", (b"", b"lift it")),
            episode(9, 0, b"a/failure/y", (b"no", b"")),
            episode(30, 20, b"a/success/z", (b"wait", b"")),
        ],
        steps=steps,
    )
    return folder


def test_droid(tmp_path):
    dataset = open_dataset(droid_set(tmp_path), adapter="droid")
    assert dataset.lengths.tolist() == [12, 30] and dataset.where(1)[1] == 2
    assert dataset.column("language_instruction") == ["lift it"] * 12 + ["wait"] * 30
    frame = dataset.frame(3, ["action", "observation/state"])
    assert frame["action"].shape == (8,) and frame["observation/state"].shape == (8,)
    raw = RLDSDataset(tmp_path)
    closed = raw.frame(3, ["action_dict/gripper_position"])["action_dict/gripper_position"]
    np.testing.assert_allclose(frame["action"][7], 1 - closed[0], atol=1e-6)
    # A chunk may begin where something moves within eight steps.
    assert StageDataset(dataset, ("front", "wrist")).candidates("action").tolist() == [
        *range(12),
        *range(12 + 13, 42),
    ]


COMMANDS = ([0, 0, 1, 0, 0, -1, 0, 0], [0, 0, 0])  # RT-1's gripper: 1 close, -1 open, 0 go on
OPENED = [1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1]


def fractal_set(folder):
    """RT-1's public structure: actions as a dictionary, the instruction among the observations."""

    def tensor(size, dtype="float32"):
        return "tensor.Tensor", {"tensor": {"dtype": dtype, "shape": {"dimensions": [str(size)]}}}

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
        "observation/natural_language_instruction": ("text.Text", {"text": {}}),
        "observation/image": (
            "image.Image",
            {"image": {"dtype": "uint8", "shape": {"dimensions": ["16", "20", "3"]}}},
        ),
    }
    rng = np.random.default_rng(0)

    def episode(commands, told):
        length = len(commands)
        values = {
            name: rng.normal(size=length * width).astype(np.float32)
            for name, width in widths.items()
        }
        return values | {
            "action/gripper_closedness_action": np.array(commands, np.float32),
            "action/terminate_episode": [0, 1, 0] * length,
            "observation/natural_language_instruction": [told] * length,
            "observation/image": [png(np.full((16, 20, 3), t, np.uint8)) for t in range(length)],
        }

    write_rlds(
        folder,
        [episode(COMMANDS[0], b"pick coke can"), episode(COMMANDS[1], b"open drawer")],
        steps=steps,
    )
    return folder


def test_fractal(tmp_path):
    dataset, raw = open_dataset(fractal_set(tmp_path), adapter="fractal"), RLDSDataset(tmp_path)
    assert dataset.lengths.tolist() == [8, 3] and dataset.metadata(0)["rate"] == 3.0
    assert (
        dataset.column("action")[:, 6].tolist() == OPENED
    )  # from the second episode's start: open, as never closed
    for frame in (0, 4, 9):
        ours = dataset.frame(
            frame, ["action", "observation/state", "language_instruction", "observation/front"]
        )
        parts = (
            "action/world_vector",
            "action/rotation_delta",
            "observation/base_pose_tool_reached",
            "observation/gripper_closed",
            "observation/image",
        )
        theirs = raw.frame(frame, parts)
        np.testing.assert_array_equal(
            ours["action"][:6], np.concatenate([theirs[name] for name in parts[:2]])
        )
        np.testing.assert_array_equal(
            ours["observation/state"], np.concatenate([theirs[name] for name in parts[2:4]])
        )
        np.testing.assert_array_equal(ours["observation/front"], theirs["observation/image"])
        assert ours["language_instruction"] == ("pick coke can", "open drawer")[frame == 9]
    chunk, present = dataset.window(1, "action", 9)
    assert present.tolist() == [True] * 7 + [False] * 2 and chunk[:, 6].tolist() == [
        *OPENED[1:8],
        1,
        1,
    ]
    commands = dataset.adapter.to_robot(chunk, np.zeros(8, np.float32))[:, 6]
    assert commands.tolist() == [
        -1,
        1,
        0,
        0,
        -1,
        0,
        0,
        0,
        0,
    ]  # the state at the start is said, then what changes


def test_positions_count_from_the_state_and_so_do_their_statistics(tmp_path):
    dataset = open_dataset(droid_set(tmp_path), adapter="droid_joint_position")
    chunk, _ = dataset.window(2, "action", 5)
    raw = RLDSDataset(tmp_path)
    velocity = raw.window(2, "action_dict/joint_velocity", 5)[0]
    np.testing.assert_allclose(chunk[:, :7], np.cumsum(velocity, axis=0), atol=1e-5)
    stats = compute_norm_stats(dataset, horizon=5)["action"]
    windows = [dataset.window(f, "action", 5) for f in range(dataset.num_frames)]
    every = np.concatenate([chunk[present] for chunk, present in windows])
    np.testing.assert_allclose(stats.max, every.max(0), rtol=1e-6)
    assert stats.count == len(every) == 5 * 42 - 2 * 10
    state = dataset.frame(2, ["observation/state"])["observation/state"]
    back = dataset.adapter.to_robot(chunk, state)
    np.testing.assert_allclose(
        back[:, :7], raw.window(2, "action_dict/joint_position", 5)[0], atol=1e-5
    )


def test_assets_carry_the_adapter(tmp_path):
    dataset = open_dataset(droid_set(tmp_path), adapter="droid")
    assets = Assets(Tokenizer.load())
    assets.fit_actions(dataset, horizon=4, fast_vocab=128, mode="quantile")
    assets.describe_actions(dataset, horizon=4, cameras=("front",), prompt="pi0")
    again = Assets.from_json(json.loads(json.dumps(assets.to_json())))
    assert (
        again.adapter == ADAPTERS["droid"]
        and again.action_stats.transform == ADAPTERS["droid"].digest
    )
    assert Assets(Tokenizer.load()).adapter == Adapter()


def test_turned_cameras_and_cameras_that_show_nothing(public):
    stored, ours = public
    turned = (
        AdaptedDataset(stored, ADAPTERS["libero_raw"])
        if "libero" in str(stored.directory)
        else None
    )
    if turned:
        a, b = (d.frame(5, ["observation/wrist"])["observation/wrist"] for d in (ours, turned))
        np.testing.assert_array_equal(a[::-1, ::-1], b)
    else:
        flags = [
            ours.metadata(ours.locate(frame)[0])["has_image_3"] for frame in range(ours.num_frames)
        ]
        assert [ours.has_camera(frame, "wrist") for frame in range(ours.num_frames)] == flags


def test_wrong_adapters_are_named(tmp_path, public):
    stored, ours = public
    with pytest.raises(
        ValueError, match="unknown adapter of a dataset 'bridge', did you mean 'bridge_v2'"
    ):
        open_dataset(stored.directory, adapter="bridge")
    with pytest.raises(
        ValueError,
        match="adapter does not fit.*no step feature 'observation/exterior_image_1_left'",
    ):
        open_dataset(stored.directory, adapter="droid")
    with pytest.raises(ValueError, match="no camera 'top'; it has .*front"):
        StageDataset(ours, ("top",))


def test_a_file_is_a_line_on_top_of_another(tmp_path, public):
    stored, ours = public
    base = PUBLIC[stored.directory.parent.name]
    path = tmp_path / "robot.json"
    path.write_text(
        json.dumps(
            {
                "base": base,
                "rotated_cameras": ["front"],
                "annotation": {"position": ["observation/state", 3]},
            }
        )
    )
    found = find_adapter(str(path))
    assert found.annotation == dataclasses.replace(
        ADAPTERS[base].annotation, position=("observation/state", 3)
    )
    assert (
        dataclasses.replace(found, rotated_cameras=(), annotation=ADAPTERS[base].annotation)
        == ADAPTERS[base]
    )
    turned = open_dataset(stored.directory, adapter=str(path))
    a, b = (d.frame(5, ["observation/front"])["observation/front"] for d in (ours, turned))
    np.testing.assert_array_equal(a[::-1, ::-1], b)
    path.write_text(json.dumps({"base": base, "annotation": {"frame": "world"}}))
    assert (
        find_adapter(str(path)).digest == ADAPTERS[base].digest
    )  # no number that is read depends on them


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
def test_a_file_that_is_no_line_is_named(tmp_path, text, problem):
    (tmp_path / "robot.json").write_text(text)
    with pytest.raises(ValueError, match=problem):
        find_adapter(str(tmp_path / "robot.json"))
