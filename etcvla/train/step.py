"""The training step: a pure function (state, batch) -> (state, metrics), the same for all stages.

Axes as in `etcvla.models.types`; the fields of a batch are described in `etcvla.batch`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Float

from etcvla import schedule
from etcvla.errors import UserError
from etcvla.models import flow, ops
from etcvla.models.mixed_precision import bind_variables, gradient_variables
from etcvla.models.types import Batch, Scalar
from etcvla.models.vla import (
    VLA,
    action_dim_mask,
    action_token_mask,
    find_target_positions,
    read_dtypes,
)
from etcvla.names import lookup
from etcvla.schedule import Schedule
from etcvla.train import metrics as metrics_lib
from etcvla.train.augment import augment
from etcvla.train.image_targets import find_image_targets
from etcvla.train.optim import FrozenRules, Optimizer
from etcvla.train.sharding import constrain_params
from etcvla.train.state import TrainState
from etcvla.train.vocabulary import TokenRows, freeze_rows, measure_drift

Metrics = dict[str, jax.Array]
LOSSES = ("text", "fast", "flow", "z", "image")
ON_NONFINITE = {"stop": False, "skip": True}


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """The fields of a stage's config that the step needs.

    Hashable, because they are part of the compiled step.
    """

    seed: int
    steps: int
    streams: tuple[str, ...]
    max_targets: int  # M
    noise_samples: int  # R, per row
    # How the losses of tokens and values are summed, a name in `etcvla.loss_forms.LOSS_FORMS`.
    form: str
    # Weights of the losses.
    text: Schedule
    fast: Schedule
    flow: Schedule
    ema_decay: float
    # Augmentation; see `etcvla.train.augment`.
    shift: int
    color: float
    loc_offset: int
    places: str = "pair"
    z: Schedule = ((0.0, 0.0),)
    image: Schedule = ((0.0, 0.0),)
    # Share of the gradient from the expert that is stopped; None: as `VLAConfig.insulate` says.
    insulate: Schedule | None = None
    # Number of parts of the batch that are computed one after another.
    microbatches: int = 1
    # Leave out an update that is not finite, instead of stopping the run.
    skip: bool = False
    # Rules whose parameters are frozen at this step.
    frozen: FrozenRules = ()
    # Rows of the token table that the stage's answers use, and what happens to the others.
    token_rows: TokenRows = TokenRows()

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict, loc_offset: int) -> StepSettings:
        """Build the settings from a stage's config.

        Args:
          config: the stage's config.
          loc_offset: token id of `<loc0000>`.

        Raises: UserError for a malformed schedule, an unknown name, or if the number of noise
          samples is not a multiple of the number of action segments.
        """
        per_row = config.data.actions_per_row
        if per_row < 1 or config.loss.noise_samples % per_row:
            raise UserError(
                f"loss.noise_samples {config.loss.noise_samples} is not a multiple of "
                f"data.actions_per_row {per_row}; every action needs the same number of samples"
            )
        weights = {}
        for name in LOSSES:
            weights[name] = schedule.check_schedule(config.loss[name], f"loss.{name}")
        if schedule.is_nonzero(weights["image"]) and config.data.places != "cell":
            raise UserError(
                f"loss.image needs data.places 'cell', not {config.data.places!r}; set loss.image=0"
            )
        insulate = schedule.check_schedule(config.model.insulate, "model.insulate", most=1)
        return cls(
            seed=config.seed,
            steps=config.steps,
            streams=tuple(sorted(config.streams)),
            max_targets=config.data.max_targets,
            noise_samples=config.loss.noise_samples,
            form=config.loss.form,
            ema_decay=config.optim.ema,
            shift=config.augment.shift,
            color=config.augment.color,
            loc_offset=loc_offset,
            places=config.data.places,
            insulate=insulate if scales_gradient(insulate) else None,
            microbatches=config.optim.microbatches,
            skip=lookup(ON_NONFINITE, config.optim.on_nonfinite, "optim.on_nonfinite"),
            **weights,
        )

    def replace(self, **changes: Any) -> StepSettings:
        """Return the settings with other values of some fields."""
        return dataclasses.replace(self, **changes)


def scales_gradient(insulate: Schedule) -> bool:
    """Return whether `insulate` is neither 0 nor 1 throughout, so that gradients are scaled."""
    values = {value for _, value in insulate}
    return len(values) > 1 or 0 < insulate[0][1] < 1


def active_losses(settings: StepSettings) -> list[str]:
    """Return the names of the losses that the stage computes."""
    has_logits = schedule.is_nonzero(settings.text) or schedule.is_nonzero(settings.fast)
    names = [name for name in LOSSES if schedule.is_nonzero(getattr(settings, name))]
    if not has_logits:
        names = [name for name in names if name not in ("z", "image")]
    return names


def train_step(
    state: TrainState, batch: Batch, *, model: VLA, optimizer: Optimizer, settings: StepSettings
) -> tuple[TrainState, Metrics]:
    """Compute one update.

    All randomness is a function of (seed, step), so a resumed run repeats it bit for bit.
    """
    key = jax.random.fold_in(jax.random.key(settings.seed), state.step)
    augment_key, loss_key = jax.random.split(key)
    progress = state.step / settings.steps
    gradient_scale = None
    if settings.insulate is not None:
        gradient_scale = 1 - schedule.value_at(settings.insulate, progress)

    batch = augment(
        augment_key,
        batch,
        shift=settings.shift,
        color=settings.color,
        loc_offset=settings.loc_offset,
        places=settings.places,
    )
    rows, weight_sums = prepare_targets(batch, loss_key, settings)

    dtypes = read_dtypes(state.params, model.config)
    trainable = optimizer.trainable(settings.frozen)
    variables = constrain_params(gradient_variables(state.params, dtypes, trainable))

    def _loss_fn(variables, rows):
        params = bind_variables(state.params, variables)
        sums, tokens = microbatch_losses(model, params, rows, weight_sums, settings, gradient_scale)
        return total_loss(sums, weight_sums, progress, settings), (sums, tokens)

    grad_fn = jax.value_and_grad(_loss_fn, has_aux=True)
    loss, sums, tokens, grads = accumulate_gradients(
        grad_fn, variables, rows, settings.microbatches
    )
    # None, the gradient of a frozen parameter, is not a leaf.
    grads = constrain_params(jax.tree.map(lambda grad: grad.astype(jnp.float32), grads))
    if settings.token_rows.mode == "freeze":
        grads = freeze_rows(grads, settings.token_rows)

    metrics = compute_metrics(sums | tokens, settings)
    metrics["loss"] = loss
    metrics["grad_norm"] = optax.global_norm(grads)
    metrics |= metrics_lib.grad_norms(grads)
    state, metrics = apply_update(state, grads, metrics, optimizer, settings)
    if state.start_rows is not None:
        metrics |= measure_drift(state.params, state.start_rows, settings.token_rows)
    return state, metrics


# ---- losses --------------------------------------------------------------------------------------


def compute_losses(
    model: VLA, params: Any, batch: Batch, key: jax.Array, settings: StepSettings
) -> dict[str, Array]:
    """Compute the mean losses of a batch, in the weights of its tokens and action values.

    Returns: the scalars `text` and `fast` (mean next-token loss, nats), `z` (mean squared log of
      the softmax's sum), `image` (mean loss of answers that image tokens predict) and `flow`
      (mean squared velocity error); and, row by row for the metrics,
      `token_loss`, `token_hit`, `token_weight`, `token_stream` [B, M] and the outputs of
      `flow_errors`. Losses that the stage does not compute are absent.
    """
    rows, weight_sums = prepare_targets(batch, key, settings)
    sums, tokens = microbatch_losses(model, params, rows, weight_sums, settings)
    return sums | tokens


def prepare_targets(
    batch: Batch, key: jax.Array, settings: StepSettings
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Choose what the model predicts from a batch.

    Returns: `rows`, the batch with the targets of every row; and `weight_sums`, the sum of the
      weights of the tokens or values over which each loss is a mean. The sums are those of the
      whole batch, so the losses of its microbatches sum to its own.
    """
    rows = dict(batch)
    weight_sums = {}
    losses = active_losses(settings)
    if "text" in losses or "fast" in losses:
        _add_token_targets(rows, weight_sums, settings)
    if "flow" in losses:
        _add_flow_targets(rows, weight_sums, key, settings)
    return rows, weight_sums


def _add_token_targets(
    rows: dict[str, Array], weight_sums: dict[str, Array], settings: StepSettings
) -> None:
    """Add the positions [B, M] of the target tokens, their ids and weights, and the sums."""
    rows["target_positions"], is_real = find_target_positions(rows["target"], settings.max_targets)
    weight = jnp.where(is_real, _at_targets(rows["weight"], rows), 0)
    is_action = _at_targets(action_token_mask(rows).any(axis=1), rows)
    rows["target_weight"] = weight
    rows["target_token"] = _at_targets(rows["tokens"], rows) * is_real
    rows["target_fast"] = weight * is_action  # weight of FAST tokens, 0 for text
    weight_sums["fast"] = rows["target_fast"].sum()
    weight_sums["text"] = (weight - rows["target_fast"]).sum()
    weight_sums["z"] = weight.sum()
    if schedule.is_nonzero(settings.image):
        rows["image_cells"], has_place = find_image_targets(rows, settings.loc_offset)
        rows["image_weight"] = jnp.where(has_place & ~is_action, weight, 0)
        weight_sums["image"] = rows["image_weight"].sum()


def _add_flow_targets(
    rows: dict[str, Array], weight_sums: dict[str, Array], key: jax.Array, settings: StepSettings
) -> None:
    """Add R noisy chunks per row, their times, velocities, masks and weights, and the sum.

    Noise sample r is drawn for action segment r mod K.
    """
    noise_key, time_key = jax.random.split(key)
    batch, num_segments, horizon, width = rows["actions"].shape
    repeats = (1, settings.noise_samples // num_segments, 1, 1)
    rows["flow_mask"] = jnp.tile(rows["action_mask"], repeats)
    # Mask before any computation: a zero gradient times a value in the padding could be NaN.
    actions = jnp.where(rows["flow_mask"], jnp.tile(rows["actions"], repeats), 0)
    rows["time"] = flow.sample_time(time_key, (batch, settings.noise_samples))
    noise = jax.random.normal(noise_key, (batch, settings.noise_samples, horizon, width))
    x_t, rows["velocity"] = flow.interpolate(actions, noise, rows["time"])
    rows["x_t"] = jnp.where(jnp.tile(action_dim_mask(rows), repeats), x_t, 0)
    weight = jnp.where(rows["action_mask"], rows["action_weight"][..., None, None], 0)
    weight_sums["flow"] = weight.sum()
    rows["flow_weight"] = jnp.tile(weight / repeats[1], repeats)


def _at_targets(field: Array, rows: Batch) -> Array:
    """Return a field of the text [B, L] at the target positions [B, M]."""
    return jnp.take_along_axis(field, rows["target_positions"], axis=1)


def microbatch_losses(
    model: VLA,
    params: Any,
    rows: Batch,
    weight_sums: Mapping[str, Array],
    settings: StepSettings,
    gradient_scale: Scalar | None = None,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Compute what these rows contribute to the outputs of `compute_losses` for their batch.

    Args:
      model: the model.
      params: its parameters.
      rows: some rows from `prepare_targets`.
      weight_sums: the sums from `prepare_targets`.
      settings: the settings.
      gradient_scale: factor of the gradient from the expert to the language model; None: as the
        model's `insulate`.

    Returns: the outputs to sum over microbatches, and those of each target token.
    """
    logits, velocity = model.apply(
        {"params": params},
        rows,
        rows.get("target_positions"),
        rows.get("x_t"),
        rows.get("time"),
        gradient_scale,
        _trained_rows(model, settings),
        rows.get("image_cells"),
    )
    sums = {}
    tokens = {}
    if logits is not None:
        sums, tokens = _token_losses(logits, rows, weight_sums, settings)
    if velocity is not None:
        mask = rows["flow_mask"]
        error = jnp.where(mask, jnp.square(velocity - rows["velocity"]), 0)
        total = (error * rows["flow_weight"]).sum()
        sums["flow"] = _mean(total, weight_sums["flow"])
        sums |= metrics_lib.flow_errors(error, mask, rows["time"])
    return sums, tokens


def _trained_rows(model: VLA, settings: StepSettings) -> Array | None:
    """Return the mask of rows that get a gradient from the logits; None: all."""
    if settings.token_rows.mode == "train":
        return None
    return jnp.asarray(settings.token_rows.is_answer(model.config.vocab_size))


def _token_losses(
    logits: Float[Array, "B M_or_2M V"],
    rows: Batch,
    weight_sums: Mapping[str, Array],
    settings: StepSettings,
) -> tuple[dict[str, Array], dict[str, Array]]:
    ids = rows["target_token"]
    weight = rows["target_weight"]
    fast_weight = rows["target_fast"]
    if schedule.is_nonzero(settings.image):
        logits, image_logits = jnp.split(logits, 2, axis=1)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, ids)
    sums = {
        "text": _mean((loss * (weight - fast_weight)).sum(), weight_sums["text"]),
        "fast": _mean((loss * fast_weight).sum(), weight_sums["fast"]),
    }
    if schedule.is_nonzero(settings.z):
        square = jnp.square(jax.nn.logsumexp(logits, axis=-1))
        sums["z"] = _mean((square * weight).sum(), weight_sums["z"])
    if schedule.is_nonzero(settings.image):
        image_loss = optax.softmax_cross_entropy_with_integer_labels(image_logits, ids)
        total = (image_loss * rows["image_weight"]).sum()
        sums["image"] = _mean(total, weight_sums["image"])
    tokens = {
        "token_loss": loss,
        "token_hit": jnp.argmax(logits, axis=-1) == ids,
        "token_weight": weight,
        "token_stream": _at_targets(rows["stream"], rows),
    }
    return sums, tokens


def _mean(total: Scalar, weight_sum: Scalar) -> Scalar:
    """Divide a weighted sum by the sum of its weights, which may be 0 if the sum is."""
    return total / jnp.where(weight_sum > 0, weight_sum, 1)


def total_loss(
    outputs: Mapping[str, Array],
    weight_sums: Mapping[str, Array],
    progress: Scalar,
    settings: StepSettings,
) -> Scalar:
    """Sum the losses, weighted by their schedules at this progress.

    In form "objectives" each loss is a mean over its tokens or values. In the other forms the
    weights are coefficients of the objective, and a loss is the weighted sum.

    Args:
      outputs: from `compute_losses`.
      weight_sums: from `prepare_targets`.
    """
    total = 0
    for name in active_losses(settings):
        coefficient = schedule.value_at(getattr(settings, name), progress)
        if settings.form != "objectives":
            coefficient *= weight_sums[name]
        total += coefficient * outputs[name]
    return total


def compute_metrics(outputs: Mapping[str, Array], settings: StepSettings) -> Metrics:
    """Return the scalars and vectors to log, from the outputs of `compute_losses`.

    Means over nothing are NaN: a stream, a time or an action dimension that the batch does not
      contain.
    """
    metrics = {f"loss/{name}": outputs[name] for name in active_losses(settings)}
    for name, value in outputs.items():
        if name.startswith("flow_error/"):
            metrics[name] = metrics_lib.mean_over_rows(value)
    if "token_loss" not in outputs:
        return metrics
    stream = jax.nn.one_hot(outputs["token_stream"], len(settings.streams))
    weight = stream * outputs["token_weight"][..., None]  # [B, M, number of streams]
    total = weight.sum((0, 1))
    total = jnp.where(total > 0, total, jnp.nan)
    for name, value in {"loss": outputs["token_loss"], "accuracy": outputs["token_hit"]}.items():
        mean = jnp.einsum("bm,bmx->x", value.astype(jnp.float32), weight) / total
        for i, stream_name in enumerate(settings.streams):
            metrics[f"{stream_name}/{name}"] = mean[i]
    return metrics


# ---- update --------------------------------------------------------------------------------------


def accumulate_gradients(
    grad_fn: Callable, variables: Any, rows: Batch, count: int
) -> tuple[Scalar, dict[str, Array], dict[str, Array], Any]:
    """Compute losses and gradients on `count` microbatches of the rows, one after another.

    Every device has rows of each microbatch, so no row moves between devices.

    Args:
      grad_fn: function (variables, rows) -> ((loss, (sums, tokens)), grads).
      variables: what to differentiate with respect to.
      rows: all rows.
      count: number of microbatches.

    Returns: loss, sums and grads, summed in float32, and tokens, concatenated in another order of
      rows.
    """
    if count == 1:
        (loss, (sums, tokens)), grads = grad_fn(variables, rows)
        return loss, sums, tokens, grads
    microbatches = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), rows)

    def _add_microbatch(total, rows):
        rows = jax.tree.map(ops.shard_batch, rows)
        (loss, (sums, tokens)), grads = grad_fn(variables, rows)
        loss, sums, grads = jax.tree.map(
            lambda a, b: a + b.astype(a.dtype), total, (loss, sums, grads)
        )
        return (loss, sums, constrain_params(grads)), tokens

    first = jax.tree.map(lambda x: x[0], microbatches)
    (loss, (sums, _)), grads = jax.eval_shape(grad_fn, variables, first)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (loss, sums, grads))
    (loss, sums, grads), tokens = jax.lax.scan(_add_microbatch, zero, microbatches)
    tokens = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tokens)
    return loss, sums, tokens, grads


def apply_update(
    state: TrainState, grads: Any, metrics: Metrics, optimizer: Optimizer, settings: StepSettings
) -> tuple[TrainState, Metrics]:
    """Return the state after an update and the metrics.

    With `settings.skip`, an update that is not finite is left out and counted.
    """
    params, opt = optimizer.update(grads, state.opt, state.params, state.step)
    # Written as a step towards the parameters, which keeps frozen parameters bit for bit.
    ema = jax.tree.map(
        lambda mean, param: mean + (1 - settings.ema_decay) * (param - mean), state.ema, params
    )
    updated = state.replace(step=state.step + 1, params=params, ema=ema, opt=opt)
    if not settings.skip:
        return updated, metrics
    skipped = state.replace(step=state.step + 1, skipped=state.skipped + 1)
    is_finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    state = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), updated, skipped)
    return state, {**metrics, "skipped": (~is_finite).astype(jnp.float32)}
