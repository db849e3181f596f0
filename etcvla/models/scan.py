"""The one place where layers are scanned and rematerialised."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from etcvla.names import lookup

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def scan_layers(
    block: type[nn.Module], depth: int, *, in_axes: Any, remat: str, unroll: int
) -> type[nn.Module]:
    """`block`, repeated `depth` times with parameters stacked on axis 0.

    Args:
      in_axes: for every argument after the carry, 0 (one slice a layer) or nn.broadcast.
      remat: "none", "full" (save nothing) or "dots" (save matrix products without batch axes).
      unroll: layers a loop turn; `depth` removes the loop, which compiles longer and runs faster on a CPU.

    Raises ValueError for an unknown remat policy.
    """
    if (policy := lookup(REMAT, remat, "model.remat")) is not None:
        block = nn.remat(block, prevent_cse=False, policy=policy)
    axes = {"params": 0, "intermediates": 0}  # the second: what is sown, for who asks for it
    return nn.scan(
        block,
        variable_axes=axes,
        split_rngs={"params": True},
        in_axes=in_axes,
        length=depth,
        unroll=min(unroll, depth),
    )
