"""Metrics that a step computes besides its losses.

A mean over entries whose number differs between rows leaves the step as a sum and a count. Axes as
in `etcvla.models.types`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from etcvla import rules
from etcvla.models.types import FlowTimes, NoisyChunks

TIME_BINS = 5  # of the flow time, which is 0 at the action and 1 at the noise

# The group of a parameter is that of the first regex that matches its whole path. An adapter is in
# the group of the weight that it adapts.
GROUPS: rules.Rules = (
    (r"img/.*", "vision_tower"),
    (r"llm/embedder/.*", "embeddings"),
    (r"llm/.*_1(/.*)?", "expert"),  # the second stream of every layer
    (r"llm/.*", "language_model"),
    (r"(state_proj|action_in_proj|action_out_proj|(action_)?time_mlp_(in|out))/.*", "expert"),
    (r".*", "other"),
)


def flow_errors(
    error: NoisyChunks, mask: Bool[Array, "B R P A"], time: FlowTimes
) -> dict[str, Array]:
    """Sum squared velocity errors by flow time and by action dimension.

    Args:
      error: squared errors, zero where masked.
      mask: the entries that count.
      time: flow time of each noise sample.

    Returns: `flow_error/time` float32[B, 2, TIME_BINS] and `flow_error/dim` float32[B, 2, A]: the
      sums and the counts of each row. Bin i holds the times from i / TIME_BINS on.
    """
    sum_and_count = jnp.stack([error, mask.astype(jnp.float32)], axis=1)  # [B, 2, R, P, A]
    time_bin = jnp.minimum((time * TIME_BINS).astype(jnp.int32), TIME_BINS - 1)
    in_bin = jax.nn.one_hot(time_bin, TIME_BINS)
    by_time = jnp.einsum("bxr,bry->bxy", sum_and_count.sum((3, 4)), in_bin)
    return {"flow_error/time": by_time, "flow_error/dim": sum_and_count.sum((2, 3))}


def mean_over_rows(sum_and_count: Float[Array, "B 2 X"]) -> Float[Array, " X"]:
    """Compute means from the sums and counts of all rows; NaN where the count is 0."""
    total, count = sum_and_count.sum(0)
    return total / jnp.where(count > 0, count, jnp.nan)


def grad_norms(grads: Any) -> dict[str, Array]:
    """Compute the gradient norms by `GROUPS`; a group without gradients is absent."""
    groups = rules.assign(GROUPS, grads, "gradient groups", all_used=False)
    squares: dict[str, Array] = {}
    for group, grad in zip(jax.tree.leaves(groups), jax.tree.leaves(grads), strict=True):
        squares[group] = squares.get(group, 0) + jnp.square(grad).sum()
    return {f"grad_norm/{group}": jnp.sqrt(square) for group, square in squares.items()}


def average_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Average metrics by name over several steps or batches.

    NaNs are left out, and so is a metric that is NaN in all rows. Element i of a vector becomes
    `name_i`, with leading zeros if there are more than ten elements.
    """
    if not rows:
        return {}
    averages = {}
    for name in rows[0]:
        values = np.stack([np.asarray(row[name], np.float64) for row in rows])
        is_number = ~np.isnan(values)
        count = is_number.sum(0)
        mean = np.where(is_number, values, 0).sum(0) / np.maximum(count, 1)
        digits = len(str(mean.size - 1))
        for index in np.argwhere(count):
            suffix = "".join(f"_{i:0{digits}}" for i in index)
            averages[name + suffix] = float(mean[tuple(index)])
    return averages
