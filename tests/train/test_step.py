"""Tests of the training step against separate computations of its losses and metrics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from etcvla.models import flops, flow
from etcvla.models.decode import sample_actions
from etcvla.models.vla import find_target_positions
from etcvla.rules import path_str
from etcvla.train.optim import make_optimizer
from etcvla.train.state import TrainState
from etcvla.train.step import (
    StepSettings,
    compute_losses,
    compute_metrics,
    microbatch_losses,
    prepare_targets,
    total_loss,
    train_step,
)
from tests.models.small import is_backbone, make_model, random_params, random_rows, write_segment
from tests.train.nano import optim_config

ROWS = 4
SAMPLES = 2
SETTINGS = StepSettings(
    seed=0,
    steps=10,
    streams=("act", "ask", "never"),
    max_targets=8,
    noise_samples=SAMPLES,
    form="objectives",
    text=((0.0, 1.0), (1.0, 3.0)),
    fast=((0.0, 0.5),),
    flow=((0.0, 2.0),),
    ema_decay=0.9,
    shift=0,
    color=0.0,
    loc_offset=999,
)
KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def model():
    model = make_model()
    return model, random_params(model)


@pytest.fixture
def batch():
    """Rows 0 and 1 have actions, rows 0 and 2 have questions, row 3 has neither.

    Row 1 is near the end of its episode.
    """
    batch = random_rows(np.random.default_rng(0), ROWS)
    for row in (0, 1):
        write_segment(batch, row, 0, 1, [2, 11, 3], [50, 51, 1])
    batch["stream"][0, write_segment(batch, 0, 6, 2, [2, 20, 3], [40, 1])] = 1
    batch["stream"][2, write_segment(batch, 2, 0, 1, [2, 21, 22, 3], [41, 42, 43, 1])] = 1
    batch["action_segment"][:2] = 1
    batch["action_mask"][2:] = False
    batch["action_mask"][..., 4:] = False  # the robot has four of five action dimensions
    batch["action_mask"][1, :, 2:] = False
    batch["actions"][..., 4:] = 0
    return batch


@pytest.fixture(scope="module")
def run(model):
    module, params = model
    step = jax.jit(functools.partial(compute_losses, module, settings=SETTINGS))
    return lambda batch: jax.tree.map(np.asarray, step(params, batch, KEY))


def test_token_losses_are_means_over_their_tokens(model, run, batch):
    module, params = model
    columns = jnp.broadcast_to(jnp.arange(32), batch["tokens"].shape)
    logits, _ = jax.jit(functools.partial(module.apply, {"params": params}))(
        batch, columns, None, None
    )
    loss = np.asarray(optax.softmax_cross_entropy_with_integer_labels(logits, batch["tokens"]))
    fast = batch["target"] & (batch["segment"] == batch["action_segment"])
    outputs = run(batch)
    np.testing.assert_allclose(outputs["fast"], loss[fast].mean(), rtol=1e-5)
    np.testing.assert_allclose(outputs["text"], loss[batch["target"] & ~fast].mean(), rtol=1e-5)
    metrics = compute_metrics(outputs, SETTINGS)
    hits = np.asarray(jnp.argmax(logits, -1)) == batch["tokens"]
    for i, stream in enumerate(("act", "ask")):
        chosen = batch["target"] & (batch["stream"] == i)
        np.testing.assert_allclose(metrics[f"{stream}/loss"], loss[chosen].mean(), rtol=1e-5)
        np.testing.assert_allclose(metrics[f"{stream}/accuracy"], hits[chosen].mean(), rtol=1e-5)
    assert np.isnan(metrics["never/loss"]) and np.isnan(metrics["never/accuracy"])
    half = batch | {
        "weight": batch["weight"] * np.where(batch["tokens"] == 1, 0, 1).astype(np.float32)
    }
    np.testing.assert_allclose(
        run(half)["fast"], loss[fast & (batch["tokens"] != 1)].mean(), rtol=1e-5
    )


def test_flow_loss_is_the_mean_over_unmasked_entries(model, run, batch):
    module, params = model
    noise_key, time_key = jax.random.split(KEY)
    time = flow.sample_time(time_key, (ROWS, SAMPLES))
    noise = jax.random.normal(noise_key, (ROWS, SAMPLES, *batch["actions"].shape[2:]))
    x_t, target = flow.interpolate(batch["actions"], noise, time)
    x_t = x_t.at[..., 4:].set(0).at[2:].set(0)
    _, velocity = jax.jit(functools.partial(module.apply, {"params": params}))(
        batch, None, x_t, time
    )
    mask = np.broadcast_to(batch["action_mask"], velocity.shape)
    np.testing.assert_allclose(
        run(batch)["flow"], np.square(velocity - target)[mask].mean(), rtol=1e-5
    )


def test_padding_of_the_chunk_changes_no_loss(run, batch):
    other = batch | {"actions": batch["actions"].copy()}
    other["actions"][..., 4:] = 9  # padded dimensions
    other["actions"][2:] = 9  # rows without an action
    for name, value in run(batch).items():
        np.testing.assert_array_equal(value, run(other)[name], err_msg=name)


def test_sampling_keeps_padded_dimensions_at_zero(model, batch):
    """Their velocity is not trained. If it were integrated, the expert would read values that it
    never read in training.
    """
    module, params = model
    noise = np.random.default_rng(1).normal(size=batch["actions"][:, 0].shape).astype(np.float32)
    sample = jax.jit(lambda batch, noise: sample_actions(module, params, batch, noise, 4))
    chunk = sample(batch, noise)
    other = noise.copy()
    other[:, :, 4:] = 9
    assert (np.asarray(chunk)[:2, :, 4:] == 0).all() and (np.asarray(chunk)[:2, :, :4] != 0).all()
    np.testing.assert_array_equal(chunk, sample(batch, other))


def test_losses_over_nothing_are_zero(run, batch):
    empty = batch | {
        name: np.zeros_like(batch[name]) for name in ("target", "weight", "action_mask")
    }
    outputs = run(empty)
    assert outputs["text"] == outputs["fast"] == outputs["flow"] == 0


def test_total_loss_follows_the_schedules(run, batch):
    outputs = run(batch)
    for progress, text in ((0.0, 1.0), (0.25, 1.5), (1.0, 3.0)):
        np.testing.assert_allclose(
            total_loss(outputs, {}, jnp.float32(progress), SETTINGS),
            text * outputs["text"] + 0.5 * outputs["fast"] + 2 * outputs["flow"],
            rtol=1e-6,
        )


def test_fast_and_flow_train_in_one_row(batch):
    """FAST tokens train the backbone and the flow trains the expert, each with its own weight."""
    module = make_model(insulate=True)

    @jax.jit
    def grads(params, fast, flow):
        def loss(params):
            outputs = compute_losses(module, params, batch, KEY, SETTINGS)
            return fast * outputs["fast"] + flow * outputs["flow"]

        return jax.grad(loss)(params)

    params = random_params(module)
    both, fast, flow = (
        jax.tree_util.tree_flatten_with_path(grads(params, *weights))[0]
        for weights in ((0.5, 2.0), (1.0, 0.0), (0.0, 1.0))
    )
    for (path, total), (_, of_fast), (_, of_flow) in zip(both, fast, flow, strict=True):
        np.testing.assert_allclose(
            total, 0.5 * of_fast + 2 * of_flow, atol=1e-5 * max(1, np.abs(total).max())
        )
        name = path_str(path)
        if is_backbone(name):
            assert not of_flow.any() and (of_fast.any() or "key/bias" in name), name
        else:
            assert not of_fast.any() and of_flow.any(), name


def test_loss_with_zero_weight_is_not_computed(model, batch):
    module, params = model
    off = ((0.0, 0.0),)

    def outputs(**fields):
        part_losses = functools.partial(compute_losses, module, settings=SETTINGS.replace(**fields))
        return jax.eval_shape(part_losses, params, batch, KEY)

    assert "flow" not in outputs(flow=off) and "text" in outputs(flow=off)
    assert outputs(text=off, fast=off).keys() == {"flow", "flow_error/time", "flow_error/dim"}


def test_total_loss_of_form_share_is_the_sum_of_coefficients_times_losses(model, batch):
    """Scaling the weights of a row scales its part of the loss and of the gradient."""
    module, params = model
    settings = SETTINGS.replace(form="share")

    @jax.jit
    def loss_and_grad(batch):
        rows, weight_sums = prepare_targets(batch, KEY, settings)

        def loss(params):
            means, _ = microbatch_losses(module, params, rows, weight_sums, settings)
            return total_loss(means, weight_sums, 0.0, settings)

        return jax.value_and_grad(loss)(params)

    def scaled(*factors):
        factors = np.array(factors, np.float32)
        return batch | {
            "weight": batch["weight"] * factors[:, None],
            "action_weight": batch["action_weight"] * factors[:, None],
        }

    one = loss_and_grad(scaled(1, 1, 1, 1))
    twice = loss_and_grad(scaled(2, 1, 1, 1))
    alone = loss_and_grad(scaled(1, 0, 0, 0))
    differences = jax.tree.map(lambda a, b: np.asarray(a - b), twice, one)
    for actual, expected in zip(jax.tree.leaves(differences), jax.tree.leaves(alone), strict=True):
        tolerance = 1e-4 * max(1, np.abs(expected).max())
        np.testing.assert_allclose(actual, expected, atol=tolerance)


class Line:
    """Replaces the model: the velocity is the noisy chunk times a weight."""

    config = make_model().config

    def apply(self, variables, batch, target_positions, x_t, time, *options):
        return None, variables["params"]["w"] * x_t


@pytest.mark.parametrize("form", ["share", "objectives"])
def test_forms_differ_in_what_they_average(batch, form):
    """Of the rows with actions, row 1 has half of the values of row 0."""
    off = ((0.0, 0.0),)
    settings = SETTINGS.replace(text=off, fast=off, flow=((0.0, 1.0),), form=form)
    num_values = batch["action_mask"].sum(axis=(2, 3))
    if form == "share":
        weight = np.where(num_values > 0, 0.25 / np.maximum(num_values, 1), 0)
        batch = batch | {"action_weight": weight.astype(np.float32)}
    rows, weight_sums = prepare_targets(batch, KEY, settings)
    params = {"w": 0.5}
    means, _ = microbatch_losses(Line(), params, rows, weight_sums, settings)
    error = np.square(0.5 * rows["x_t"] - rows["velocity"])
    first = error[0][:, batch["action_mask"][0, 0]]
    second = error[1][:, batch["action_mask"][1, 0]]
    expected = {
        "share": 0.25 * first.mean() + 0.25 * second.mean(),
        "objectives": np.concatenate([first.ravel(), second.ravel()]).mean(),
    }
    assert first.size == 2 * second.size
    np.testing.assert_allclose(
        total_loss(means, weight_sums, 0.0, settings), expected[form], rtol=1e-5
    )


def test_randomness_is_a_function_of_seed_and_step(batch):
    off = ((0.0, 0.0),)
    params = {"w": jnp.float32(0.5)}
    optimizer = make_optimizer(optim_config(), SETTINGS.steps, params)

    def step(number, seed):
        state = TrainState(
            step=jnp.int32(number),
            params=params,
            ema={"w": jnp.float32(2)},
            opt=optimizer.init(params),
        )
        settings = SETTINGS.replace(seed=seed, text=off, fast=off)
        return train_step(state, batch, model=Line(), optimizer=optimizer, settings=settings)

    state, metrics = step(3, 0)
    _, again = step(3, 0)
    assert metrics["loss"] == again["loss"] == 2 * metrics["loss/flow"]
    assert len({float(step(*which)[1]["loss"]) for which in ((3, 0), (4, 0), (3, 1))}) == 3
    assert state.step == 4 and state.params["w"] != params["w"]
    np.testing.assert_allclose(state.ema["w"], 0.9 * 2 + 0.1 * state.params["w"], rtol=1e-6)


def one_step(module, params, batch, optim=None, **fields):
    """Run one jitted step whose update depends on the size of the gradient."""
    optimizer = make_optimizer(optim_config(eps=1.0, **(optim or {})), SETTINGS.steps, params)
    state = TrainState(step=jnp.int32(3), params=params, ema=params, opt=optimizer.init(params))
    step = functools.partial(
        train_step, model=module, optimizer=optimizer, settings=SETTINGS.replace(**fields)
    )
    return jax.jit(step)(state, batch)


def test_microbatches_sum_to_the_batch(model, batch):
    """Rows differ in their numbers of targets, so a mean of microbatch means would differ."""
    module, params = model
    fields = {"z": ((0.0, 0.1),), "form": "share"}
    expected_state, expected = one_step(module, params, batch, microbatches=1, **fields)
    state, metrics = one_step(module, params, batch, microbatches=ROWS, **fields)
    assert metrics.keys() == expected.keys() >= {"loss/z", "act/accuracy"}
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-5, err_msg=name)
    expected_change = jax.tree.map(lambda new, old: new - old, expected_state.params, params)
    change = jax.tree.map(lambda new, old: new - old, state.params, params)
    for actual, wanted in zip(
        jax.tree.leaves(change), jax.tree.leaves(expected_change), strict=True
    ):
        tolerance = 2e-6 * max(1, np.abs(wanted).max())
        np.testing.assert_allclose(actual, wanted, atol=tolerance)


def test_z_loss(model, batch):
    module, params = model
    columns = jnp.broadcast_to(jnp.arange(32), batch["tokens"].shape)
    logits, _ = jax.jit(functools.partial(module.apply, {"params": params}))(
        batch, columns, None, None
    )
    squares = np.square(jax.nn.logsumexp(logits, axis=-1))
    settings = SETTINGS.replace(z=((0.0, 0.1),), flow=((0.0, 0.0),))
    outputs = jax.jit(functools.partial(compute_losses, module, settings=settings))(
        params, batch, KEY
    )
    np.testing.assert_allclose(outputs["z"], squares[batch["target"]].mean(), rtol=1e-5)
    np.testing.assert_allclose(
        total_loss(outputs, {}, 0.0, settings),
        outputs["text"] + 0.5 * outputs["fast"] + 0.1 * outputs["z"],
        rtol=1e-6,
    )


def test_gradient_scale_interpolates_insulation(model, batch):
    """Scales 0 and 1 equal the option of the model; 0.5 gives half of the gradient."""
    _, params = model
    settings = SETTINGS.replace(text=((0.0, 0.0),), fast=((0.0, 0.0),))
    rows, weight_sums = prepare_targets(batch, KEY, settings)

    @functools.partial(jax.jit, static_argnums=0)
    def backbone(insulate, gradient_scale=None):
        def loss(params):
            sums, _ = microbatch_losses(
                make_model(insulate=insulate), params, rows, weight_sums, settings, gradient_scale
            )
            return sums["flow"]

        return jax.grad(loss)(params)["llm"]["layers"]["mlp"]["linear"]

    free = backbone(False)
    assert free.any() and not backbone(True).any()
    for gradient_scale in (0.0, 0.5, 1.0):
        np.testing.assert_allclose(
            backbone(False, jnp.float32(gradient_scale)), gradient_scale * free, atol=1e-7
        )


def test_nonfinite_update_is_skipped_and_counted(batch):
    params = {"w": jnp.float32(0.5)}
    off = ((0.0, 0.0),)
    run_step = functools.partial(one_step, Line(), params, skip=True, text=off, fast=off)
    state, metrics = run_step(batch)
    assert state.params["w"] != 0.5
    assert state.skipped == 0
    assert metrics["skipped"] == 0
    actions = batch["actions"].copy()
    actions[0] = np.nan
    state, metrics = run_step(batch | {"actions": actions})
    assert np.isnan(metrics["loss"])
    assert metrics["skipped"] == 1
    assert (state.step, state.skipped) == (4, 1)
    assert state.params == state.ema == params
    assert state.opt["w"].count == 0


def test_frozen_parameters_are_not_differentiated(model, batch):
    """A step with frozen parameters has fewer products."""
    module, params = model
    optim = {"lr_multiple": (("img/.*", ((0.0, 0.0), (0.5, 0.0), (0.6, 1.0))), (".*", 1.0))}
    optimizer = make_optimizer(optim_config(**optim), SETTINGS.steps, params)
    state = TrainState(step=jnp.int32(0), params=params, ema=params, opt=optimizer.init(params))
    rests, moves = (
        flops.count(
            functools.partial(
                train_step,
                model=module,
                optimizer=optimizer,
                settings=SETTINGS.replace(frozen=optimizer.frozen_at(step)),
            ),
            state,
            batch,
        ).total()
        for step in (0, 9)
    )
    tower = flops.count(
        lambda images: module.apply({"params": params}, images, method="encode_images"),
        batch["images"],
    ).total()
    assert (
        moves - rests > tower
    )  # no products for gradients of weights and inputs (the first layer has no input gradient)


def test_target_positions_are_the_first_targets_in_order():
    target = np.zeros((2, 7), bool)
    target[0, [5, 2, 3]] = target[1, 6] = True
    target_positions, real = find_target_positions(target, 2)
    assert (
        target_positions[0].tolist() == [2, 3]
        and real.tolist() == [[True, True], [True, False]]
        and target_positions[1, 0] == 6
    )
    target_positions, real = find_target_positions(target, 99)
    assert target_positions.shape == (2, 7) and real.sum() == 4
