"""The step's losses and metrics, each against a computation of its own."""

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

ROWS, DRAWS = 4, 2
SETTINGS = StepSettings(
    seed=0,
    steps=10,
    streams=("act", "ask", "never"),
    max_targets=8,
    noise_samples=DRAWS,
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
    """Rows 0 and 1 act (row 1 near its episode's end) and row 0 is asked too; row 2 is asked; row 3 has nothing."""
    made = random_rows(np.random.default_rng(0), ROWS)
    for row in (0, 1):
        write_segment(made, row, 0, 1, [2, 11, 3], [50, 51, 1])
    made["stream"][0, write_segment(made, 0, 6, 2, [2, 20, 3], [40, 1])] = 1
    made["stream"][2, write_segment(made, 2, 0, 1, [2, 21, 22, 3], [41, 42, 43, 1])] = 1
    made["action_segment"][:2] = 1
    made["action_mask"][2:] = False
    made["action_mask"][:, :, 4:] = False  # the robot has four of five widths
    made["action_mask"][1, 2:] = False
    made["actions"][:, :, 4:] = 0
    return made


@pytest.fixture(scope="module")
def run(model):
    module, params = model
    step = jax.jit(functools.partial(compute_losses, module, settings=SETTINGS))
    return lambda batch: jax.tree.map(np.asarray, step(params, batch, KEY))


def test_next_token_losses_are_means_over_their_tokens(model, run, batch):
    module, params = model
    columns = jnp.broadcast_to(jnp.arange(32), batch["tokens"].shape)
    logits, _ = jax.jit(functools.partial(module.apply, {"params": params}))(
        batch, columns, None, None
    )
    loss = np.asarray(optax.softmax_cross_entropy_with_integer_labels(logits, batch["tokens"]))
    fast = batch["target"] & (batch["segment"] == batch["action_segment"][:, None])
    parts = run(batch)
    np.testing.assert_allclose(parts["fast"], loss[fast].mean(), rtol=1e-5)
    np.testing.assert_allclose(parts["text"], loss[batch["target"] & ~fast].mean(), rtol=1e-5)
    metrics = compute_metrics(parts, SETTINGS)
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


def test_flow_loss_is_the_mean_over_what_is_not_masked(model, run, batch):
    module, params = model
    noise_key, time_key = jax.random.split(KEY)
    time = flow.sample_time(time_key, (ROWS, DRAWS))
    noise = jax.random.normal(noise_key, (ROWS, DRAWS, *batch["actions"].shape[1:]))
    x_t, target = flow.interpolate(batch["actions"], noise, time)
    x_t = x_t.at[..., 4:].set(0).at[2:].set(0)
    _, velocity = jax.jit(functools.partial(module.apply, {"params": params}))(
        batch, None, x_t, time
    )
    mask = np.broadcast_to(batch["action_mask"][:, None], velocity.shape)
    np.testing.assert_allclose(
        run(batch)["flow"], np.square(velocity - target)[mask].mean(), rtol=1e-5
    )


def test_padding_of_the_chunk_changes_nothing(run, batch):
    other = batch | {"actions": batch["actions"].copy()}
    other["actions"][:, :, 4:] = 9  # widths that the robot does not have
    other["actions"][2:] = 9  # rows without an action
    for name, value in run(batch).items():
        np.testing.assert_array_equal(value, run(other)[name], err_msg=name)


def test_acting_keeps_padded_widths_as_training_showed_them(model, batch):
    """Their velocity is never trained: were they integrated, the expert would read what it never saw."""
    module, params = model
    noise = np.random.default_rng(1).normal(size=batch["actions"].shape).astype(np.float32)
    sample = jax.jit(lambda batch, noise: sample_actions(module, params, batch, noise, 4))
    chunk, other = sample(batch, noise), noise.copy()
    other[:, :, 4:] = 9
    assert (np.asarray(chunk)[:2, :, 4:] == 0).all() and (np.asarray(chunk)[:2, :, :4] != 0).all()
    np.testing.assert_array_equal(chunk, sample(batch, other))


def test_nothing_to_learn_is_zero_not_nan(run, batch):
    empty = batch | {
        name: np.zeros_like(batch[name]) for name in ("target", "weight", "action_mask")
    }
    parts = run(empty)
    assert parts["text"] == parts["fast"] == parts["flow"] == 0


def test_the_total_follows_its_knots(run, batch):
    parts = run(batch)
    for progress, text in ((0.0, 1.0), (0.25, 1.5), (1.0, 3.0)):
        np.testing.assert_allclose(
            total_loss(parts, jnp.float32(progress), SETTINGS),
            text * parts["text"] + 0.5 * parts["fast"] + 2 * parts["flow"],
            rtol=1e-6,
        )


def test_both_action_objectives_train_in_one_row(batch):
    """FAST's tokens the backbone, the flow the expert, each as much as its weight says."""
    module = make_model(insulate=True)

    @jax.jit
    def grads(params, fast, flow):
        def loss(params):
            parts = compute_losses(module, params, batch, KEY, SETTINGS)
            return fast * parts["fast"] + flow * parts["flow"]

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


def test_a_loss_without_weight_is_not_computed(model, batch):
    module, params = model
    off = ((0.0, 0.0),)

    def parts(**fields):
        part_losses = functools.partial(compute_losses, module, settings=SETTINGS.replace(**fields))
        return jax.eval_shape(part_losses, params, batch, KEY)

    assert "flow" not in parts(flow=off) and "text" in parts(flow=off)
    assert parts(text=off, fast=off).keys() == {"flow", "flow_error/time", "flow_error/dim"}


class Line:
    """Stands in for the model: a velocity that is the noisy chunk times a weight."""

    config = make_model().config

    def apply(self, variables, batch, target_positions, x_t, time, gradient_scale):
        return None, variables["params"]["w"] * x_t


def test_a_steps_randomness_is_a_function_of_seed_and_step(batch):
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

    (state, metrics), (_, again) = step(3, 0), step(3, 0)
    assert metrics["loss"] == again["loss"] == 2 * metrics["loss/flow"]
    assert len({float(step(*which)[1]["loss"]) for which in ((3, 0), (4, 0), (3, 1))}) == 3
    assert state.step == 4 and state.params["w"] != params["w"]
    np.testing.assert_allclose(state.ema["w"], 0.9 * 2 + 0.1 * state.params["w"], rtol=1e-6)


def one_step(module, params, batch, optim=None, **fields):
    """State and metrics after a step whose size tells gradients apart, jitted."""
    optimizer = make_optimizer(optim_config(eps=1.0, **(optim or {})), SETTINGS.steps, params)
    state = TrainState(step=jnp.int32(3), params=params, ema=params, opt=optimizer.init(params))
    step = functools.partial(
        train_step, model=module, optimizer=optimizer, settings=SETTINGS.replace(**fields)
    )
    return jax.jit(step)(state, batch)


def test_parts_of_a_batch_add_up_to_it(model, batch):
    """Row by row, in turn: rows that differ in what they teach, so that a mean of the parts' means would be another."""
    module, params = model
    z = ((0.0, 0.1),)
    (whole, expected), (parts, found) = (
        one_step(module, params, batch, microbatches=n, z=z) for n in (1, ROWS)
    )
    assert found.keys() == expected.keys() >= {"loss/z", "act/accuracy"}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, err_msg=name)
    for a, b, start in zip(
        *map(jax.tree.leaves, (whole.params, parts.params, params)), strict=True
    ):
        np.testing.assert_allclose(
            b - start, a - start, atol=2e-6 * max(1, np.abs(a - start).max())
        )


