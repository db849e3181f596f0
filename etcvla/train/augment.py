"""Augmentation on the device, a function of (seed, step, row).

Shifts move the primary camera's picture and its `<loc>` tokens together, so that an answer stays true; colours change
nothing that an answer says.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from etcvla.etc.items import NUM_LOC


def augment(
    key: jax.Array, batch: Mapping[str, jax.Array], *, shift: int, color: float, loc_offset: int
) -> dict[str, jax.Array]:
    """The batch with shifted and recoloured images.

    Args:
      shift: pixels, the largest shift along each axis (edges are repeated). Every camera moves on its own.
      color: the largest relative change of brightness and contrast.
      loc_offset: id of `<loc0000>`.
    """
    where, light = jax.random.split(key)
    images = batch["images"]
    rows, cameras, height = images.shape[:3]
    offsets = jax.random.randint(where, (rows, cameras, 2), -shift, shift + 1)
    images = jax.vmap(jax.vmap(_shift, (0, 0, None)), (0, 0, None))(images, offsets, shift)
    gain, bias = jax.random.uniform(light, (2, rows, cameras, 1, 1, 1), minval=-color, maxval=color)
    pixels = (images.astype(jnp.float32) - 128) * (1 + gain) + 128 * (1 + bias)
    # openpi's layout lets action tokens share ids with locations: those mean no place.
    action = (batch["segment"] == batch["action_segment"][:, None]) & (batch["segment"] > 0)
    moved = shift_locations(
        jnp.where(action, -1, batch["tokens"]), offsets[:, 0] / height, loc_offset
    )
    tokens = jnp.where(action, batch["tokens"], moved)
    return {
        **batch,
        "images": jnp.clip(jnp.round(pixels), 0, 255).astype(jnp.uint8),
        "tokens": tokens,
    }


def _shift(image: jax.Array, offset: jax.Array, limit: int) -> jax.Array:
    """uint8[H, W, 3] moved down and right by `offset` pixels, |offset| <= limit, edges repeated."""
    padded = jnp.pad(image, ((limit, limit), (limit, limit), (0, 0)), mode="edge")
    return jax.lax.dynamic_slice(padded, (limit - offset[0], limit - offset[1], 0), image.shape)


def shift_locations(tokens: jax.Array, offset: jax.Array, loc_offset: int) -> jax.Array:
    """Moves `<loc>` tokens by `offset` float[B, 2] (y, x) of the image, clipped to its border.

    Locations come in pairs, y first, so the parity of their running count in a row tells the axis.
    """
    bins = tokens - loc_offset
    is_loc = (bins >= 0) & (bins < NUM_LOC)
    axis = (jnp.cumsum(is_loc, axis=1) - 1) % 2
    moved = bins + jnp.take_along_axis(jnp.round(offset * NUM_LOC).astype(jnp.int32), axis, axis=1)
    return jnp.where(is_loc, jnp.clip(moved, 0, NUM_LOC - 1) + loc_offset, tokens)
