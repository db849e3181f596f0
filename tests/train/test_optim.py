"""Tests of the optimizer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from etcvla.train.optim import make_optimizer
from etcvla.train.sharding import opt_shardings
from tests.train.nano import optim_config

PARAMS = {
    "img": {"head": {"kernel": np.float32([[1, 2]]), "bias": np.float32([3, 4])}},
    "llm": {"norm": {"scale": np.float32([5])}, "w": np.float32([[6, 7]])},
}


def step(config, grads, count=1, steps=10):
    """Return parameters and state after `count` updates with the same gradients."""
    optimizer = make_optimizer(config, steps, PARAMS)
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = optimizer.init(params)
    for i in range(count):
        moves = optimizer.trainable(optimizer.frozen_at(i))
        some = jax.tree.map(lambda g, m: g if m else None, grads, moves)
        params, state = optimizer.update(some, state, params, i)
    return params, state


def test_multiple_scales_the_update_and_zero_freezes():
    grads = jax.tree.map(np.ones_like, PARAMS)
    config = optim_config(
        lr_multiple=(("img/.*", 0.0), ("llm/w", 0.5), (".*", 1.0)), weight_decay=((".*", 0.1),)
    )
    trained, _ = step(config, grads, count=3)
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(trained["img"]["head"][name], PARAMS["img"]["head"][name])
    alone, _ = step(optim_config(lr=((0.0, 0.05),), weight_decay=((".*", 0.1),)), grads, count=3)
    np.testing.assert_allclose(trained["llm"]["w"], alone["llm"]["w"], rtol=1e-6)


def test_frozen_parameters_have_no_moments():
    config = optim_config(lr_multiple=(("img/.*", 0.0), (".*", 1.0)))
    state = jax.eval_shape(make_optimizer(config, 10, PARAMS).init, PARAMS)
    assert state["img"]["head"] == {"kernel": (), "bias": ()}
    assert sorted(leaf.size for leaf in jax.tree.leaves(state["llm"])) == [
        1,
        1,
        1,
        1,
        2,
        2,
    ]  # and two counters


def test_unfrozen_parameter_starts_as_if_it_were_new():
    """While frozen, parameter and moments keep their bits; the first step then has full length."""
    thaws = ((0.0, 0.0), (0.5, 0.0), (0.6, 1.0))
    config = optim_config(lr_multiple=(("img/.*", thaws), (".*", 1.0)), weight_decay=((".*", 0.1),))
    grads = jax.tree.map(np.ones_like, PARAMS)
    optimizer = make_optimizer(config, 10, PARAMS)
    assert [optimizer.frozen_at(i) for i in (0, 4, 5, 6, 9)] == [("img/.*",)] * 2 + [()] * 3
    params, state = step(config, grads, count=5)
    late, _ = step(config, grads, count=8)
    for path in (("img", "head", "kernel"), ("img", "head", "bias")):
        first, then, moments = (
            functools.reduce(dict.__getitem__, path, tree) for tree in (params, late, state)
        )
        np.testing.assert_array_equal(first, functools.reduce(dict.__getitem__, path, PARAMS))
        assert moments.count == 0 and not moments.nu.any()
        assert (
            first - then > 0.15
        ).all()  # two steps at 0.1; at the start of the ramp the rate is zero
    assert state["llm"]["w"].count == 5


def test_frozen_gradients_do_not_clip_the_others():
    grads = jax.tree.map(np.ones_like, PARAMS)
    huge = grads | {"img": jax.tree.map(lambda x: 1e6 * np.ones_like(x), PARAMS["img"])}
    frozen = (("img/.*", 0.0), (".*", 1.0))
    config = optim_config(
        lr_multiple=frozen, clip=1.0, eps=1.0
    )  # a large eps makes the size matter to Adam
    for a, b in zip(*map(jax.tree.leaves, (step(config, grads), step(config, huge))), strict=True):
        np.testing.assert_array_equal(a, b)
    clipped, free = (step(c, grads)[0]["llm"]["w"] for c in (config, optim_config(eps=1.0)))
    assert (np.abs(clipped - PARAMS["llm"]["w"]) < np.abs(free - PARAMS["llm"]["w"])).all()


def test_weight_decay_by_rules():
    still = jax.tree.map(np.zeros_like, PARAMS)
    trained, _ = step(optim_config(weight_decay=((".*(bias|scale)", 0.0), (".*", 0.5))), still)
    np.testing.assert_allclose(trained["llm"]["w"], PARAMS["llm"]["w"] * (1 - 0.1 * 0.5), rtol=1e-6)
    np.testing.assert_allclose(
        trained["img"]["head"]["kernel"], PARAMS["img"]["head"]["kernel"] * 0.95, rtol=1e-6
    )
    np.testing.assert_array_equal(trained["img"]["head"]["bias"], PARAMS["img"]["head"]["bias"])
    np.testing.assert_array_equal(trained["llm"]["norm"]["scale"], PARAMS["llm"]["norm"]["scale"])


def test_learning_rate_follows_its_schedule():
    grads = jax.tree.map(np.ones_like, PARAMS)
    config = optim_config(lr=((0.0, 0.0), (0.5, 0.1), (1.0, 0.0)))
    weights = [
        float(step(config, grads, count, steps=4)[0]["llm"]["w"][0, 0]) for count in range(5)
    ]
    np.testing.assert_allclose(
        -np.diff(weights), [0, 0.05, 0.1, 0.05], atol=1e-5
    )  # the first step of Adam is the learning rate


def test_dtypes_of_moments():
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), PARAMS)
    config = optim_config(mu_dtype="bfloat16", nu_dtype="bfloat16", lr=((0.0, 0.01),))
    (params, state), (plain, _) = (
        step(c, grads, count=3) for c in (config, optim_config(lr=((0.0, 0.01),)))
    )
    assert state["llm"]["w"].mu.dtype == state["llm"]["w"].nu.dtype == jnp.bfloat16
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(plain), strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_adafactor_equals_optax():
    """Compare with optax's Adafactor without momentum, and check the axes of factored moments."""
    params = {"w": np.ones((2, 128, 160), np.float32), "b": np.ones(3, np.float32)}
    rng = np.random.default_rng(0)
    grads = [
        jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
        for _ in range(3)
    ]
    config = optim_config(kind="adafactor", b1=0.0, b2=0.999)
    ours = make_optimizer(config, 10, params)
    theirs = optax.adafactor(0.1, multiply_by_parameter_scale=False)
    state = ours.init(params)
    p = params
    q = params
    other = theirs.init(params)
    for i, grad in enumerate(grads):
        p, state = ours.update(grad, state, p, i)
        updates, other = theirs.update(grad, other, q)
        q = optax.apply_updates(q, updates)
    for a, b in zip(jax.tree.leaves(p), jax.tree.leaves(q), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    mesh = AbstractMesh((1, 2, 4), ("data", "fsdp", "tensor"))
    where = {
        "w": NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor")),
        "b": NamedSharding(mesh, PartitionSpec()),
    }
    places = opt_shardings(jax.eval_shape(ours.init, params), params, where)
    actual = {
        leaf.shape: place.spec
        for leaf, place in zip(*map(jax.tree.leaves, (state["w"], places["w"])), strict=True)
    }
    assert actual == {
        (): PartitionSpec(),
        (1,): PartitionSpec(),
        (2, 128): PartitionSpec(None, "fsdp"),
        (2, 160): PartitionSpec(None, "tensor"),
        (2, 128, 160): PartitionSpec(None, "fsdp", "tensor"),
    }


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("lr", ((0.5, 1.0), (0.2, 1.0)), "optim.lr: progress must increase"),
        ("lr", 0.1, r"optim.lr: expected \(\(progress"),
        ("kind", "adamm", "unknown optim.kind 'adamm', did you mean 'adamw'"),
        ("lr_multiple", ((".*", ((0.0, -1.0),)),), r"optim.lr_multiple of '\.\*': negative value"),
        (
            "lr_multiple",
            (("lmm/.*", 0.0), (".*", 1.0)),
            "optim.lr_multiple: no parameter matches 'lmm/.*'",
        ),
        (
            "weight_decay",
            (("img/.*", 0.0),),
            "optim.weight_decay: no rule matches llm/norm/scale, llm/w",
        ),
    ],
)
def test_wrong_field_is_an_error(field, value, message):
    config = optim_config()
    with config.ignore_type():
        config[field] = value
    with pytest.raises(ValueError, match=message):
        make_optimizer(config, 10, PARAMS)
