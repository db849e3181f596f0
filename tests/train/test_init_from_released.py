"""A stage that starts from released weights."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from etcvla.models import pretrained
from etcvla.train import sharding
from etcvla.train.checkpoint import open_checkpoint
from etcvla.train.initial import initial_state
from etcvla.train.loop import train
from etcvla.train.stage import Stage, missing_paths
from etcvla.train.step_functions import abstract_state
from tests.data.handmade_rlds import write_robot_set
from tests.models.small import is_backbone, random_params
from tests.train.nano import flatten, nano_config, saved_state


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


def state_at_step_0(config):
    stage = Stage.open(config)
    optimizer, abstract = abstract_state(stage, sharding.make_mesh(config.mesh))
    state = initial_state(stage, optimizer, abstract)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    assert shardings == jax.tree.map(lambda x: x.sharding, abstract)
    return state


def test_the_backbone_is_loaded_and_the_expert_is_fresh(dataset, released, tmp_path, capsys):
    path, released_params = released
    config = nano_config(dataset, tmp_path, init_from=path)
    assert missing_paths(config) == {}
    state = state_at_step_0(config)
    fresh = flatten(state_at_step_0(nano_config(dataset, tmp_path)).params)
    for tree in (state.params, state.ema):
        for name, leaf in flatten(tree).items():
            expected = released_params[name] if is_backbone(name) else fresh[name]
            np.testing.assert_array_equal(leaf, expected, err_msg=name)
    loaded = sum(x.size for name, x in released_params.items() if is_backbone(name))
    others = sum(x.size for name, x in released_params.items() if not is_backbone(name))
    output = capsys.readouterr().out
    assert f"objective_bridge: {path} (Hugging Face PaliGemma): {loaded:,} parameters" in output
    assert f"fresh, not in this kind of checkpoint: {others:,} parameters in " in output


def test_training_from_released_weights_records_them_in_the_lineage(dataset, released, tmp_path):
    path, released_params = released
    config = nano_config(dataset, tmp_path, init_from=path)
    train(config, until=1)
    assert open_checkpoint(config.workdir).meta()["lineage"] == [{"released": path}]
    name = "llm/final_norm/scale"
    change = np.abs(saved_state(config)[f"params/{name}"] - released_params[name]).max()
    assert 0 < change < 0.1  # one step


def test_weights_of_another_size_are_refused(dataset, released, tmp_path):
    config = nano_config(dataset, tmp_path, init_from=released[0], model__size="tiny")
    with pytest.raises(pretrained.MismatchError, match="siglip.width 16 instead of 128"):
        train(config)
