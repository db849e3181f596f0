"""Tests of the FLOP counter against counts by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from etcvla.models.flops import count

W = jax.ShapeDtypeStruct((8, 8), jnp.float32)
X = jax.ShapeDtypeStruct((4, 8), jnp.float32)
PRODUCT = 2 * 4 * 8 * 8  # of X @ W


def layers(x, w, *, length, wrap):
    return lax.scan(wrap(lambda x, _: (jnp.tanh(x @ w), None)), x, length=length)[0].sum()


def test_batched_product():
    q = jax.ShapeDtypeStruct((2, 3, 5, 7), jnp.bfloat16)
    k = jax.ShapeDtypeStruct((2, 3, 11, 7), jnp.bfloat16)
    assert count(lambda q, k: jnp.einsum("bhtd,bhsd->bhts", q, k), q, k) == {
        "dot_general": 2 * 2 * 3 * 5 * 11 * 7
    }


def test_scan_multiplies():
    assert count(lambda x, w: layers(x, w, length=6, wrap=lambda f: f), X, W).total() == 6 * PRODUCT


@pytest.mark.parametrize(("wrap", "products"), [(lambda f: f, 3), (jax.checkpoint, 4)])
def test_gradient_of_a_scan(wrap, products):
    """One product per layer forward, two backward, and one again with rematerialization."""
    grad = jax.jit(jax.grad(lambda x, w: layers(x, w, length=6, wrap=wrap), argnums=(0, 1)))
    assert count(grad, X, W).total() == 6 * products * PRODUCT


def test_nested_loops_multiply():
    inner = lambda x, w: lax.scan(lambda x, _: (x @ w, None), x, length=3)[0]  # noqa: E731
    assert (
        count(lambda x, w: lax.scan(lambda x, _: (inner(x, w), None), x, length=5)[0], X, W).total()
        == 15 * PRODUCT
    )


def test_while_loop_with_flops_is_an_error():
    def loop(x, w):
        return lax.while_loop(lambda x: x.sum() > 0, lambda x: x @ w, x)

    with pytest.raises(ValueError, match="while loop with FLOPs"):
        count(loop, X, W)
    assert (
        count(lambda x: lax.while_loop(lambda x: x.sum() > 0, lambda x: x - 1, x), X).total() == 0
    )


def test_convolution_and_its_weight_gradient():
    """A strided patch embedding counts like the matrix product it equals."""
    images = jax.ShapeDtypeStruct((2, 28, 28, 3), jnp.float32)
    kernel = jax.ShapeDtypeStruct((14, 14, 3, 16), jnp.float32)

    def embed(images, kernel):
        return lax.conv_general_dilated(
            images, kernel, (14, 14), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    product = 2 * (2 * 2 * 2) * (14 * 14 * 3) * 16
    assert count(embed, images, kernel) == {"conv_general_dilated": product}
    grad = jax.grad(lambda k, x: embed(x, k).sum())
    assert count(grad, kernel, images) == {"conv_general_dilated": 2 * product}


def test_cond_counts_its_most_expensive_branch_and_custom_gradients_count():
    @jax.custom_vjp
    def f(x, w):
        return x @ w

    f.defvjp(lambda x, w: (x @ w, (x, w)), lambda res, g: (g @ res[1].T, res[0].T @ g @ res[1]))
    assert (
        count(lambda p, x, w: lax.cond(p, lambda: f(x, w), lambda: x @ w @ w), True, X, W).total()
        == 2 * PRODUCT
    )
    weight = 2 * 8 * 4 * 8 + 2 * 8 * 8 * 8  # the custom gradient has one more product
    assert (
        count(jax.grad(lambda x, w: f(x, w).sum(), argnums=(0, 1)), X, W).total()
        == 2 * PRODUCT + weight
    )
