"""A stage that starts from released weights: what comes from them, what is fresh, and what does not fit."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from etcvla.models import pretrained
from etcvla.train import sharding
from etcvla.train.checkpoint import open_checkpoint
from etcvla.train.initial import initial_state
from etcvla.train.loop import abstract_state, train
from etcvla.train.stage import Stage, missing_paths
from tests.data.handmade_rlds import write_robot_set
from tests.models.small import is_backbone, random_params
from tests.train.nano import nano_config


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_robot_set(tmp_path_factory.mktemp("robot"))


@pytest.fixture(scope="module")
def released(dataset, tmp_path_factory):
    """A Hugging Face directory of the nano model's size, and its parameters by path."""
    folder = tmp_path_factory.mktemp("released")
    model = Stage.open(nano_config(dataset, folder / "run")).model
    params = random_params(model)
    pretrained.export_hugging_face(params, model.config, folder / "paligemma")
    return str(folder / "paligemma"), flatten_dict(params, sep="/")


def step_zero(config):
    stage = Stage.open(config)
    optimizer, abstract = abstract_state(stage, sharding.make_mesh(config.mesh))
    state = initial_state(stage, optimizer, abstract)
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, abstract)
    return state


def test_the_backbone_is_the_checkpoints_and_the_expert_is_fresh(
    dataset, released, tmp_path, capsys
):
    path, expected = released
    config = nano_config(dataset, tmp_path, init_from=path)
    assert missing_paths(config) == {}
    state, fresh = step_zero(config), step_zero(nano_config(dataset, tmp_path))
    for tree in (state.params, state.ema):
        for (name, leaf), new in zip(
            flatten_dict(tree, sep="/").items(), jax.tree.leaves(fresh.params), strict=True
        ):
            np.testing.assert_array_equal(
                leaf, expected[name] if is_backbone(name) else new, err_msg=name
            )
    loaded = sum(leaf.size for name, leaf in expected.items() if is_backbone(name))
    rest = sum(leaf.size for name, leaf in expected.items() if not is_backbone(name))
    told = capsys.readouterr().out
    assert (
        f"objective_bridge: {path} (Hugging Face PaliGemma): {loaded:,} parameters in 32 arrays loaded"
        in told
    )
    assert f"fresh, not in this kind of checkpoint: {rest:,} parameters in " in told


def test_it_trains_and_remembers_where_it_came_from(dataset, released, tmp_path):
    config = nano_config(dataset, tmp_path, init_from=released[0])
    train(config, until=1)
    assert open_checkpoint(config.workdir).meta()["lineage"] == [{"released": released[0]}]
    state = open_checkpoint(config.workdir).train_state(
        abstract_state(Stage.open(config), sharding.make_mesh(config.mesh))[1]
    )
    moved = np.abs(
        state.params["llm"]["final_norm"]["scale"] - released[1]["llm/final_norm/scale"]
    ).max()
    assert 0 < moved < 0.1  # one step from there


def test_another_architecture_is_refused_with_its_sizes(dataset, released, tmp_path):
    config = nano_config(dataset, tmp_path, init_from=released[0], model__size="tiny")
    with pytest.raises(pretrained.MismatchError, match="siglip.width 16 instead of 128"):
        train(config)
