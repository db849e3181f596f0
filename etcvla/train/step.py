"""The training step: a pure function (state, batch) -> (state, metrics), the same for every stage.

Axes as in `etcvla.models.ops`; the batch is `etcvla.batch`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax

from etcvla import schedule
from etcvla.models import flow, ops
from etcvla.models.mixed_precision import bind_variables, gradient_variables
from etcvla.models.vla import VLA, action_dim_mask, find_target_positions, read_dtypes
from etcvla.names import lookup
from etcvla.train import metrics as metrics_lib
from etcvla.train.augment import augment
from etcvla.train.optim import FrozenRules, Optimizer
from etcvla.train.sharding import constrain_params
from etcvla.train.state import TrainState

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
LOSSES = ("text", "fast", "flow", "z")


@flax.struct.dataclass
class StepSettings:
    """What the step needs of a stage's config; hashable, so that it is part of the compiled step."""

    seed: int = flax.struct.field(pytree_node=False)
    steps: int = flax.struct.field(pytree_node=False)
    streams: tuple[str, ...] = flax.struct.field(pytree_node=False)
    max_targets: int = flax.struct.field(pytree_node=False)
    noise_samples: int = flax.struct.field(pytree_node=False)  # R, noise samples an action chunk
    text: schedule.Schedule = flax.struct.field(pytree_node=False)
    fast: schedule.Schedule = flax.struct.field(pytree_node=False)
    flow: schedule.Schedule = flax.struct.field(pytree_node=False)
    ema_decay: float = flax.struct.field(pytree_node=False)
    shift: int = flax.struct.field(pytree_node=False)  # pixels
    color: float = flax.struct.field(pytree_node=False)
    loc_offset: int = flax.struct.field(pytree_node=False)
    z: schedule.Schedule = flax.struct.field(pytree_node=False, default=((0.0, 0.0),))
    insulate: schedule.Schedule | None = flax.struct.field(
        pytree_node=False, default=None
    )  # None: as the model has it
    microbatches: int = flax.struct.field(
        pytree_node=False, default=1
    )  # parts of a batch, one after another
    skip: bool = flax.struct.field(
        pytree_node=False, default=False
    )  # a step that is not finite changes nothing
    frozen: FrozenRules = flax.struct.field(
        pytree_node=False, default=()
    )  # rules that rest at this step

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict, loc_offset: int) -> StepSettings:
        """From a stage's config. Raises ValueError for malformed points or an unknown name."""
        points = {
            name: schedule.check_schedule(config.loss[name], f"loss.{name}") for name in LOSSES
        }
        insulate = schedule.check_schedule(config.model.insulate, "model.insulate", most=1)
        return cls(
            seed=config.seed,
            steps=config.steps,
            streams=tuple(sorted(config.streams)),
            max_targets=config.data.max_targets,
            noise_samples=config.loss.noise_samples,
            ema_decay=config.optim.ema,
            shift=config.augment.shift,
            color=config.augment.color,
            loc_offset=loc_offset,
            insulate=insulate if varies(insulate) else None,
            microbatches=config.optim.microbatches,
            skip=lookup(ON_NONFINITE, config.optim.on_nonfinite, "optim.on_nonfinite"),
            **points,
        )


ON_NONFINITE = {"stop": False, "skip": True}


def varies(insulate: schedule.Schedule) -> bool:
    """Whether the gradient at the backbone's keys and values is scaled, not stopped or let through for good."""
    return len({value for _, value in insulate}) > 1 or 0 < insulate[0][1] < 1


def active_losses(settings: StepSettings) -> list[str]:
    """The losses that this stage has."""
    logits = schedule.is_nonzero(settings.text) or schedule.is_nonzero(settings.fast)
    return [
        name
        for name in LOSSES
        if schedule.is_nonzero(getattr(settings, name)) and (logits or name != "z")
    ]


def compute_losses(
    model: VLA, params: Any, batch: Batch, key: jax.Array, settings: StepSettings
) -> dict[str, Any]:
    """The unweighted losses of a batch.

    Returns: `text` and `fast` (mean next-token loss, nats), `z` (mean squared log of the softmax's sum), `flow` (mean
      squared velocity error), each a scalar, and `token_loss`, `token_hit`, `token_weight`, `token_stream` [B, M] and
      what `flow_errors` returns, row by row, for
      metrics. Absent parts are absent.
    """
    return microbatch_losses(model, params, *select_targets(batch, key, settings), settings)


