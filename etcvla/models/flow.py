"""Flow matching between actions and noise.

The convention is that of openpi: time 1 is noise, time 0 is the action.

x_t = t * noise + (1 - t) * actions, and the network regresses the velocity u = noise - actions
(Lipman et al. 2022; pi0, arXiv 2410.24164). Axes as in `etcvla.models.types`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from etcvla.models.types import AnyShape, Chunks, FlowTimes, NoisyChunks, Shape

# Upper bound of the strength of guidance at both ends of the integration (beta in arXiv
# 2506.07339).
MAX_STRENGTH = 5.0

Velocity = Callable[[Chunks, Float[Array, " B"]], Chunks]


class Guide(NamedTuple):
    """The chunk that is being executed, which a new chunk continues.

    See real-time chunking, arXiv 2506.07339.
    """

    # Normalized, from the first step of the new chunk on. Any value where the weight is 0.
    actions: Chunks
    # How strongly each step is held to `actions`, 0 for not at all; see `soft_mask`.
    weight: Float[Array, "B P"]


class Start(NamedTuple):
    """The noise from which to integrate, and the chunks that the new ones continue."""

    noise: Chunks
    guide: Guide | None = None


def sample_time(key: jax.Array, shape: Shape) -> AnyShape:
    """Sample t ~ 0.999 * Beta(1.5, 1) + 0.001.

    The distribution has more weight at the noisy end, where the observation decides (pi0). Beta(a,
    1) is U^(1/a), which avoids the loop of the gamma sampler.
    """
    return 0.999 * jax.random.uniform(key, shape) ** (1 / 1.5) + 0.001


def interpolate(
    actions: NoisyChunks, noise: NoisyChunks, time: FlowTimes
) -> tuple[NoisyChunks, NoisyChunks]:
    """Compute (x_t, u) of noise samples, each between its own noise and actions."""
    t = time[..., None, None]
    return t * noise + (1 - t) * actions, noise - actions


def integrate(
    velocity: Velocity, noise: Chunks, num_steps: int, guide: Guide | None = None
) -> Chunks:
    """Integrate from noise (time 1) to actions (time 0).

    Args:
      velocity: function of (x_t, time).
      noise: start of the integration.
      num_steps: number of Euler steps, all of the same length.
      guide: chunks to continue. A row whose weights are all 0 is integrated as without a guide.
    """
    dt = -1.0 / num_steps
    if guide is not None:
        velocity = _guided(velocity, guide)

    def _euler_step(x, step):
        time = jnp.full(x.shape[:1], 1.0 + step * dt, jnp.float32)
        return x + dt * velocity(x, time), None

    actions, _ = jax.lax.scan(_euler_step, noise, jnp.arange(num_steps, dtype=jnp.float32))
    return actions


def soft_mask(horizon: int, delay: int, left: int) -> np.ndarray:
    """Compute `Guide.weight` of one chunk, float32[P] (arXiv 2506.07339, equation 5).

    Args:
      horizon: P.
      delay: number of steps that are executed before the new chunk is available; their weight is 1.
      left: number of steps that the old chunk still has. From `delay` to `left` the weight
        decreases; it is 0 from there on.
    """
    step = np.arange(horizon)
    ramp = np.clip((left - step) / max(left - delay + 1, 1), 0, 1)
    weight = ramp * np.expm1(ramp) / np.expm1(1)
    return np.where(step < min(delay, left), 1, weight).astype(np.float32)


def _guided(velocity: Velocity, guide: Guide) -> Velocity:
    """Add guidance to a velocity (PiGDM).

    The guidance is a step down the guide's weighted error of the predicted actions.

    The paper counts time from noise to actions, so its tau is 1 - t, and its velocity is the
    negative of ours.
    """

    def _guided_velocity(x, time):
        def _predict_actions(x):
            u = velocity(x, time)
            return x - time[:, None, None] * u, u

        actions, vjp, u = jax.vjp(_predict_actions, x, has_aux=True)
        (correction,) = vjp((guide.actions - actions) * guide.weight[..., None])
        strength = (time**2 + (1 - time) ** 2) / (time * (1 - time))
        strength = jnp.minimum(MAX_STRENGTH, strength)
        return u - strength[:, None, None] * correction

    return _guided_velocity
