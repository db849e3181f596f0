"""What a stage needs and does not find, or finds and cannot use, is named before anything is trained."""

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


def changed(config, **fields):
    """`fields` are whole sub-trees: datasets__robot=..., streams__action=..."""
    with config.unlocked():
        for name, value in fields.items():
            group, key = name.split("__")
            config[group][key] = value
    return config


def robot(directory, cameras=("front", "wrist")):
    return common.dataset(str(directory), cameras)


@pytest.fixture(scope="module")
def parent(dataset, tmp_path_factory):
    """The workdir of a stage whose checkpoint has its assets; the parameters do not matter here."""
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
    )
    changed(config, datasets__absent=robot(tmp_path / "absent"))
    with pytest.raises(UserError) as error:
        build_datasets(config)
    message = str(error.value)
    for field in ("datasets.absent.path", "init_from", "data.tokenizer"):
        assert f"{field} = {tmp_path}" in message
    assert "datasets.robot" not in message and "--config." in message


def test_a_stream_of_an_unknown_dataset(dataset, tmp_path):
    config = changed(
        nano_config(dataset, tmp_path),
        streams__other=common.stream("robto", "action", 1.0, extra_segments=0),
    )
    with pytest.raises(
        ValueError, match=r"streams.other.dataset is 'robto'; datasets has \['robot'\]"
    ):
        Stage.open(config)


@pytest.mark.parametrize(
    ("dataset_name", "kind", "message"),
    [
        ("robot", "goal_description", "no items of kind 'goal_description'"),
        ("robto", "any", "datasets has"),
        ("robot", "actoin", "no items of kind 'actoin'"),
    ],
)
def test_a_weight_for_a_stream_of_which_there_is_nothing(
    dataset, tmp_path, dataset_name, kind, message
):
    config = changed(
        nano_config(dataset, tmp_path),
        streams__other=common.stream(dataset_name, kind, 1.0, extra_segments=0),
    )
    with pytest.raises(ValueError, match=message):
        Stage.open(config).row_builder()


def test_riders_where_images_read_the_prompt(dataset, tmp_path):
    with pytest.raises(
        ValueError, match="streams.action.extra_segments must be 0 with model.image_attends_prompt"
    ):
        streams_of(nano_config(dataset, tmp_path, model__image_attends_prompt=True))


def test_a_subtask_where_images_read_the_prompt(dataset, tmp_path):
    config = changed(
        nano_config(dataset, tmp_path, model__image_attends_prompt=True, data__prompt="subtask"),
        streams__action=common.stream("robot", "action", 0.6, extra_segments=0),
    )
    with pytest.raises(
        ValueError, match="data.prompt 'subtask' asks for a subtask beside the action"
    ):
        streams_of(config)


def test_an_unknown_camera(dataset, tmp_path):
    config = changed(
        nano_config(dataset, tmp_path), datasets__robot=robot(dataset, ("front", "rist"))
    )
    with pytest.raises(ValueError, match=r"no camera 'rist'; it has \['front', 'wrist'\]"):
        Stage.open(config)


def test_more_cameras_than_rows_have(dataset, tmp_path):
    with pytest.raises(ValueError, match="datasets.robot.cameras.*2.*data.num_cameras 1"):
        Stage.open(nano_config(dataset, tmp_path, data__num_cameras=1))


@pytest.mark.parametrize(
    ("field", "size", "message"),
    [
        ("model__action_dim", 1, "action has width 2.*model.action_dim 1"),
        ("model__state_dim", 2, "observation/state has width 3.*model.state_dim 2"),
    ],
)
def test_vectors_wider_than_the_model(dataset, tmp_path, field, size, message):
    with pytest.raises(ValueError, match=message):
        Stage.open(nano_config(dataset, tmp_path, **{field: size}))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "afordance",
            r"no items of kind 'afordance'; it has \['affordance', 'spatial_understanding', 'trajectory'\]",
        ),
        ("goal_description", "no items of kind 'goal_description'"),
    ],
)
def test_a_kind_that_the_dataset_does_not_have(dataset, tmp_path, kind, message):
    config = changed(
        nano_config(dataset, tmp_path),
        streams__etc=common.stream("robot", kind, 1.0, extra_segments=0),
    )
    with pytest.raises(ValueError, match=message):
        Stage.open(config).batches(0)


