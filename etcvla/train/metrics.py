"""What a step measures beside its losses. Sums and counts leave the step where a mean would be over what differs.

Axes as in `etcvla.models.ops`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from etcvla import rules

TIME_BINS = 5  # of the flow's time: 0 is the action, 1 the noise

# Every parameter counts in the first group whose regex is its whole path. Adapters lie under what they adapt.
GROUPS: rules.Rules = (
    (r"img/.*", "vision_tower"),
    (r"llm/embedder/.*", "embeddings"),
    (r"llm/.*_1(/.*)?", "expert"),  # the second stream of every layer
    (r"llm/.*", "language_model"),
    (r"(state_proj|action_in_proj|action_out_proj|(action_)?time_mlp_(in|out))/.*", "expert"),
    (r".*", "other"),
)


def flow_errors(
    error: Float[Array, "b r p a"], mask: Bool[Array, "b 1 p a"], time: Float[Array, "b r"]
) -> dict[str, Array]:
    """Squared velocity errors, zero where masked, summed by the flow's time and by action dimension.

    Returns: `flow_error/time` float32[B, 2, TIME_BINS] and `flow_error/dim` float32[B, 2, A]: each row's sums and their
      counts. Bin i holds the times from i / TIME_BINS on.
    """
    count = jnp.broadcast_to(mask, error.shape).astype(jnp.float32)
    both = jnp.stack([error, count], axis=1)
    bins = jax.nn.one_hot(
        jnp.minimum((time * TIME_BINS).astype(jnp.int32), TIME_BINS - 1), TIME_BINS
    )
    return {
        "flow_error/time": jnp.einsum("bnr,brk->bnk", both.sum((3, 4)), bins),
        "flow_error/dim": both.sum((2, 3)),
    }


def quotient(both: Float[Array, "b 2 n"]) -> Float[Array, " n"]:
    """Means from sums and counts of all rows; NaN where nothing was counted."""
    total, count = both.sum(0)
    return total / jnp.where(count > 0, count, jnp.nan)


def grad_norms(grads: Any) -> dict[str, Array]:
    """The gradient's norm by group of `GROUPS`, as `grad_norm/<group>`; groups without parameters are absent."""
    squares: dict[str, Array] = {}
    groups = rules.assign(GROUPS, grads, "gradient groups", all_used=False)
    for group, grad in zip(jax.tree.leaves(groups), jax.tree.leaves(grads), strict=True):
        squares[group] = squares.get(group, 0) + jnp.square(grad).sum()
    return {f"grad_norm/{group}": jnp.sqrt(square) for group, square in squares.items()}


def average_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over rows of metrics by name. NaNs are left out, and so are names that are nothing else.

    Element i of a vector becomes `name_i`, with leading zeros where there are more than ten.
    """
    out = {}
    for name in rows[0] if rows else ():
        values = np.stack([np.asarray(row[name], np.float64) for row in rows])
        there = ~np.isnan(values)
        mean = np.where(there, values, 0).sum(0) / np.maximum(there.sum(0), 1)
        width = len(str(mean.size - 1))
        for index in np.argwhere(there.any(0)):
            suffix = "".join(f"_{i:0{width}}" for i in index)
            out[name + suffix] = float(mean[tuple(index)])
    return out
