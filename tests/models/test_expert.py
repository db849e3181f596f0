"""Tests of the action expert: its gradient and its noise samples."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from etcvla.models import flow
from etcvla.rules import path_str
from tests.models.small import (
    CONFIG,
    ROWS,
    acting_rows,
    is_backbone,
    make_model,
    noise_and_time,
    random_params,
)


@pytest.mark.parametrize("insulate", [True, False])
def test_insulation_stops_the_gradient_at_the_backbone(insulate):
    model = make_model(insulate=insulate)
    rng = np.random.default_rng(0)
    batch = acting_rows(rng, segments=True)
    x_t, time = noise_and_time(rng, 1)

    def loss(params):
        return jnp.square(model.apply({"params": params}, batch, None, x_t, time)[1]).sum()

    grads = jax.tree_util.tree_flatten_with_path(jax.jit(jax.grad(loss))(random_params(model)))[0]
    largest = {path_str(path): float(np.abs(grad).max()) for path, grad in grads}
    unused = {
        "llm/final_norm/scale"
    }  # the norm of the language model's output, which the expert does not read
    for name, value in largest.items():
        if is_backbone(name) and insulate or name in unused:
            assert value == 0, name
        elif "key/bias" not in name:  # shifts all logits of a softmax equally
            assert value > 1e-4, name


def test_loops_and_rematerialization_change_no_gradient():
    """Compare loops and rematerialization, which only full sizes use, with unrolled layers."""
    rng = np.random.default_rng(0)
    batch = acting_rows(rng, segments=True)
    x_t, time = noise_and_time(rng, 1)

    def grads(**how):
        model = make_model(**how)

        def loss(params):
            logits, velocity = model.apply(
                {"params": params}, batch, jnp.full((ROWS, 1), 3), x_t, time
            )
            return jnp.square(velocity).sum() + jnp.square(logits).sum()

        return jax.jit(jax.grad(loss))(random_params(model))

    for a, b in zip(*map(jax.tree.leaves, (grads(), grads(remat="full", unroll=1))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * max(1, np.abs(a).max()))


def test_bfloat16_is_close_to_float32():
    rng = np.random.default_rng(0)
    batch = acting_rows(rng, segments=True)
    x_t, time = noise_and_time(rng, 1)
    columns = jnp.full((ROWS, 1), 3)
    actual = {}
    for dtype in ("float32", "bfloat16"):
        model = make_model(dtype=dtype)
        run = jax.jit(
            lambda params, model=model: model.apply({"params": params}, batch, columns, x_t, time)
        )
        actual[dtype] = run(random_params(model))
    for exact, near in zip(actual["float32"], actual["bfloat16"], strict=True):
        assert near.dtype == jnp.float32  # logits and velocities leave in full precision
        assert 0 < np.abs(near - exact).max() < 0.05 * np.abs(exact).max()


@pytest.fixture(
    scope="module",
    params=[("token", True), ("text", True), ("token", False)],
    ids=["token-adaptive", "text-adaptive", "token-plain"],
)
def expert(request):
    """Return (model, params, jitted velocity of a full pass)."""
    state, adaptive = request.param
    model = make_model(state=state, expert=dataclasses.replace(CONFIG.expert, adaptive=adaptive))
    params = random_params(model)
    return (
        model,
        params,
        jax.jit(
            lambda batch, x_t, time: model.apply({"params": params}, batch, None, x_t, time)[1]
        ),
    )


def test_noise_samples_in_one_row_equal_separate_rows(expert):
    _, _, velocity = expert
    rng = np.random.default_rng(1)
    batch = acting_rows(rng, segments=True)
    x_t, time = noise_and_time(rng, 3)
    together = velocity(batch, x_t, time)
    for draw in range(3):
        alone = velocity(batch, x_t[:, draw : draw + 1], time[:, draw : draw + 1])
        np.testing.assert_allclose(together[:, draw], alone[:, 0], atol=1e-5)


def test_distribution_of_time_and_exact_integration():
    time = np.asarray(flow.sample_time(jax.random.key(0), (20_000,)))
    assert time.min() >= 0.001 and time.max() <= 1
    assert time.mean() == pytest.approx(0.999 * 0.6 + 0.001, abs=0.01)  # Beta(1.5, 1) has mean 0.6
    actions = np.ones((1, 1, 2, 3), np.float32)
    noise = np.full((1, 1, 2, 3), 3, np.float32)
    x_t, velocity = flow.interpolate(actions, noise, np.float32([[0.25]]))
    assert (np.asarray(x_t) == 1.5).all() and (np.asarray(velocity) == 2).all()
    # The true velocity of a straight path leads from noise to actions in any number of steps.
    ends = flow.integrate(lambda x, _: jnp.full_like(x, 2), jnp.asarray(noise[:, 0]), 7)
    np.testing.assert_allclose(ends, actions[:, 0], atol=1e-6)
