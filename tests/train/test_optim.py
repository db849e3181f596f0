"""The optimizer that is made of rules."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from etcvla.models import flops
from etcvla.train.optim import freeze, make_optimizer

PARAMS = {"img": {"head": {"kernel": np.float32([[1, 2]]), "bias": np.float32([3, 4])}},
          "llm": {"norm": {"scale": np.float32([5])}, "w": np.float32([[6, 7]])}}


def optim(**fields):
    return ml_collections.ConfigDict({
        "lr": ((0.0, 0.1),), "lr_multiple": ((".*", 1.0),), "weight_decay": ((".*", 0.0),), "b1": 0.9, "b2": 0.95,
        "eps": 1e-8, "clip": 1e9, **fields})


def step(config, grads, count=1, steps=10):
    """Parameters after `count` updates with the same gradients."""
    optimizer = make_optimizer(config, steps, PARAMS)
    params, state = jax.tree.map(jnp.asarray, PARAMS), None
    state = optimizer.init(params)
    for _ in range(count):
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_multiples_scale_and_zero_freezes():
    grads = jax.tree.map(np.ones_like, PARAMS)
    config = optim(lr_multiple=(("img/.*", 0.0), ("llm/w", 0.5), (".*", 1.0)), weight_decay=((".*", 0.1),))
    trained = step(config, grads, count=3)
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(trained["img"]["head"][name], PARAMS["img"]["head"][name])
    alone = step(optim(lr=((0.0, 0.05),), weight_decay=((".*", 0.1),)), grads, count=3)
    np.testing.assert_allclose(trained["llm"]["w"], alone["llm"]["w"], rtol=1e-6)


def test_what_is_frozen_has_no_moments():
    config = optim(lr_multiple=(("img/.*", 0.0), (".*", 1.0)))
    state = jax.eval_shape(make_optimizer(config, 10, PARAMS).init, PARAMS)
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(state))
    assert sizes == [1, 1, 1, 1, 2, 2]  # two counters, and two moments of llm/norm/scale and llm/w


def test_no_gradient_is_computed_for_what_is_frozen():
    x = np.ones((4, 8), np.float32)
    params = {"frozen": np.ones((8, 8), np.float32), "trained": np.ones((8, 8), np.float32)}

    def loss(params, rules):
        params = freeze(params, rules)
        return jnp.sum(jnp.tanh(x @ params["trained"]) @ params["frozen"])

    def cost(*rules):
        return flops.count(lambda params: jax.grad(loss)(params, rules), params).total()

    product = 2 * 4 * 8 * 8
    assert cost((".*", 1.0)) == 5 * product and cost(("frozen", 0.0), (".*", 1.0)) == 4 * product


def test_frozen_gradients_do_not_clip_the_others():
    grads = jax.tree.map(np.ones_like, PARAMS)
    huge = jax.tree.map(np.copy, grads) | {"img": jax.tree.map(lambda x: 1e6 * np.ones_like(x), PARAMS["img"])}
    config = optim(lr_multiple=(("img/.*", 0.0), (".*", 1.0)), clip=1.0, eps=1.0)  # eps: so that size matters to Adam
    for a, b in zip(*map(jax.tree.leaves, (step(config, grads), step(config, huge))), strict=True):
        np.testing.assert_array_equal(a, b)
    clipped, free = step(config, grads)["llm"]["w"], step(optim(eps=1.0), grads)["llm"]["w"]
    assert (np.abs(clipped - PARAMS["llm"]["w"]) < np.abs(free - PARAMS["llm"]["w"])).all()


def test_weight_decay_pulls_what_its_rules_say():
    still = jax.tree.map(np.zeros_like, PARAMS)
    trained = step(optim(weight_decay=((".*(bias|scale)", 0.0), (".*", 0.5))), still)
    np.testing.assert_allclose(trained["llm"]["w"], PARAMS["llm"]["w"] * (1 - 0.1 * 0.5), rtol=1e-6)
    np.testing.assert_allclose(trained["img"]["head"]["kernel"], PARAMS["img"]["head"]["kernel"] * 0.95, rtol=1e-6)
    np.testing.assert_array_equal(trained["img"]["head"]["bias"], PARAMS["img"]["head"]["bias"])
    np.testing.assert_array_equal(trained["llm"]["norm"]["scale"], PARAMS["llm"]["norm"]["scale"])


def test_the_rate_follows_its_knots():
    grads = jax.tree.map(np.ones_like, PARAMS)
    config = optim(lr=((0.0, 0.0), (0.5, 0.1), (1.0, 0.0)))
    weights = [float(step(config, grads, count, steps=4)["llm"]["w"][0, 0]) for count in range(5)]
    np.testing.assert_allclose(-np.diff(weights), [0, 0.05, 0.1, 0.05], atol=1e-5)  # Adam's step is the rate itself


@pytest.mark.parametrize(("field", "value", "message"), [
    ("lr", ((0.5, 1.0), (0.2, 1.0)), "optim.lr: progress must rise"), ("lr", 0.1, r"optim.lr: expected \(\(progress"),
    ("lr_multiple", (("lmm/.*", 0.0), (".*", 1.0)), "optim.lr_multiple: no parameter matches 'lmm/.*'"),
    ("weight_decay", (("img/.*", 0.0),), "optim.weight_decay: no rule matches llm/norm/scale, llm/w")])
def test_a_wrong_field_is_named(field, value, message):
    config = optim()
    with config.ignore_type():
        config[field] = value
    with pytest.raises(ValueError, match=message):
        make_optimizer(config, 10, PARAMS)
