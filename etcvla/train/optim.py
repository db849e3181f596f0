"""The optimizer of a stage: AdamW or Adafactor, with schedules and per-parameter rules.

A stage varies the learning rate over time and by regex, weight decay by regex, clipping, and which
parameters are frozen for some time or for the whole stage. Every parameter has its own optimizer
state with its own count of updates, so a parameter that is unfrozen late starts as if it were new.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array

from etcvla import rules, schedule
from etcvla.models.types import Index
from etcvla.names import lookup
from etcvla.schedule import Schedule

FrozenRules = tuple[str, ...]  # regexes of `optim.lr_multiple` whose parameters are frozen


def make_optimizer(config: ml_collections.ConfigDict, steps: int, params: Any) -> Optimizer:
    """Build the optimizer of a stage.

    Args:
      config: `config.optim` of the stage.
      steps: number of steps of the whole stage; schedules are over its progress.
      params: parameters or their shapes, for the rules.

    Raises: UserError naming a field with a malformed schedule, or whose rules leave out a parameter
      or match none.
    """
    multiples = {rule: _multiple(rule, value) for rule, value in config.lr_multiple}
    return Optimizer(
        moments=lookup(KINDS, config.kind, "optim.kind")(config),
        lr=schedule.check_schedule(config.lr, "optim.lr"),
        clip=config.clip,
        steps=steps,
        multiples=multiples,
        rule=rules.assign([(rule, rule) for rule in multiples], params, "optim.lr_multiple"),
        decay=rules.assign(config.weight_decay, params, "optim.weight_decay"),
    )


def _multiple(rule: str, value: float | Schedule) -> Schedule:
    """Return a multiple of the learning rate as a schedule."""
    points = ((0.0, value),) if isinstance(value, (int, float)) else value
    return schedule.check_schedule(points, f"optim.lr_multiple of {rule!r}")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer from `make_optimizer`. Trees have one entry per parameter."""

    moments: optax.GradientTransformation  # of one parameter
    lr: Schedule
    clip: float  # largest global norm of the gradient
    steps: int
    multiples: dict[str, Schedule]  # regex -> multiple of the learning rate
    rule: Any  # tree of the regexes of `multiples` that the parameters match
    decay: Any  # tree of floats

    def trainable(self, frozen: FrozenRules = ()) -> Any:
        """Return a tree of bools: the parameters that are trained while these rules are frozen."""

        def _is_trainable(rule):
            return schedule.is_nonzero(self.multiples[rule]) and rule not in frozen

        return jax.tree.map(_is_trainable, self.rule)

    def frozen_at(self, step: int) -> FrozenRules:
        """Return the rules that are frozen at this step."""
        progress = step / self.steps
        frozen = [rule for rule, points in self.multiples.items() if _is_frozen(points, progress)]
        return tuple(frozen)

    def init(self, params: Any) -> Any:
        """Return the state of every parameter; () for a parameter that is never trained."""

        def _init(param, is_trainable):
            return self.moments.init(param) if is_trainable else ()

        return jax.tree.map(_init, params, self.trainable())

    def update(self, grads: Any, state: Any, params: Any, step: Index) -> tuple[Any, Any]:
        """Compute one update.

        Args:
          grads: gradients; None for frozen parameters, which keep their values and states bit for
            bit.
          state: optimizer state.
          params: parameters.
          step: number of steps done.

        Returns: parameters and state.
        """
        grads, _ = optax.clip_by_global_norm(self.clip).update(grads, optax.EmptyState())
        progress = step / self.steps
        lr = schedule.value_at(self.lr, progress)
        multiples = {
            rule: schedule.value_at(points, progress) for rule, points in self.multiples.items()
        }

        def _update(param, grad, state, rule, decay):
            if grad is None:
                return _Updated(param, state)
            update, state = self.moments.update(grad, state, param)
            new_param = param - lr * ((update + decay * param) * multiples[rule])
            return _Updated(new_param.astype(param.dtype), state)

        updated = jax.tree.map(_update, params, grads, state, self.rule, self.decay)
        new_params = jax.tree.map(lambda leaf: leaf.param, updated)
        new_state = jax.tree.map(lambda leaf: leaf.state, updated)
        return new_params, new_state


@dataclasses.dataclass(frozen=True)
class _Updated:
    """A parameter and its optimizer state after an update; one leaf for JAX."""

    param: Array
    state: Any


def _is_frozen(points: Schedule, progress: float) -> bool:
    """Return whether the value is zero from here to the next point.

    At the start of a ramp from zero the value is zero too, but the parameters must be trainable.
    """
    passed = [value for time, value in points if time <= progress]
    ahead = [value for time, value in points if time > progress]
    return not any(passed[-1:] + ahead[:1])


def _adamw(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Return Adam's direction (arXiv 1412.6980).

    `Optimizer` adds the decoupled weight decay of AdamW (arXiv 1711.05101).
    """
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=config.mu_dtype)

    def _init(param):
        state = adam.init(param)
        return state._replace(nu=state.nu.astype(config.nu_dtype))  # optax keeps the dtype

    return optax.GradientTransformation(_init, adam.update)


def _adafactor(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Return Adafactor (arXiv 1804.04235) as Zhai et al. train ViTs (arXiv 2106.04560).

    The first moment is kept in `mu_dtype`, the decay of the second moment rises to at most b2,
    updates are clipped to unit root mean square, and learning rates are not relative to the size of
    the parameters.
    """

    def _decay_rate(step, power):
        return jnp.minimum(config.b2, 1 - (jnp.asarray(step, jnp.float32) + 1) ** -power)

    return optax.chain(
        optax.scale_by_factored_rms(decay_rate_fn=_decay_rate),
        optax.clip_by_block_rms(1.0),
        optax.ema(config.b1, debias=False, accumulator_dtype=config.mu_dtype),
    )


KINDS: dict[str, Callable[[ml_collections.ConfigDict], optax.GradientTransformation]] = {
    "adamw": _adamw,
    "adafactor": _adafactor,
}
