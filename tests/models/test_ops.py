"""Tests of functions that are written for speed against plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from etcvla.models import ops
from etcvla.models.flops import count


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng((seed, *shape)).standard_normal(shape, np.float32))


@pytest.mark.parametrize(
    ("rows", "narrow", "wide"), [((3, 5), 4, 6), ((7,), 6, 4), ((2, 3, 2), 4, 4)]
)
def test_matmul_and_gradients(rows, narrow, wide):
    x = normal(*rows, narrow)
    w = normal(narrow, wide)
    weight = normal(*rows, wide, seed=1)
    np.testing.assert_allclose(ops.matmul(x, w), x @ w, atol=1e-6)
    actual, expected = (
        jax.grad(lambda x, w, f=f: (f(x, w) * weight).sum(), argnums=(0, 1))(x, w)
        for f in (ops.matmul, jnp.matmul)
    )
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_matmul_skips_gradients_of_frozen_weights(frozen):
    """Also through scan and remat: as many products as with jnp.matmul."""

    def loss(weights, matmul):
        weights = [lax.stop_gradient(w) if i < frozen else w for i, w in enumerate(weights)]

        def layer(x, w):
            return jnp.tanh(matmul(jnp.tanh(matmul(x, w[0])), w[1])), None

        return lax.scan(jax.checkpoint(layer), jnp.ones((4, 8)), weights)[0].sum()

    weights = [normal(3, 8, 8), normal(3, 8, 8, seed=1)]
    actual, plain = (
        count(lambda w, f=f: jax.grad(loss)(w, f), weights).total()
        for f in (ops.matmul, jnp.matmul)
    )
    assert actual == plain


@pytest.mark.parametrize(
    ("heads", "kv_heads", "cap"), [(4, 1, 0.0), (4, 2, 0.0), (3, 3, 0.0), (4, 2, 2.0)]
)
def test_attention_equals_a_loop_over_heads(heads, kv_heads, cap):
    q = normal(2, 5, heads, 8)
    k = normal(2, 7, kv_heads, 8)
    v = normal(2, 7, kv_heads, 8, seed=1)
    mask = np.random.default_rng(0).random((2, 5, 7)) < 0.6
    mask[0, 2] = False  # a query without keys gets finite numbers

    def reference(q, k, v):
        def one_head(b, n):
            key_head = n * kv_heads // heads
            logits = q[b, :, n] @ k[b, :, key_head].T
            logits = cap * jnp.tanh(logits / cap) if cap else logits
            weights = jax.nn.softmax(jnp.where(mask[b], logits, ops.MASKED))
            return weights @ v[b, :, key_head]

        rows = []
        for b in range(2):
            rows.append(jnp.stack([one_head(b, n) for n in range(heads)], axis=1))
        return jnp.stack(rows)

    def attend(q, k, v):
        return ops.attend(q, k, v, jnp.asarray(mask), cap)

    np.testing.assert_allclose(attend(q, k, v), reference(q, k, v), atol=1e-5)
    weight = normal(2, 5, heads, 8, seed=2).at[0, 2].set(0)  # the query without keys
    actual, expected = (
        jax.grad(lambda *qkv, f=f: (f(*qkv) * weight).sum(), argnums=(0, 1, 2))(q, k, v)
        for f in (attend, reference)
    )
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_attention_without_a_mask_reads_all_keys():
    q = normal(1, 3, 2, 4)
    k = normal(1, 6, 2, 4)
    v = normal(1, 6, 2, 4, seed=1)
    np.testing.assert_allclose(
        ops.attend(q, k, v), ops.attend(q, k, v, jnp.ones((1, 3, 6), bool)), atol=1e-6
    )
