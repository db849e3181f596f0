"""Flow matching between actions and noise, with openpi's convention: time 1 is noise, time 0 is the action.

x_t = t * noise + (1 - t) * actions, and the network regresses u = noise - actions (Lipman et al. 2022; pi0,
arXiv 2410.24164). Axes as in `etcvla.models.ops`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Velocity = Callable[[Float[Array, "b p a"], Float[Array, "b"]], Float[Array, "b p a"]]


def sample_time(key: jax.Array, shape: tuple[int, ...]) -> Float[Array, ...]:
    """t ~ 0.999 * Beta(1.5, 1) + 0.001: more weight on the noisy end, where the observation decides (pi0).

    Beta(a, 1) is U^(1/a), which spares the gamma sampler's loop.
    """
    return 0.999 * jax.random.uniform(key, shape) ** (1 / 1.5) + 0.001


def interpolate(actions: Float[Array, "b p a"], noise: Float[Array, "b r p a"],
                time: Float[Array, "b r"]) -> tuple[Float[Array, "b r p a"], Float[Array, "b r p a"]]:
    """(x_t, u) for R draws of noise and time over each chunk."""
    t, actions = time[..., None, None], actions[:, None]
    return t * noise + (1 - t) * actions, noise - actions


def integrate(velocity: Velocity, noise: Float[Array, "b p a"], num_steps: int) -> Float[Array, "b p a"]:
    """`num_steps` Euler steps of equal length from noise (time 1) to actions (time 0)."""
    dt = -1.0 / num_steps

    def euler(x, step):
        time = jnp.full(x.shape[:1], 1.0 + step * dt, jnp.float32)
        return x + dt * velocity(x, time), None

    return jax.lax.scan(euler, noise, jnp.arange(num_steps, dtype=jnp.float32))[0]
