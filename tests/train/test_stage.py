"""Open a stage: what is missing or does not fit is an error before training."""

import json

import numpy as np
import pytest

from configs import common
from etcvla.data.assets import Assets
from etcvla.errors import UserError
from etcvla.train.checkpoint import CheckpointWriter, open_checkpoint
from etcvla.train.checkpoint_meta import checkpoint_meta
from etcvla.train.stage import Stage, build_datasets, inherited_assets, streams_of
from etcvla.train.state import TrainState
from tests.data.handmade_rlds import write_robot_set
from tests.train.nano import nano_config


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_robot_set(tmp_path_factory.mktemp("robot"))


def replace_groups(config, **fields):
    """Replace whole sub-trees: datasets__robot=..., streams__action=..."""
    with config.unlocked():
        for name, value in fields.items():
            group, key = name.split("__")
            config[group][key] = value
    return config


def robot_dataset(directory, cameras=("front", "wrist")):
    return common.dataset(str(directory), cameras)


@pytest.fixture(scope="module")
def parent(dataset, tmp_path_factory):
    """The workdir of a stage with a checkpoint; its parameters do not matter here."""
    config = nano_config(dataset, tmp_path_factory.mktemp("parent"))
    state = TrainState(
        step=np.int32(6), params={"w": np.ones(2)}, ema={"w": np.ones(2)}, opt={"m": np.ones(2)}
    )
    checkpoints = CheckpointWriter(config.workdir, keep=1)
    checkpoints.save(state, checkpoint_meta(Stage.open(config)))
    checkpoints.wait()
    return config.workdir


def test_missing_paths_are_listed_with_their_fields(dataset, tmp_path):
    config = nano_config(
        dataset,
        tmp_path,
        init_from=f"{tmp_path}/nowhere",
        data__tokenizer=f"{tmp_path}/no_tokenizer",
        data__fast=f"{tmp_path}/no_fast",
    )
    replace_groups(config, datasets__absent=robot_dataset(tmp_path / "absent"))
    with pytest.raises(UserError) as error:
        build_datasets(config)
    message = str(error.value)
    for field in ("datasets.absent.path", "init_from", "data.tokenizer", "data.fast"):
        assert f"{field} = {tmp_path}" in message
    assert "datasets.robot" not in message
    assert "--config." in message


def test_unknown_dataset_of_a_stream_is_an_error(dataset, tmp_path):
    stream = common.stream("robto", "action", 1.0, extra_segments=0)
    config = replace_groups(nano_config(dataset, tmp_path), streams__other=stream)
    message = r"streams.other.dataset is 'robto'; datasets has \['robot'\]"
    with pytest.raises(UserError, match=message):
        Stage.open(config)


@pytest.mark.parametrize("kind", ["goal_description", "actoin", "afordance"])
def test_stream_without_items_is_an_error(dataset, tmp_path, kind):
    stream = common.stream("robot", kind, 1.0, extra_segments=0)
    config = replace_groups(nano_config(dataset, tmp_path), streams__etc=stream)
    stage = Stage.open(config)
    message = (
        f"no items of kind '{kind}'; it has "
        r"\['affordance', 'spatial_understanding', 'trajectory'\]"
    )
    with pytest.raises(ValueError, match=message):
        stage.batches(0)


def test_dataset_without_items_is_an_error(tmp_path):
    config = nano_config(write_robot_set(tmp_path / "bare", items=False), tmp_path)
    stage = Stage.open(config)
    with pytest.raises(ValueError, match="bare has no ETC items .*'any'"):
        stage.batches(0)


def test_extra_segments_are_refused_if_images_attend_to_the_prompt(dataset, tmp_path):
    message = "streams.action.extra_segments must be 0 with model.image_attends_prompt"
    with pytest.raises(UserError, match=message):
        streams_of(nano_config(dataset, tmp_path, model__image_attends_prompt=True))


def test_subtasks_are_refused_if_images_attend_to_the_prompt(dataset, tmp_path):
    config = nano_config(
        dataset, tmp_path, model__image_attends_prompt=True, data__prompt="subtask"
    )
    stream = common.stream("robot", "action", 0.6, extra_segments=0)
    message = "data.prompt 'subtask' asks for a subtask beside the action"
    with pytest.raises(UserError, match=message):
        streams_of(replace_groups(config, streams__action=stream))


def test_unknown_camera_is_an_error(dataset, tmp_path):
    robot = robot_dataset(dataset, ("front", "rist"))
    config = replace_groups(nano_config(dataset, tmp_path), datasets__robot=robot)
    with pytest.raises(ValueError, match=r"no camera 'rist'; it has \['front', 'wrist'\]"):
        Stage.open(config)


def test_more_cameras_than_a_row_has_are_an_error(dataset, tmp_path):
    with pytest.raises(UserError, match="datasets.robot.cameras.*2.*data.num_cameras 1"):
        Stage.open(nano_config(dataset, tmp_path, data__num_cameras=1))


