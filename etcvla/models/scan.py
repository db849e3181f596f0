"""Scan over layers, with rematerialization. All stacks of layers go through this function."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from etcvla.models.lora import ModuleOptions
from etcvla.names import lookup

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def scan_layers(
    block: type[nn.Module], depth: int, *, in_axes: Any, options: ModuleOptions
) -> type[nn.Module]:
    """Repeat `block` `depth` times, with the parameters of all layers stacked on axis 0.

    Args:
      block: module of one layer; its first argument is the carry.
      depth: number of layers.
      in_axes: for every argument after the carry, 0 (one slice per layer) or nn.broadcast.
      options: `remat`, what the backward pass recomputes: "none", "full" (save nothing) or "dots"
        (save matrix products without batch axes); and `unroll`, the number of layers per iteration
        of the loop. `depth` removes the loop, which compiles longer and runs faster on a CPU.

    Raises: UserError for an unknown `remat`.
    """
    policy = lookup(REMAT, options.remat, "model.remat")
    if policy is not None:
        block = nn.remat(block, prevent_cse=False, policy=policy)
    return nn.scan(
        block,
        # "intermediates" holds what layers sow, for callers that ask for it
        # (`etcvla.eval.knowledge`).
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True},
        in_axes=in_axes,
        length=depth,
        unroll=min(options.unroll, depth),
    )
