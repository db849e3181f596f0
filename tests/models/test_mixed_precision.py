"""Gradients through `CastOnRead` against gradients of parameters that are cast before the model
runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from etcvla.models.mixed_precision import CastOnRead, bind_variables, gradient_variables
from etcvla.models.vla import read_dtypes
from etcvla.rules import path_str
from etcvla.train.step import prepare_targets
from tests.models.small import make_model, random_params, random_rows, write_segment
from tests.train.test_step import KEY, SETTINGS

# Without this option XLA leaves out roundings.
EXACT = {"compiler_options": {"xla_allow_excess_precision": False}}


@pytest.fixture
def rows():
    batch = random_rows(np.random.default_rng(0), 2)
    write_segment(batch, 0, 0, 1, [2, 11, 3], [50, 51, 1])
    batch["action_segment"][:1] = 1
    batch["action_mask"][1:] = False
    return prepare_targets(batch, KEY, SETTINGS)[0]


def test_variables_by_dtype_and_trainability():
    params = {name: jnp.full(2, 1 / 3) for name in ("wide", "narrow", "frozen")}
    dtypes = {"wide": jnp.float32, "narrow": jnp.bfloat16, "frozen": jnp.bfloat16}
    trainable = {"wide": True, "narrow": True, "frozen": False}
    variables = gradient_variables(params, dtypes, trainable)
    assert variables["frozen"] is None and variables["wide"] is params["wide"]
    assert variables["narrow"].dtype == jnp.bfloat16 and not variables["narrow"].any()
    bound = bind_variables(params, variables)
    assert bound["wide"] is params["wide"] and bound["frozen"] is params["frozen"]
    assert isinstance(bound["narrow"], CastOnRead)
    np.testing.assert_array_equal(
        bound["narrow"].astype(jnp.bfloat16), params["narrow"].astype(jnp.bfloat16)
    )


def test_gradients_equal_those_of_cast_parameters(rows):
    """Equal up to rounding, and in the dtype in which each parameter is read."""
    module = make_model(dtype="bfloat16")
    params = random_params(module)
    dtypes = read_dtypes(params, module.config)

    def total(params):
        logits, velocity = module.apply(
            {"params": params}, rows, rows["target_positions"], rows["x_t"], rows["time"]
        )
        return jnp.square(logits).sum() + jnp.square(velocity).sum()

    cast = jax.tree.map(lambda param, dtype: param.astype(dtype), params, dtypes)
    expected = jax.jit(jax.grad(total), **EXACT)(cast)
    variables = gradient_variables(params, dtypes, jax.tree.map(lambda _: True, params))
    grad = jax.grad(lambda variables: total(bind_variables(params, variables)))
    grads = jax.jit(grad, **EXACT)(variables)
    for actual, wanted in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        tolerance = 10 * float(jnp.finfo(wanted.dtype).eps) * max(1, float(jnp.abs(wanted).max()))
        np.testing.assert_allclose(
            actual.astype(np.float32), wanted.astype(np.float32), atol=tolerance
        )
    leaves = jax.tree_util.tree_flatten_with_path(grads)[0]
    grad_dtypes = {path_str(path): leaf.dtype for path, leaf in leaves}
    for path in ("llm/layers/mlp/gating_einsum", "llm/layers/pre_ffw_norm_1/Dense_0/bias"):
        assert grad_dtypes[path] == jnp.bfloat16
    for path in ("llm/layers/pre_ffw_norm/scale", "action_in_proj/kernel"):
        assert grad_dtypes[path] == jnp.float32


def test_no_copy_of_all_parameters_is_made():
    """Placeholders are inputs that the program never reads, and casts stay inside the loop over
    layers."""
    params = jnp.zeros((64, 128, 128))  # 4 MiB in float32, 2 MiB in bfloat16

    def loss(params, x):
        def layer(x, weight):
            return jnp.tanh(x @ weight.astype(jnp.bfloat16)), None

        return jax.lax.scan(jax.checkpoint(layer), x, params)[0].astype(jnp.float32).sum()

    def grad(params, x):
        variables = gradient_variables(params, jnp.dtype(jnp.bfloat16), True)
        return jax.grad(lambda variables: loss(bind_variables(params, variables), x))(variables)

    x = jnp.ones((4, 128), jnp.bfloat16)
    memory = jax.jit(grad).lower(params, x).compile().memory_analysis()
    assert memory.output_size_in_bytes == 2 << 20
    assert memory.temp_size_in_bytes < 1 << 20
