"""Targets of the image loss: an image token predicts the words of an answer about its place.

"what is at <loc0528>" asks about one place. The words of the answer, such as "red cube", are
predicted twice: as usual, and from the image token of that place alone. In a small model without
released weights, the image tokens then hold colors and nouns before the language model has learned
to read them. Without this loss it needs many times as many steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from etcvla.etc.items import NUM_LOC


def find_image_targets(
    rows: Mapping[str, Array], loc_offset: int
) -> tuple[Int[Array, "B M"], Bool[Array, "B M"]]:
    """Return the cell that each target token's question is about, and whether there is one.

    Only words count whose question contains exactly one place. The last token of an answer, which
    ends it, does not count.

    Args:
      rows: a batch in the notation "cell", with `target_positions` [B, M].
      loc_offset: token id of the first cell.
    """
    cells = rows["tokens"] - loc_offset
    is_cell = (cells >= 0) & (cells < NUM_LOC)
    is_question = is_cell & ~rows["target"] & (rows["segment"] > 0)
    positions = rows["target_positions"]
    segment = jnp.take_along_axis(rows["segment"], positions, axis=1)
    in_question = (rows["segment"][:, None] == segment[..., None]) & is_question[:, None]
    cell = jnp.where(in_question, cells[:, None], 0).sum(axis=-1)
    is_last = jnp.take_along_axis(_is_last(rows), positions, axis=1)
    is_word = ~jnp.take_along_axis(is_cell, positions, axis=1) & ~is_last
    has_place = (in_question.sum(axis=-1) == 1) & is_word
    return jnp.where(has_place, cell, 0), has_place


def _is_last(rows: Mapping[str, Array]) -> Bool[Array, "B L"]:
    """Return which tokens are the last one of their segment."""
    following = jnp.pad(rows["segment"][:, 1:], ((0, 0), (0, 1)))
    return following != rows["segment"]
