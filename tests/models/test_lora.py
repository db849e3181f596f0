"""Tests of adapters: where they are, that new ones change nothing, and merging."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from etcvla.models.gemma import FeedForward
from etcvla.models.lora import LoRA, ModuleOptions, Weight, merge
from etcvla.models.vla import init_params
from tests.models.small import CONFIG, make_model, random_params, random_rows, write_segment

EVERYWHERE = ((r"llm/.*_1(/.*)?", 3), (".*", 2))
SCALE = 0.5


def shapes(model):
    return shapes_of(jax.eval_shape(lambda: init_params(model)))


def shapes_of(params):
    return {path: leaf.shape for path, leaf in flatten_dict(params, sep="/").items()}


@pytest.fixture(scope="module")
def run():
    """Return the outputs of the small model, with or without adapters everywhere."""
    rng = np.random.default_rng(0)
    batch = random_rows(rng, 2)
    for row in range(2):
        write_segment(batch, row, 0, 1, [2, 11, 12, 3], [50, 51, 1])
    batch["action_segment"][:] = 1
    columns = jnp.broadcast_to(jnp.arange(8), (2, 8))
    x_t = rng.normal(size=(2, 1, 4, 5)).astype(np.float32)
    models = {False: make_model(), True: make_model(lora=EVERYWHERE, lora_scale=SCALE)}
    passes = {
        adapted: jax.jit(
            lambda params, model=model: model.apply(
                {"params": params}, batch, columns, x_t, np.full((2, 1), 0.3, np.float32)
            )
        )
        for adapted, model in models.items()
    }
    return models, lambda adapted, params: jax.tree.map(np.asarray, passes[adapted](params))


def test_every_projection_can_have_an_adapter(run):
    models, _ = run
    base = shapes(models[False])
    adapted = shapes(models[True])
    assert {path: adapted[path] for path in base} == base
    matrices = {
        path
        for path, shape in base.items()
        if not path.endswith(("bias", "scale", "pos_embedding", "input_embedding"))
    }
    added = adapted.keys() - base.keys()
    assert len(added) == 2 * len(matrices) and all(
        path.endswith(("lora_a", "lora_b")) for path in added
    )
    # The names and axes of openpi, with rank 2 on the language model and 3 on the expert.
    gemma = {
        name: adapted[f"llm/layers/{name}"][1:]
        for name in (
            "attn/q_einsum/lora_a",
            "attn/q_einsum/lora_b",
            "attn/kv_einsum/lora_b",
            "attn/attn_vec_einsum_1/lora_a",
            "attn/attn_vec_einsum_1/lora_b",
            "mlp/gating_einsum_lora_a",
            "mlp_1/linear_lora_b",
        )
    }
    assert list(gemma.values()) == [
        (2, 24, 2),
        (2, 2, 8),
        (2, 1, 2, 8),
        (2, 8, 3),
        (2, 3, 16),
        (2, 24, 2),
        (3, 16),
    ]


def test_fresh_adapters_change_nothing(run):
    models, outputs = run
    params = random_params(models[False])
    fresh = flatten_dict(jax.jit(lambda: init_params(models[True]))(), sep="/")
    flat = flatten_dict(params, sep="/")
    assert all(fresh[path].any() == path.endswith("lora_a") for path in fresh.keys() - flat.keys())
    both = unflatten_dict({**fresh, **flat}, sep="/")
    jax.tree.map(np.testing.assert_array_equal, outputs(True, both), outputs(False, params))


def test_merged_weights_equal_adapters(run):
    models, outputs = run
    params = random_params(models[True], scale=0.2)
    merged = merge(params, models[True].config.adapters)
    assert shapes_of(merged) == shapes(models[False])
    plain = {
        path: leaf for path, leaf in flatten_dict(params, sep="/").items() if "lora" not in path
    }
    plain = unflatten_dict(plain, sep="/")
    actual = outputs(False, merged)
    expected = outputs(True, params)
    without = outputs(False, plain)
    for a, b, c in zip(actual, expected, without, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())
        assert np.abs(c - b).max() > 0.05 * np.abs(b).max()


def test_slice_of_a_weight_keeps_its_adapter():
    rng = np.random.default_rng(0)
    w, a, b, x = (
        rng.normal(size=shape).astype(np.float32)
        for shape in ((2, 5, 7), (2, 5, 3), (2, 3, 7), (4, 6, 5))
    )
    for i, weight in enumerate(Weight(["cdf", "cdr", "crf"], [w, a, b])[i] for i in range(2)):
        np.testing.assert_allclose(
            weight.einsum("btd,df->btf", x), x @ (w[i] + a[i] @ b[i]), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("lora", [LoRA(), LoRA(((".*", 3),), SCALE)])
def test_mlp_in_parts_equals_the_whole_mlp(lora):
    x = jax.random.normal(jax.random.key(0), (2, 3, 24))
    whole, parts = (
        FeedForward(dataclasses.replace(CONFIG.vlm, mlp_parts=n), ModuleOptions(jnp.float32, lora))
        for n in (1, 4)
    )
    shapes = jax.eval_shape(whole.init, jax.random.key(0), x)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.25, leaf.shape), jnp.float32), shapes
    )
    actual, expected = (
        jax.jit(jax.value_and_grad(lambda p, x, m=m: jnp.square(m.apply(p, x)).sum(), (0, 1)))(
            params, x
        )
        for m in (parts, whole)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), actual, expected
    )


def test_output_adapters_sum_heads_like_openpi():
    """In the equation of openpi, the heads of `lora_b` are summed apart from those of `lora_a`."""
    rng = np.random.default_rng(0)
    w, a, b, x = (
        rng.normal(size=shape).astype(np.float32)
        for shape in ((2, 8, 6), (2, 8, 3), (2, 3, 6), (1, 4, 2, 8))
    )
    actual = Weight(["nhd", "nhr", "Nrd"], [w, a, b]).einsum("btnh,nhd->btd", x)
    expected = np.einsum("btnh,nhd->btd", x, w) + np.einsum("btnh,nhr->btr", x, a) @ b.sum(0)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    merged = merge({"attn_vec_einsum": {"w": w, "lora_a": a, "lora_b": b}}, LoRA(scale=1.0))
    actual = np.einsum("btnh,nhd->btd", x, merged["attn_vec_einsum"]["w"])
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            (("llm/.*", 2), ("img/.*", 0)),
            "^model.lora: no rule matches action_in_proj, action_out_proj, state_proj, time_",
        ),
        (((".*", 2), ("llm/.*", 0)), "^model.lora: no parameter matches 'llm/.*'"),
        (
            (("llm/layers/attn/q_einsum/w", 2), (".*", 0)),
            "^model.lora: no parameter matches 'llm/layers/attn/q_einsum/w'",
        ),
        (((".*", -1),), "^model.lora: rule '..' has rank -1, expected a whole number"),
        (((".*", 0.5),), "^model.lora: rule '..' has rank 0.5, expected a whole number"),
    ],
)
def test_wrong_rules_are_errors(rules, message):
    with pytest.raises(ValueError, match=message):
        shapes(make_model(lora=rules))


def test_rules_from_json_equal_rules_from_python():
    assert make_model(lora=[[".*", 2]]).config == make_model(lora=((".*", 2),)).config
    assert not CONFIG.adapters.rank("img/head")
