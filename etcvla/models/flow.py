"""Flow matching between actions and noise, with openpi's convention: time 1 is noise, time 0 is the action.

x_t = t * noise + (1 - t) * actions, and the network regresses u = noise - actions (Lipman et al. 2022; pi0,
arXiv 2410.24164). Axes as in `etcvla.models.ops`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

PULL = (
    5.0  # arXiv 2506.07339 bounds what guidance adds at both ends of the integration by this (beta)
)

Velocity = Callable[[Float[Array, "b p a"], Float[Array, "b"]], Float[Array, "b p a"]]


class Guide(NamedTuple):
    """What a new chunk has to go on from: the one that is being executed (real-time chunking, arXiv 2506.07339)."""

    actions: Float[
        Array, "b p a"
    ]  # normalised, from the new chunk's first step on; anything where the weight is 0
    weight: Float[Array, "b p"]  # how firmly each step is held, 0 not at all; see `soft_mask`


def sample_time(key: jax.Array, shape: tuple[int, ...]) -> Float[Array, ...]:
    """t ~ 0.999 * Beta(1.5, 1) + 0.001: more weight on the noisy end, where the observation decides (pi0).

    Beta(a, 1) is U^(1/a), which spares the gamma sampler's loop.
    """
    return 0.999 * jax.random.uniform(key, shape) ** (1 / 1.5) + 0.001


def interpolate(
    actions: Float[Array, "b p a"], noise: Float[Array, "b r p a"], time: Float[Array, "b r"]
) -> tuple[Float[Array, "b r p a"], Float[Array, "b r p a"]]:
    """(x_t, u) for R noise_samples of noise and time over each chunk."""
    t, actions = time[..., None, None], actions[:, None]
    return t * noise + (1 - t) * actions, noise - actions


def integrate(
    velocity: Velocity, noise: Float[Array, "b p a"], num_steps: int, guide: Guide | None = None
) -> Float[Array, "b p a"]:
    """`num_steps` Euler steps of equal length from noise (time 1) to actions (time 0), pulled to `guide` if there is
    one: a row whose weights are 0 gets the chunk that it gets without."""
    dt = -1.0 / num_steps
    velocity = velocity if guide is None else _guided(velocity, guide)

    def euler(x, step):
        time = jnp.full(x.shape[:1], 1.0 + step * dt, jnp.float32)
        return x + dt * velocity(x, time), None

    return jax.lax.scan(euler, noise, jnp.arange(num_steps, dtype=jnp.float32))[0]


def soft_mask(horizon: int, delay: int, left: int) -> np.ndarray:
    """float32[P], `Guide.weight` of one chunk (arXiv 2506.07339, equation 5).

    Args:
      delay: steps that will have been executed before the new chunk is there: 1.
      left: steps that the old chunk still has; from `delay` to there the weight falls, and is 0 afterwards.
    """
    step = np.arange(horizon)
    fall = np.clip((left - step) / max(left - delay + 1, 1), 0, 1)
    fall = fall * np.expm1(fall) / np.expm1(1)
    return np.where(step < min(delay, left), 1, fall).astype(np.float32)


def _guided(velocity: Velocity, guide: Guide) -> Velocity:
    """The velocity, and a step down the guide's weighted error of the actions that it leads to (PiGDM).

    The paper counts time from noise to actions, so its tau is 1 - t, and its velocity is minus ours.
    """

    def pulled(x, time):
        def denoise(x):
            u = velocity(x, time)
            return x - time[:, None, None] * u, u

        actions, back, u = jax.vjp(denoise, x, has_aux=True)
        (pull,) = back((guide.actions - actions) * guide.weight[..., None])
        strength = jnp.minimum(PULL, (time**2 + (1 - time) ** 2) / (time * (1 - time)))
        return u - strength[:, None, None] * pull

    return pulled
