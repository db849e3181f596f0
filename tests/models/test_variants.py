"""Tests of the named sizes by shapes alone; no parameters of full size are allocated."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from etcvla import batch as batch_lib
from etcvla.errors import UserError
from etcvla.models import ops, variants
from etcvla.models.gemma import FeedForward
from etcvla.models.lora import LoRA, ModuleOptions
from etcvla.models.siglip import MlpBlock
from etcvla.models.variants import config_from_dict, config_to_dict, make_config
from etcvla.models.vla import VLA, init_params
from etcvla.rules import path_str
from etcvla.train.optim import make_optimizer
from etcvla.train.state import TrainState
from etcvla.train.step import StepSettings, train_step
from tests.models.small import CONFIG, is_backbone

PALIGEMMA_IDS = 257_152
TABLE = []  # the cells of the table in the docstring
for line in variants.__doc__.splitlines():
    if line.startswith("|"):
        TABLE.append([cell.strip() for cell in line.split("|")[1:-1]])


def model_of(size, vocab_size=PALIGEMMA_IDS):
    return VLA(
        make_config(
            size,
            vocab_size=vocab_size,
            state_dim=32,
            action_dim=32,
            horizon=50,
            state="text",
            insulate=True,
            image_attends_prompt=False,
        )
    )


@pytest.mark.parametrize(
    ("size", "vocab_size", "backbone", "expert"), TABLE[2:], ids=lambda cell: cell
)
def test_docstring_has_the_numbers_of_parameters(size, vocab_size, backbone, expert):
    params = jax.eval_shape(
        functools.partial(init_params, model_of(size, int(vocab_size.replace(",", ""))))
    )
    counts = {
        path_str(path): leaf.size for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }
    actual = sum(count for path, count in counts.items() if is_backbone(path))
    assert (f"{actual:,}", f"{sum(counts.values()) - actual:,}") == (backbone, expert)


def test_docstring_lists_every_size():
    assert {row[0] for row in TABLE[2:]} == variants.SIZES.keys() - {"nano"}


@pytest.mark.parametrize("size", ["paligemma_3b", "paligemma2_3b"])
def test_training_step_at_full_size_by_shapes(size):
    model = model_of(size)
    config = common.base("objective_bridge", "paligemma_3b")
    with config.unlocked():
        config.streams.action = common.stream("robot", "action", 1.0, extra_segments=0)
    config.loss.fast = common.constant(1.0)
    config.loss.flow = common.constant(1.0)
    config.steps = 10
    params = jax.eval_shape(functools.partial(init_params, model))
    optimizer = make_optimizer(config.optim, config.steps, params)
    state = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        params=params,
        ema=params,
        opt=jax.eval_shape(optimizer.init, params),
    )
    batch = batch_lib.zeros(B=2, C=3, H=224, W=224, L=config.data.text_len, Q=32, P=50, A=32)
    step = functools.partial(
        train_step,
        model=model,
        optimizer=optimizer,
        settings=StepSettings.from_config(config, loc_offset=9),
    )
    after, metrics = jax.eval_shape(step, state, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(after.params)} == {jnp.dtype("float32")}
    assert metrics.keys() >= {
        "loss",
        "loss/text",
        "loss/fast",
        "loss/flow",
        "action/accuracy",
        "grad_norm",
    }
    assert {value.dtype for value in metrics.values()} == {jnp.dtype("float32")}
    lines = {name: value.shape for name, value in metrics.items() if value.shape}
    assert lines == {"flow_error/dim": (32,), "flow_error/time": (5,)}


def test_config_survives_a_round_trip_through_json():
    config = model_of("paligemma2_3b").config
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


def test_unknown_size_is_an_error():
    with pytest.raises(
        ValueError, match="unknown model.size 'paligema_3b', did you mean 'paligemma_3b'"
    ):
        make_config("paligema_3b")


def test_other_image_size():
    config = make_config(
        "paligemma_3b",
        image_size=448,
        **{
            name: getattr(model_of("paligemma_3b").config, name)
            for name in (
                "vocab_size",
                "state_dim",
                "action_dim",
                "horizon",
                "state",
                "insulate",
                "image_attends_prompt",
            )
        },
    )
    assert config.siglip.tokens == 1024 and config.siglip.width == 1152
    with pytest.raises(ValueError, match="siglip.image_size 230 is not a multiple of patch 14"):
        make_config("paligemma_3b", image_size=230)


def test_activation_of_the_mlps():
    """Both kinds of MLP apply the named function; a config without a name has PaliGemma's."""
    assert variants.SIZES["tiny"]["vlm"].activation == "relu"
    assert variants.SIZES["paligemma_3b"]["siglip"].activation == "gelu_tanh"
    options = ModuleOptions(jnp.dtype("float32"), LoRA(), "none", 1)
    x = jnp.linspace(-2, 2, 4 * CONFIG.vlm.width).reshape(1, 4, -1)
    for name, function in ops.ACTIVATIONS.items():
        gemma = FeedForward(dataclasses.replace(CONFIG.vlm, activation=name), options)
        params = gemma.init(jax.random.key(0), x)
        gating = params["params"]["gating_einsum"]
        expected = (function(x @ gating[0]) * (x @ gating[1])) @ params["params"]["linear"]
        np.testing.assert_allclose(gemma.apply(params, x), expected, atol=1e-5)
        config = dataclasses.replace(CONFIG.siglip, activation=name, width=CONFIG.vlm.width)
        tower = MlpBlock(config, options)
        params = tower.init(jax.random.key(0), x)
        hidden = function(x @ params["params"]["Dense_0"]["kernel"])
        expected = hidden @ params["params"]["Dense_1"]["kernel"]
        np.testing.assert_allclose(tower.apply(params, x), expected, atol=1e-5)
    with pytest.raises(UserError, match="unknown siglip.activation 'rulu', did you mean 'relu'"):
        dataclasses.replace(CONFIG.siglip, activation="rulu")
