"""AdamW with everything that a stage varies: rates by knots and by regex, decay by regex, clipping."""

from __future__ import annotations

from typing import Any

import jax
import ml_collections
import optax

from etcvla import schedule
from etcvla.train import rules


def make_optimizer(config: ml_collections.ConfigDict, steps: int, params: Any) -> optax.GradientTransformation:
    """The optimizer of a stage.

    Args:
      config: `config.optim` of a stage.
      steps: of the whole stage; the learning rate's knots are over its progress.
      params: parameters or their shapes, for the rules.
    """
    schedule.check_knots(config.lr, "optim.lr")
    multiples = rules.assign(config.lr_multiple, params, "optim.lr_multiple")
    decay = rules.assign(config.weight_decay, params, "optim.weight_decay")
    return optax.chain(
        # Frozen parameters must not count in the norm that clips the others.
        optax.masked(optax.set_to_zero(), jax.tree.map(lambda m: m == 0, multiples)),
        optax.clip_by_global_norm(config.clip),
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        _add_decay(decay),
        _scale_each(multiples),
        optax.scale_by_learning_rate(lambda step: schedule.at(config.lr, step / steps)),
    )


def _add_decay(decay: Any) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u, p, d: u + d * p, updates, params, decay))


def _scale_each(multiples: Any) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, m: u * m, updates, multiples))