def test_a_dataset_without_items(tmp_path):
    config = nano_config(write_robot_set(tmp_path / "bare", items=False), tmp_path)
    with pytest.raises(ValueError, match="bare has no ETC items .*'any'"):
        Stage.open(config).batches(0)


def test_another_action_width_than_the_checkpoints(parent, tmp_path):
    config = nano_config(write_robot_set(tmp_path / "wide", action=3), tmp_path, init_from=parent)
    with pytest.raises(
        ValueError, match="wide: action has width 3, but the checkpoint was trained with width 2"
    ):
        Stage.open(config)


def test_statistics_are_inherited_and_cameras_are_the_stages_own(parent, dataset, tmp_path):
    inherited = inherited_assets(nano_config(dataset, tmp_path, init_from=parent))
    data = write_robot_set(tmp_path / "more", episodes=2)
    config = changed(
        nano_config(data, tmp_path, init_from=parent),
        datasets__robot=robot(data, ("wrist", "front")),
    )
    assets = Stage.open(config).assets
    for name in ("state_stats", "action_stats", "fast", "tokenizer"):
        assert json.dumps(assets.to_json()[name]) == json.dumps(inherited.to_json()[name])
    assert (
        assets.action_spec["cameras"] == ["wrist", "front"]
        and assets.action_spec["action_dim"] == 2
    )
    fresh = Stage.open(nano_config(data, tmp_path)).assets
    assert (fresh.action_stats.mean != inherited.action_stats.mean).any()


def test_another_token_layout_than_the_checkpoints(parent, dataset, tmp_path):
    with pytest.raises(
        ValueError, match=f"data.layout is 'openpi', but {parent} was trained with 'disjoint'"
    ):
        inherited_assets(nano_config(dataset, tmp_path, init_from=parent, data__layout="openpi"))


def test_the_layout_and_the_prompt_travel_in_a_checkpoint(parent):
    """So that its ids mean what they meant."""
    assets = open_checkpoint(parent).meta()["assets"]
    layout = json.loads(assets["tokenizer"])["layout"]
    assert (
        layout["action"] == [1024, 512]
        and layout["loc"] == [1536, 1024]
        and layout["name"] == "disjoint"
    )
    assert (
        assets["action_spec"]["prompt"] == "pi0" and assets["action_spec"]["mask_padding"] is True
    )


def test_a_fitted_fast_tokenizer_is_taken(parent, dataset, tmp_path):
    """In the public format, its chunks' sizes left open."""
    fast = inherited_assets(nano_config(dataset, tmp_path, init_from=parent)).fast
    fast.save(tmp_path / "fast")
    file = tmp_path / "fast" / "processor_config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"time_horizon": None, "action_dim": None})
    )
    more = write_robot_set(tmp_path / "more", episodes=2)  # to which another would be fitted
    config = nano_config(more, tmp_path / "run", data__fast=str(tmp_path / "fast"))
    assert Stage.open(config).assets.fast.to_json() == fast.to_json()
    with pytest.raises(
        ValueError, match="the FAST tokenizer has .* tokens and the vocabulary 512 action ids"
    ):
        fast.fit(
            np.random.default_rng(0).uniform(-1, 1, (999, 4, 2)), vocab_size=600, scale=40
        ).save(tmp_path / "fast")
        Stage.open(config)
    config.data.fast = str(tmp_path / "absent")
    with pytest.raises(UserError, match=f"data.fast = {tmp_path}/absent"):
        build_datasets(config)


def test_assets_survive_json(parent, dataset, tmp_path):
    assets = inherited_assets(nano_config(dataset, tmp_path, init_from=parent))
    again = Assets.from_json(json.loads(json.dumps(assets.to_json())))
    assert json.dumps(again.to_json()) == json.dumps(assets.to_json())
    np.testing.assert_array_equal(again.action_stats.q99, assets.action_stats.q99)


def test_a_fast_vocabulary_beyond_the_layout(dataset, tmp_path):
    with pytest.raises(
        ValueError, match="data.fast_vocab 9999 does not fit the tokenizer's 512 action ids"
    ):
        Stage.open(nano_config(dataset, tmp_path, data__fast_vocab=9999))
