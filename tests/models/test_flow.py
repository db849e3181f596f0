"""Tests of flow matching and of chunks that continue another chunk."""

import jax.numpy as jnp
import numpy as np
import pytest

from etcvla.models import flow

NOISE = np.random.default_rng(0).standard_normal((2, 6, 3)).astype(np.float32)
OLD = np.random.default_rng(1).standard_normal((2, 6, 3)).astype(np.float32)


def bent(x, time):
    """Return a velocity with a nontrivial derivative; each step depends on the one before it."""
    return jnp.sin(x + time[:, None, None]) + 0.3 * jnp.roll(x, 1, axis=1)


def test_soft_mask_equals_the_papers_formula():
    """P = 7, delay 2, 5 steps left: c = 3/4, 2/4, 1/4, and the weight is c (e^c - 1) / (e - 1)."""
    fall = [c * (np.exp(c) - 1) / (np.e - 1) for c in (0.75, 0.5, 0.25)]
    np.testing.assert_allclose(flow.soft_mask(7, 2, 5), [1, 1, *fall, 0, 0], rtol=1e-6)
    assert flow.soft_mask(7, 2, 5).dtype == np.float32


@pytest.mark.parametrize(
    ("delay", "left", "held"), [(0, 3, 0), (4, 4, 4), (6, 4, 4), (5, 4, 4), (9, 7, 7)]
)
def test_soft_mask_is_one_on_steps_that_will_be_executed(delay, left, held):
    mask = flow.soft_mask(7, delay, left)
    assert (
        np.isfinite(mask).all()
        and (mask[:held] == 1).all()
        and (mask[held:] < 1).all()
        and (mask[left:] == 0).all()
    )


def test_guide_with_zero_weight_changes_nothing():
    free = flow.integrate(bent, NOISE, 5)
    weight = np.stack([np.zeros(6), flow.soft_mask(6, 2, 4)]).astype(np.float32)
    held = flow.integrate(bent, NOISE, 5, flow.Guide(OLD, weight))
    np.testing.assert_allclose(held[0], free[0], atol=1e-6)
    assert np.abs(held[1] - free[1]).max() > 0.1


def test_one_guided_step_equals_the_papers_formula():
    """Compare with the formula of the paper, with derivatives by finite differences.

    In its time tau, v points from noise to actions. The guided velocity is
    v + min(beta, (1 - tau) / (tau r^2)) times the correction, with
    r^2 = (1 - tau)^2 / (tau^2 + (1 - tau)^2).
    """
    tau = 0.3
    weight = flow.soft_mask(6, 2, 5)
    x = NOISE[0].astype(np.float64)
    old = OLD[0]
    time = np.array([1 - tau])

    def estimate(x):
        return (
            x
            + (1 - tau)
            * -np.asarray(bent(jnp.asarray(x[None], jnp.float32), jnp.asarray(time)), np.float64)[0]
        )

    error = (old - estimate(x)) * weight[:, None]
    step = 1e-2
    pull = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        bump = np.zeros_like(x)
        bump[i] = step
        pull[i] = (error * (estimate(x + bump) - estimate(x - bump)) / (2 * step)).sum()
    r2 = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
    strength = min(flow.MAX_STRENGTH, (1 - tau) / (tau * r2))
    v = -np.asarray(bent(NOISE[:1], jnp.asarray(time)))[0] + strength * pull
    guided = flow._guided(bent, flow.Guide(OLD[:1], weight[None]))(
        NOISE[:1], jnp.asarray(time, jnp.float32)
    )
    np.testing.assert_allclose(-guided[0], v, atol=2e-3)


def test_held_steps_are_kept_and_later_ones_are_free():
    """This velocity leads anywhere. A model that is certain of one chunk changes far less."""

    def still(x, time):
        return jnp.zeros_like(x)

    weight = np.stack([flow.soft_mask(6, 3, 3)] * 2)
    held = np.asarray(flow.integrate(still, NOISE, 10, flow.Guide(OLD, weight)))
    assert np.abs(held[:, :3] - OLD[:, :3]).max() < 0.05 * np.abs(NOISE - OLD)[:, :3].max()
    np.testing.assert_array_equal(held[:, 3:], NOISE[:, 3:])