@pytest.mark.parametrize(
    ("field", "size", "message"),
    [
        ("model__action_dim", 1, "action has width 2.*model.action_dim 1"),
        ("model__state_dim", 2, "observation/state has width 3.*model.state_dim 2"),
    ],
)
def test_vectors_wider_than_the_model_are_an_error(dataset, tmp_path, field, size, message):
    with pytest.raises(UserError, match=message):
        Stage.open(nano_config(dataset, tmp_path, **{field: size}))


def test_another_action_width_than_the_parent_is_an_error(parent, tmp_path):
    config = nano_config(write_robot_set(tmp_path / "wide", action=3), tmp_path, init_from=parent)
    message = "wide: action has width 3, but the checkpoint was trained with width 2"
    with pytest.raises(ValueError, match=message):
        Stage.open(config)


def test_another_horizon_than_the_parent_is_an_error(parent, dataset, tmp_path):
    config = nano_config(dataset, tmp_path, init_from=parent, model__horizon=5)
    with pytest.raises(UserError, match="fitted to chunks of 4 steps; set model.horizon=4"):
        Stage.open(config)


def test_statistics_are_inherited_and_cameras_are_not(parent, dataset, tmp_path):
    inherited = inherited_assets(nano_config(dataset, tmp_path, init_from=parent))
    other_data = write_robot_set(tmp_path / "more", episodes=2)
    config = replace_groups(
        nano_config(other_data, tmp_path, init_from=parent),
        datasets__robot=robot_dataset(other_data, ("wrist", "front")),
    )
    assets = Stage.open(config).assets
    for name in ("state_stats", "action_stats", "fast", "tokenizer"):
        assert json.dumps(assets.to_json()[name]) == json.dumps(inherited.to_json()[name])
    assert assets.action_spec["cameras"] == ["wrist", "front"]
    assert assets.action_spec["action_dim"] == 2
    fresh = Stage.open(nano_config(other_data, tmp_path)).assets
    assert (fresh.action_stats.mean != inherited.action_stats.mean).any()


@pytest.mark.parametrize(
    ("field", "value", "parents"), [("layout", "openpi", "disjoint"), ("places", "pair", "cell")]
)
def test_other_token_ids_than_the_parent_are_an_error(
    parent, dataset, tmp_path, field, value, parents
):
    config = nano_config(dataset, tmp_path, init_from=parent, **{f"data__{field}": value})
    message = f"data.{field} is {value!r}, but {parent} was trained with {parents!r}"
    with pytest.raises(UserError, match=message):
        inherited_assets(config)


def test_a_checkpoint_stores_the_token_layout_and_the_prompt(parent):
    assets = open_checkpoint(parent).meta()["assets"]
    layout = json.loads(assets["tokenizer"])["layout"]
    assert layout["action"] == [1024, 512]
    assert layout["loc"] == [1536, 1024]
    assert layout["name"] == "disjoint"
    assert layout["places"] == "cell"
    assert assets["action_spec"]["prompt"] == "pi0"
    assert assets["action_spec"]["mask_padding"] is True


def test_data_fast_names_a_fitted_tokenizer(parent, dataset, tmp_path):
    """The folder has the public format, which does not store the size of a chunk."""
    fast = inherited_assets(nano_config(dataset, tmp_path, init_from=parent)).fast
    fast.save(tmp_path / "fast")
    file = tmp_path / "fast" / "processor_config.json"
    fields = json.loads(file.read_text()) | {"time_horizon": None, "action_dim": None}
    file.write_text(json.dumps(fields))
    other_data = write_robot_set(tmp_path / "more", episodes=2)  # fitting to it differs
    config = nano_config(other_data, tmp_path / "run", data__fast=str(tmp_path / "fast"))
    assert Stage.open(config).assets.fast.to_json() == fast.to_json()

    chunks = np.random.default_rng(0).uniform(-1, 1, (999, 4, 2))
    fast.fit(chunks, vocab_size=600, scale=40).save(tmp_path / "fast")
    message = "the FAST tokenizer has .* tokens and the vocabulary 512 action ids"
    with pytest.raises(UserError, match=message):
        Stage.open(config)


def test_assets_survive_json(parent, dataset, tmp_path):
    assets = inherited_assets(nano_config(dataset, tmp_path, init_from=parent))
    text = json.dumps(assets.to_json())
    restored = Assets.from_json(json.loads(text))
    assert json.dumps(restored.to_json()) == text
    np.testing.assert_array_equal(restored.action_stats.q99, assets.action_stats.q99)


def test_a_fast_vocabulary_beyond_the_layout_is_an_error(dataset, tmp_path):
    message = "data.fast_vocab 9999 does not fit the tokenizer's 512 action ids"
    with pytest.raises(UserError, match=message):
        Stage.open(nano_config(dataset, tmp_path, data__fast_vocab=9999))