def select_targets(
    batch: Batch, key: jax.Array, settings: StepSettings
) -> tuple[Batch, dict[str, jax.Array]]:
    """The batch with what it is asked beside it (row by row), and how many tokens or numbers each loss is a mean of.

    Counted once for a whole batch, so that the losses of its parts add up to its own.
    """
    rows, counts = dict(batch), {}
    if {"text", "fast"} & set(active_losses(settings)):
        rows["target_positions"], real = find_target_positions(
            batch["target"], settings.max_targets
        )
        rows["target_weight"] = jnp.where(real, _take(rows, "weight"), 0)
        rows["target_token"] = _take(rows, "tokens") * real
        rows["target_fast"] = rows["target_weight"] * (
            _take(rows, "segment") == batch["action_segment"][:, None]
        )
        counts["fast"] = jnp.maximum(rows["target_fast"].sum(), 1)
        counts["text"] = jnp.maximum((rows["target_weight"] - rows["target_fast"]).sum(), 1)
        counts["z"] = jnp.maximum(rows["target_weight"].sum(), 1)
    if schedule.is_nonzero(settings.flow):
        noise_key, time_key = jax.random.split(key)
        # Masked before anything is made of it: a gradient of zero times what padding holds could be NaN.
        actions = jnp.where(batch["action_mask"], batch["actions"], 0)
        shape = (actions.shape[0], settings.noise_samples, *actions.shape[1:])
        rows["time"] = flow.sample_time(time_key, shape[:2])
        x_t, rows["velocity"] = flow.interpolate(
            actions, jax.random.normal(noise_key, shape), rows["time"]
        )
        rows["x_t"] = jnp.where(action_dim_mask(batch)[:, None], x_t, 0)
        counts["flow"] = jnp.maximum(batch["action_mask"].sum() * settings.noise_samples, 1)
    return rows, counts


def _take(rows: Batch, name: str) -> jax.Array:
    return jnp.take_along_axis(rows[name], rows["target_positions"], axis=1)


def microbatch_losses(
    model: VLA,
    params: Any,
    rows: Batch,
    counts: Mapping[str, jax.Array],
    settings: StepSettings,
    gradient_scale: jax.Array | None = None,
) -> dict[str, Any]:
    """What these rows add to the losses of their batch; see `losses` and `targets`."""
    logits, predicted = model.apply(
        {"params": params},
        rows,
        rows.get("target_positions"),
        rows.get("x_t"),
        rows.get("time"),
        gradient_scale,
    )
    out = {}
    if logits is not None:
        out |= _token_losses(logits, rows, counts, settings)
    if predicted is not None:
        mask = rows["action_mask"][:, None]
        error = jnp.where(mask, jnp.square(predicted - rows["velocity"]), 0)
        out["flow"] = error.sum() / counts["flow"]
        out |= metrics_lib.flow_errors(error, mask, rows["time"])
    return out


def _token_losses(logits, rows, counts, settings):
    tokens, weight, fast = (rows[f"target_{name}"] for name in ("token", "weight", "fast"))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
    out = {
        "text": (loss * (weight - fast)).sum() / counts["text"],
        "fast": (loss * fast).sum() / counts["fast"],
        "token_loss": loss,
        "token_hit": jnp.argmax(logits, axis=-1) == tokens,
        "token_weight": weight,
        "token_stream": _take(rows, "stream"),
    }
    if schedule.is_nonzero(settings.z):
        out["z"] = (jnp.square(jax.nn.logsumexp(logits, axis=-1)) * weight).sum() / counts["z"]
    return out


def total_loss(parts: Mapping[str, Any], progress: jax.Array, settings: StepSettings) -> jax.Array:
    """The sum of the losses, weighted by their points at this progress."""
    return sum(
        schedule.value_at(getattr(settings, name), progress) * parts[name]
        for name in active_losses(settings)
    )