def test_z_is_the_mean_squared_log_of_the_softmaxs_sum(model, batch):
    module, params = model
    columns = jnp.broadcast_to(jnp.arange(32), batch["tokens"].shape)
    logits, _ = jax.jit(functools.partial(module.apply, {"params": params}))(
        batch, columns, None, None
    )
    squares = np.square(jax.nn.logsumexp(logits, axis=-1))
    settings = SETTINGS.replace(z=((0.0, 0.1),), flow=((0.0, 0.0),))
    parts = jax.jit(functools.partial(compute_losses, module, settings=settings))(
        params, batch, KEY
    )
    np.testing.assert_allclose(parts["z"], squares[batch["target"]].mean(), rtol=1e-5)
    np.testing.assert_allclose(
        total_loss(parts, 0.0, settings),
        parts["text"] + 0.5 * parts["fast"] + 0.1 * parts["z"],
        rtol=1e-6,
    )


def test_insulation_may_change_by_degrees(model, batch):
    """Wholly on and wholly off it is what the model's own switch does, and half of it is half way between."""
    _, params = model
    settings = SETTINGS.replace(text=((0.0, 0.0),), fast=((0.0, 0.0),))
    rows, counts = prepare_targets(batch, KEY, settings)

    @functools.partial(jax.jit, static_argnums=0)
    def backbone(insulate, gradient_scale=None):
        def loss(params):
            return microbatch_losses(
                make_model(insulate=insulate), params, rows, counts, settings, gradient_scale
            )["flow"]

        return jax.grad(loss)(params)["llm"]["layers"]["mlp"]["linear"]

    free = backbone(False)
    assert free.any() and not backbone(True).any()
    for gradient_scale in (0.0, 0.5, 1.0):
        np.testing.assert_allclose(
            backbone(False, jnp.float32(gradient_scale)), gradient_scale * free, atol=1e-7
        )


def test_a_step_that_is_not_finite_is_skipped_and_counted(batch):
    params, off = {"w": jnp.float32(0.5)}, ((0.0, 0.0),)
    (state, metrics), (bad, told) = (
        one_step(Line(), params, made, skip=True, text=off, fast=off)
        for made in (
            batch,
            batch
            | {"actions": batch["actions"] * np.where(np.arange(4)[:, None, None], 1, np.nan)},
        )
    )
    assert state.params["w"] != 0.5 and state.skipped == 0 and metrics["skipped"] == 0
    assert np.isnan(told["loss"]) and told["skipped"] == 1 and (bad.step, bad.skipped) == (4, 1)
    assert bad.params == bad.ema == params and bad.opt["w"].count == 0


def test_what_rests_is_not_differentiated(model, batch):
    """Fewer products, and the rest of the state in its bits."""
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
    )  # a weight's and an input's product less, but for the first layer's input


def test_slots_are_the_first_targets_in_order():
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
