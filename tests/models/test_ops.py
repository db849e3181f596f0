"""The maths that is written for speed against how it is read."""

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
def test_matmul_and_its_gradients(rows, narrow, wide):
    x, w, weight = normal(*rows, narrow), normal(narrow, wide), normal(*rows, wide, seed=1)
    np.testing.assert_allclose(ops.matmul(x, w), x @ w, atol=1e-6)
    found, expected = (
        jax.grad(lambda x, w, f=f: (f(x, w) * weight).sum(), argnums=(0, 1))(x, w)
        for f in (ops.matmul, jnp.matmul)
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_matmul_computes_no_gradient_that_nobody_wants(frozen):
    """Through scan and remat, too: as many products as the plain one."""

    def loss(weights, matmul):
        weights = [lax.stop_gradient(w) if i < frozen else w for i, w in enumerate(weights)]

        def layer(x, w):
            return jnp.tanh(matmul(jnp.tanh(matmul(x, w[0])), w[1])), None

        return lax.scan(jax.checkpoint(layer), jnp.ones((4, 8)), weights)[0].sum()

    weights = [normal(3, 8, 8), normal(3, 8, 8, seed=1)]
    found, plain = (
        count(lambda w, f=f: jax.grad(loss)(w, f), weights).total()
        for f in (ops.matmul, jnp.matmul)
    )
    assert found == plain


@pytest.mark.parametrize(
    ("heads", "kv_heads", "cap"), [(4, 1, 0.0), (4, 2, 0.0), (3, 3, 0.0), (4, 2, 2.0)]
)
def test_attention_head_by_head(heads, kv_heads, cap):
    q, k, v = normal(2, 5, heads, 8), normal(2, 7, kv_heads, 8), normal(2, 7, kv_heads, 8, seed=1)
    mask = np.random.default_rng(0).random((2, 5, 7)) < 0.6
    mask[0, 2] = False  # a query that may see nothing gets numbers all the same

    def reference(q, k, v):
        def one(b, n):
            logits = q[b, :, n] @ k[b, :, n * kv_heads // heads].T
            logits = cap * jnp.tanh(logits / cap) if cap else logits
            return (
                jax.nn.softmax(jnp.where(mask[b], logits, ops.MASKED))
                @ v[b, :, n * kv_heads // heads]
            )

        return jnp.stack([jnp.stack([one(b, n) for n in range(heads)], axis=1) for b in range(2)])

    def attend(q, k, v):
        return ops.attend(q, k, v, jnp.asarray(mask), cap)

    np.testing.assert_allclose(attend(q, k, v), reference(q, k, v), atol=1e-5)
    weight = normal(2, 5, heads, 8, seed=2).at[0, 2].set(0)  # which nobody reads
    found, expected = (
        jax.grad(lambda *qkv, f=f: (f(*qkv) * weight).sum(), argnums=(0, 1, 2))(q, k, v)
        for f in (attend, reference)
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_attention_without_a_mask_sees_all():
    q, k, v = normal(1, 3, 2, 4), normal(1, 6, 2, 4), normal(1, 6, 2, 4, seed=1)
    np.testing.assert_allclose(
        ops.attend(q, k, v), ops.attend(q, k, v, jnp.ones((1, 3, 6), bool)), atol=1e-6
    )
