"""AdamW with everything that a stage varies: rates by knots and by regex, decay by regex, clipping."""

from __future__ import annotations

from typing import Any

import jax
import ml_collections
import optax

from etcvla import rules, schedule


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
    trained = jax.tree.map(bool, multiples)
    decay, multiples = (jax.tree.map(lambda v, t: v if t else optax.MaskedNode(), values, trained)
                        for values in (decay, multiples))
    update = optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        _add_decay(decay),
        _scale_each(multiples),
        optax.scale_by_learning_rate(lambda step: schedule.at(config.lr, step / steps)),
    )
    # What is frozen has no moments, and does not count in the norm that clips the rest.
    kinds = jax.tree.map(lambda t: "trained" if t else "frozen", trained)
    return optax.partition({"trained": update, "frozen": optax.set_to_zero()}, kinds)


def freeze(params: Any, lr_multiple: rules.Rules) -> Any:
    """The parameters, through those of which that a rule freezes no gradient flows: it is not even computed."""
    multiples = rules.assign(lr_multiple, params, "optim.lr_multiple")
    return jax.tree.map(lambda p, multiple: p if multiple else jax.lax.stop_gradient(p), params, multiples)


def _add_decay(decay: Any) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u, p, d: u + d * p, updates, params, decay))


def _scale_each(multiples: Any) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, m: u * m, updates, multiples))
