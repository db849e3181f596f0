"""Tests of the additions of Gemma 2: what each must change and what it must not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from etcvla.models import ops
from etcvla.models.vla import init_params
from tests.models.small import CONFIG, SIZES, make_model, random_params, random_rows, write_segment

PROMPT = [2, 11, 12, 13, 14, 3]
TARGET = [40, 41, 42, 1]
WINDOW = 3


def gemma2(depth=2, **fields):
    """Return the small model with these fields of the language model and this depth."""
    return make_model(
        vlm=dataclasses.replace(CONFIG.vlm, depth=depth, **fields),
        expert=dataclasses.replace(CONFIG.expert, depth=depth),
    )


def one_row():
    batch = random_rows(np.random.default_rng(0), 1)
    write_segment(batch, 0, 0, 1, PROMPT, TARGET)
    return batch


def logits_of(model):
    """Return a function (params, batch) -> logits [L, V] of the only row."""
    columns = jnp.arange(SIZES["L"])[None]
    run = jax.jit(
        lambda params, batch: model.apply({"params": params}, batch, columns, None, None)[0][0]
    )
    return lambda *args: np.asarray(run(*args))


def test_soft_caps_equal_their_formula():
    x = np.linspace(-90, 90, 7, dtype=np.float32)
    np.testing.assert_allclose(ops.softcap(x, 30.0), 30 * np.tanh(x / 30), rtol=1e-6)
    assert ops.softcap(x, 0.0) is x
    rng = np.random.default_rng(0)
    q, k = (4 * rng.normal(size=(1, 3, 2, 8)).astype(np.float32) for _ in range(2))
    v = np.eye(3, 8, dtype=np.float32)[None, :, None].repeat(2, 2)
    raw = np.einsum("btnh,bsnh->btns", q, k)
    expected = np.asarray(jax.nn.softmax(2 * np.tanh(raw / 2), axis=-1))
    np.testing.assert_allclose(ops.attend(q, k, v, cap=2.0)[..., :3], expected, atol=1e-6)


@pytest.fixture(scope="module")
def plain_logits():
    return logits_of(gemma2())


@pytest.mark.parametrize(
    "fields",
    [
        {"attn_softcap": 0.5},
        {"post_norms": True},
        {"query_pre_attn_scalar": 2},
        {"final_softcap": 2.0},
        {"window": 3},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_every_gemma2_field_changes_the_logits(plain_logits, fields):
    batch = one_row()
    other = gemma2(**fields)
    params = random_params(other)
    base = {
        **params,
        "llm": {
            **params["llm"],
            "layers": {
                name: value
                for name, value in params["llm"]["layers"].items()
                if not name.startswith("post_")
            },
        },
    }
    before = plain_logits(base, batch)
    after = logits_of(other)(params, batch)
    assert np.abs(before[1:10] - after[1:10]).max() > 1e-3
    if "final_softcap" in fields:
        np.testing.assert_allclose(after, 2 * np.tanh(before / 2), atol=1e-5)
    if (
        "window" in fields
    ):  # the prefix attends without a window, so logits up to the first target are equal
        np.testing.assert_allclose(before[1:7], after[1:7], atol=1e-6)


@pytest.mark.parametrize(("depth", "reach"), [(1, WINDOW), (2, None)])
def test_causal_tokens_of_local_layers_read_a_window(depth, reach):
    """Layer 1 is local. Layer 2 is global, so with two layers every token is reachable."""
    batch = one_row()
    model = gemma2(depth, window=WINDOW)
    params = random_params(model)
    run = logits_of(model)
    base = run(params, batch)
    for column in range(len(PROMPT) + len(TARGET) - 1):
        other = {**batch, "tokens": batch["tokens"].copy()}
        other["tokens"][0, column] = 60
        moved = np.abs(run(params, other) - base).max(axis=1) > 1e-6
        for query in range(
            len(PROMPT), len(PROMPT) + len(TARGET) - 1
        ):  # its logits predict the next column
            sees = column <= query and (reach is None or column > query - reach)
            assert moved[query + 1] == sees, (column, query)
    dark = {**batch, "images": 255 - batch["images"]}
    moved = np.abs(run(params, dark) - base).max(axis=1) > 1e-6
    assert moved[: len(PROMPT) + 1].all()
    assert (moved[len(PROMPT) + 1 : len(PROMPT) + len(TARGET)] == (reach is None)).all()


def test_streams_with_different_heads_are_an_error():
    model = make_model(vlm=dataclasses.replace(CONFIG.vlm, num_kv_heads=2))
    with pytest.raises(ValueError, match="streams must agree in depth and heads"):
        jax.eval_shape(lambda: init_params(model))
