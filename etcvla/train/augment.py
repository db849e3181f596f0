"""Image augmentation on the device, as a function of (seed, step, row).

A shift moves the image of the primary camera and its `<loc>` tokens together, so answers stay true.
Changes of brightness and contrast do not affect any answer.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from etcvla.etc.items import NUM_LOC
from etcvla.etc.places import GRID, join_cell, split_cell
from etcvla.models.types import TextInts
from etcvla.models.vla import action_token_mask


def augment(
    key: jax.Array,
    batch: Mapping[str, jax.Array],
    *,
    shift: int,
    color: float,
    loc_offset: int,
    places: str = "pair",
) -> dict[str, jax.Array]:
    """Shift and recolor the images of a batch.

    Args:
      key: random key.
      batch: a batch.
      shift: the largest shift along each axis, in pixels. Every camera has its own shift; edges are
        repeated.
      color: the largest relative change of brightness and contrast.
      loc_offset: token id of `<loc0000>`.
      places: notation of points, a name of `etcvla.etc.places.PLACES`.
    """
    shift_key, color_key = jax.random.split(key)
    images = batch["images"]
    rows, cameras, height = images.shape[:3]
    offsets = jax.random.randint(shift_key, (rows, cameras, 2), -shift, shift + 1)
    shift_image = functools.partial(_shift, limit=shift)
    images = jnp.vectorize(shift_image, signature="(h,w,c),(d)->(h,w,c)")(images, offsets)
    gain, bias = jax.random.uniform(
        color_key, (2, rows, cameras, 1, 1, 1), minval=-color, maxval=color
    )
    pixels = (images.astype(jnp.float32) - 128) * (1 + gain) + 128 * (1 + bias)
    images = jnp.clip(jnp.round(pixels), 0, 255).astype(jnp.uint8)
    # In openpi's layout, action tokens share ids with locations. Those are not locations.
    is_action = action_token_mask(batch).any(axis=1)
    text = jnp.where(is_action, -1, batch["tokens"])
    shift_places = shift_cells if places == "cell" else shift_locations
    text = shift_places(text, offsets[:, 0] / height, loc_offset)
    tokens = jnp.where(is_action, batch["tokens"], text)
    return {**batch, "images": images, "tokens": tokens}


def _shift(
    image: UInt8[Array, "H W 3"], offset: Int[Array, 2], limit: int
) -> UInt8[Array, "H W 3"]:
    """Shift an image down and right by `offset` pixels, |offset| <= limit, and repeat its edges."""
    padded = jnp.pad(image, ((limit, limit), (limit, limit), (0, 0)), mode="edge")
    return jax.lax.dynamic_slice(padded, (limit - offset[0], limit - offset[1], 0), image.shape)


def shift_locations(tokens: TextInts, offset: Float[Array, "B 2"], loc_offset: int) -> TextInts:
    """Move `<loc>` tokens by `offset` (y, x) in units of the image; clip them to its border.

    Locations come in pairs, y first, so the parity of their running count in a row gives the axis.
    """
    bins = tokens - loc_offset
    is_loc = (bins >= 0) & (bins < NUM_LOC)
    axis = (jnp.cumsum(is_loc, axis=1) - 1) % 2
    bin_offset = jnp.round(offset * NUM_LOC).astype(jnp.int32)
    moved = bins + jnp.take_along_axis(bin_offset, axis, axis=1)
    return jnp.where(is_loc, jnp.clip(moved, 0, NUM_LOC - 1) + loc_offset, tokens)


def shift_cells(tokens: TextInts, offset: Float[Array, "B 2"], loc_offset: int) -> TextInts:
    """Move cell tokens by `offset` (y, x) in units of the image, rounded to whole cells.

    Cells are clipped to the border of the image.
    """
    cells = tokens - loc_offset
    is_loc = (cells >= 0) & (cells < NUM_LOC)
    row, column = split_cell(cells)
    cell_offset = jnp.round(offset * GRID).astype(jnp.int32)
    row = jnp.clip(row + cell_offset[:, :1], 0, GRID - 1)
    column = jnp.clip(column + cell_offset[:, 1:], 0, GRID - 1)
    return jnp.where(is_loc, join_cell(row, column) + loc_offset, tokens)