def compute_metrics(parts: Mapping[str, Any], settings: StepSettings) -> Metrics:
    """Scalars and vectors to log; what the batch holds nothing of (a stream, a time, an action dimension) is NaN."""
    out = {f"loss/{name}": parts[name] for name in active_losses(settings)}
    out |= {
        name: metrics_lib.quotient(parts[name]) for name in parts if name.startswith("flow_error/")
    }
    if "token_loss" not in parts:
        return out
    weight = (
        jax.nn.one_hot(parts["token_stream"], len(settings.streams))
        * parts["token_weight"][..., None]
    )
    total = weight.sum((0, 1))
    for name, value in {"loss": parts["token_loss"], "accuracy": parts["token_hit"]}.items():
        mean = jnp.einsum("bm,bms->s", value.astype(jnp.float32), weight) / jnp.where(
            total > 0, total, jnp.nan
        )
        out |= {f"{stream}/{name}": mean[i] for i, stream in enumerate(settings.streams)}
    return out


def train_step(
    state: TrainState, batch: Batch, *, model: VLA, optimizer: Optimizer, settings: StepSettings
) -> tuple[TrainState, Metrics]:
    """One update. All its randomness is a function of (seed, step), so a resumed run repeats it bit for bit."""
    key = jax.random.fold_in(jax.random.key(settings.seed), state.step)
    augment_key, loss_key = jax.random.split(key)
    progress = state.step / settings.steps
    batch = augment(
        augment_key,
        batch,
        shift=settings.shift,
        color=settings.color,
        loc_offset=settings.loc_offset,
    )
    rows, counts = select_targets(batch, loss_key, settings)
    gradient_scale = (
        None if settings.insulate is None else 1 - schedule.value_at(settings.insulate, progress)
    )
    variables = gradient_variables(
        state.params,
        read_dtypes(state.params, model.config),
        optimizer.trainable(settings.frozen),
    )

    def loss_fn(variables, rows):
        params = bind_variables(state.params, variables)
        parts = microbatch_losses(model, params, rows, counts, settings, gradient_scale)
        return total_loss(parts, progress, settings), parts

    (loss, parts), grads = accumulate_gradients(
        jax.value_and_grad(loss_fn, has_aux=True),
        constrain_params(variables),
        rows,
        settings.microbatches,
    )
    grads = constrain_params(
        jax.tree.map(lambda p, g: None if g is None else g.astype(p.dtype), state.params, grads)
    )
    metrics = {
        **compute_metrics(parts, settings),
        "loss": loss,
        "grad_norm": optax.global_norm(grads),
        **metrics_lib.grad_norms(grads),
    }
    return updated(state, grads, metrics, optimizer, settings)


def updated(
    state: TrainState, grads: Any, metrics: Metrics, optimizer: Optimizer, settings: StepSettings
) -> tuple[TrainState, Metrics]:
    """The state after an update; one that is not finite is left out and counted, if the settings say so."""
    params, opt = optimizer.update(grads, state.opt, state.params, state.step)
    # As a step towards the parameters, so that what is frozen stays in its bits.
    ema = jax.tree.map(
        lambda mean, new: mean + (1 - settings.ema_decay) * (new - mean), state.ema, params
    )
    after = TrainState(step=state.step + 1, params=params, ema=ema, opt=opt, skipped=state.skipped)
    if not settings.skip:
        return after, metrics
    fine = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    before = state.replace(step=state.step + 1, skipped=state.skipped + 1)
    return (
        jax.tree.map(lambda new, old: jnp.where(fine, new, old), after, before),
        {**metrics, "skipped": (~fine).astype(jnp.float32)},
    )


def accumulate_gradients(
    grad_fn, params: Any, rows: Batch, count: int
) -> tuple[tuple[jax.Array, dict], Any]:
    """grad_fn(params, rows) = ((loss, parts), grads), computed on `count` parts of the rows one after another.

    Losses, gradients and whatever else the parts hold are summed (in float32); what is named `token_..` is given row by
    row, and put together in another order. Every device has rows of each part, so that none moves.
    """
    if count == 1:
        return grad_fn(params, rows)
    split = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), rows)

    def body(total, part):
        part = jax.tree.map(ops.shard_batch, part)
        (loss, parts), grads = grad_fn(params, part)
        each = {name: parts.pop(name) for name in list(parts) if name.startswith("token_")}
        total = jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, (loss, parts, grads))
        return (*total[:2], constrain_params(total[2])), each

    (loss, parts), grads = jax.eval_shape(grad_fn, params, jax.tree.map(lambda x: x[0], split))
    sums = {name: value for name, value in parts.items() if not name.startswith("token_")}
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (loss, sums, grads))
    (loss, parts, grads), each = jax.lax.scan(body, zero, split)
    return (loss, parts | {name: x.reshape(-1, *x.shape[2:]) for name, x in each.items()}), grads
