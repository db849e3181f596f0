"""The optimizer with everything that a stage varies: AdamW or Adafactor, rates by points and by regex, decay by regex,
clipping, and parameters that are frozen for a while or for good.

Every parameter has a state of its own, with a count of its own updates: what thaws late starts as if it were new.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from etcvla import rules, schedule
from etcvla.names import lookup

FrozenRules = tuple[str, ...]  # regexes of `optim.lr_multiple` whose parameters rest


def make_optimizer(config: ml_collections.ConfigDict, steps: int, params: Any) -> Optimizer:
    """The optimizer of a stage.

    Args:
      config: `config.optim` of a stage.
      steps: of the whole stage; points are over its progress.
      params: parameters or their shapes, for the rules.

    Raises ValueError naming a field whose points are none, or whose rules leave a parameter out or match nothing.
    """
    lr = schedule.check_schedule(config.lr, "optim.lr")
    multiples = {rule: _knots(rule, value) for rule, value in config.lr_multiple}
    return Optimizer(
        moments=lookup(KINDS, config.kind, "optim.kind")(config),
        lr=lr,
        clip=config.clip,
        steps=steps,
        multiples=multiples,
        rule=rules.assign([(rule, rule) for rule in multiples], params, "optim.lr_multiple"),
        decay=rules.assign(config.weight_decay, params, "optim.weight_decay"),
    )


def _knots(rule: str, value: float | schedule.Schedule) -> schedule.Schedule:
    points = ((0.0, value),) if isinstance(value, (int, float)) else value
    return schedule.check_schedule(points, f"optim.lr_multiple of {rule!r}")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """See the module; made by `make_optimizer`. Trees are shaped as the parameters."""

    moments: optax.GradientTransformation  # of one parameter
    lr: schedule.Schedule
    clip: float  # largest global norm of the gradient
    steps: int
    multiples: dict[str, schedule.Schedule]  # regex -> of the rate
    rule: Any  # tree of the regexes that the parameters go by
    decay: Any  # tree of floats

    def trainable(self, frozen: FrozenRules = ()) -> Any:
        """Tree of bools: which parameters move while these rules rest."""
        return jax.tree.map(
            lambda rule: _moves(self.multiples[rule]) and rule not in frozen, self.rule
        )

    def frozen_at(self, step: int) -> FrozenRules:
        """The rules that rest at this step: whose rate is zero there and stays so for a while, or for good."""
        return tuple(
            rule for rule, points in self.multiples.items() if _rests(points, step / self.steps)
        )

    def init(self, params: Any) -> Any:
        """Every parameter's state; () for what never moves."""
        return jax.tree.map(
            lambda p, moves: self.moments.init(p) if moves else (), params, self.trainable()
        )

    def update(self, grads: Any, state: Any, params: Any, step: jax.Array) -> tuple[Any, Any]:
        """(parameters, state) after an update.

        Args:
          grads: None for parameters that rest: they and their states stay as they are, bit for bit.
          step: int32[], steps done.
        """
        grads, _ = optax.clip_by_global_norm(self.clip).update(grads, optax.EmptyState())
        progress = step / self.steps
        lr = schedule.value_at(self.lr, progress)
        multiples = {
            rule: schedule.value_at(points, progress) for rule, points in self.multiples.items()
        }

        def one(param, grad, state, rule, decay):
            if grad is None:
                return param, state
            update, state = self.moments.update(grad, state, param)
            return (param - lr * ((update + decay * param) * multiples[rule])).astype(
                param.dtype
            ), state

        both = jax.tree.map(one, params, grads, state, self.rule, self.decay)
        return tuple(jax.tree.map(lambda _, pair, i=i: pair[i], params, both) for i in range(2))


def _moves(points: schedule.Schedule) -> bool:
    return any(value for _, value in points)


def _rests(points: schedule.Schedule, progress: float) -> bool:
    """Whether the value is zero from here to the next knot. (At the foot of a ramp it is zero, but all must move.)"""
    passed = [value for t, value in points if t <= progress]
    ahead = [value for t, value in points if t > progress]
    return not any(passed[-1:] + ahead[:1])


def _adamw(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Adam's direction (arXiv 1412.6980); the decay is apart from it, as in AdamW (arXiv 1711.05101)."""
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=config.mu_dtype)

    def init(param):
        state = adam.init(param)
        return state._replace(nu=state.nu.astype(config.nu_dtype))  # optax keeps it so

    return optax.GradientTransformation(init, adam.update)


def _adafactor(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Adafactor (arXiv 1804.04235) as Zhai et al. train ViTs (arXiv 2106.04560): a first moment in `mu_dtype`, a
    decay of the second that rises to b2 at most, updates clipped to unit root mean square, rates not relative."""
    return optax.chain(
        optax.scale_by_factored_rms(
            decay_rate_fn=lambda step, power: jnp.minimum(
                config.b2, 1 - (jnp.asarray(step, jnp.float32) + 1) ** -power
            )
        ),
        optax.clip_by_block_rms(1.0),
        optax.ema(config.b1, debias=False, accumulator_dtype=config.mu_dtype),
    )


KINDS: dict[str, Callable[[ml_collections.ConfigDict], optax.GradientTransformation]] = {
    "adamw": _adamw,
    "adafactor": _adafactor,
}
