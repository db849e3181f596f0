"""The state that a training step updates and a checkpoint stores."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax.numpy as jnp

from etcvla.models.types import Index


@flax.struct.dataclass
class TrainState:
    """The state of training. `params`, `ema` and `opt` are trees with one entry per parameter."""

    step: Index  # number of steps done
    params: Any  # float32
    ema: Any  # exponential moving average of `params`; the next stage and the policy use it
    opt: Any  # optimizer state
    # Number of updates that were left out because they were not finite.
    skipped: Index = flax.struct.field(default_factory=lambda: jnp.int32(0))
    # Rows of the token table at step 0, float32[N, D]; see `etcvla.train.vocabulary`. None: their
    # drift is not measured.
    start_rows: Any = None
