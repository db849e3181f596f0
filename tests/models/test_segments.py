"""Tests of packed rows: they equal separate rows, and masked values change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etcvla.train.step import StepSettings, microbatch_losses, prepare_targets, total_loss
from tests.models.small import SIZES, make_model, random_params, random_rows, write_segment

ROWS = 4
SAMPLES = 2
TEXTS = [
    ([2, 11, 12, 13, 3], [40, 41, 1]),
    ([2, 20, 3], [50, 51, 52, 1]),
    ([2, 30, 31, 32, 33, 3], [60, 1]),
]
JUNK = (0.0, -3.0, 1e30, np.inf, np.nan)
few = settings(max_examples=15, deadline=None)
lengths = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 3)), min_size=3, max_size=3)


@pytest.fixture(scope="module", params=["token", "text"])
def model(request):
    model = make_model(state=request.param)
    return model, random_params(model)


@pytest.fixture(scope="module")
def run(model):
    """Return a function of (batch, x_t, time, row weights).

    It computes the loss of the weighted rows, its gradient, logits [B, L, V] and velocities.
    """
    model, params = model

    def loss(params, batch, x_t, time, row_weight):
        columns = jnp.broadcast_to(jnp.arange(SIZES["L"]), (ROWS, SIZES["L"]))
        logits, velocity = model.apply({"params": params}, batch, columns, x_t, time)
        text = (
            optax.softmax_cross_entropy_with_integer_labels(logits, batch["tokens"])
            * batch["weight"]
        )
        flow = jnp.where(batch["action_mask"], velocity**2, 0)
        return (row_weight * (text.sum(1) + flow.sum((1, 2, 3)))).sum(), (logits, velocity)

    @jax.jit
    def step(*args):
        (value, (logits, velocity)), grads = jax.value_and_grad(loss, has_aux=True)(params, *args)
        return value, grads, logits, velocity

    return lambda *args: jax.tree.map(np.asarray, step(*args))


@pytest.fixture(scope="module")
def train(model):
    """Return a function of a batch: the losses of the training step and their gradient."""
    model, params = model
    one = ((0.0, 1.0),)
    options = StepSettings(
        seed=0,
        steps=1,
        streams=("only",),
        max_targets=10,
        form="objectives",
        noise_samples=SAMPLES,
        text=one,
        fast=one,
        flow=one,
        ema_decay=0.9,
        shift=0,
        color=0.0,
        loc_offset=999,
    )

    def loss(params, batch):
        rows, weight_sums = prepare_targets(batch, jax.random.key(7), options)
        parts, _ = microbatch_losses(model, params, rows, weight_sums, options)
        total = total_loss(parts, weight_sums, jnp.float32(0), options)
        return total, {name: parts[name] for name in ("text", "fast", "flow")}

    step = jax.jit(jax.grad(loss, has_aux=True))
    return lambda batch: jax.tree.map(np.asarray, step(params, batch))


def noise(rng):
    return (
        rng.normal(size=(ROWS, SAMPLES, SIZES["P"], SIZES["A"])).astype(np.float32),
        rng.uniform(0.1, 1, (ROWS, SAMPLES)).astype(np.float32),
    )


def several_chunks(rng, count):
    """Return random rows without text that have `count` chunks each."""
    batch = random_rows(rng, ROWS)
    shape = (ROWS, count, *batch["actions"].shape[2:])
    return batch | {
        "action_segment": np.zeros((ROWS, count), np.int32),
        "actions": rng.normal(size=shape).astype(np.float32),
        "action_mask": np.zeros(shape, bool),
        "action_weight": np.ones((ROWS, count), np.float32),
    }


def same_observation(batch):
    """Give all rows the observation of row 0."""
    for name in ("images", "image_mask", "state", "actions", "action_mask"):
        batch[name] = batch[name][:1].repeat(ROWS, axis=0)


def assert_close(a, b):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(
            x, y, rtol=1e-5, atol=1e-5 * max(1, np.abs(x).max())
        ),
        a,
        b,
    )


@few
@given(
    lengths=lengths,
    order=st.permutations(range(3)),
    acting=st.integers(0, 3),
    masked=st.booleans(),
    gaps=st.lists(st.integers(0, 1), min_size=6, max_size=6),
    seed=st.integers(0, 99),
)
def test_packed_row_equals_separate_rows(run, lengths, order, acting, masked, gaps, seed):
    """Row 0 packs three segments, of which one (or none, at 3) drives the expert.

    Rows 1 to 3 hold one segment each.
    """
    rng = np.random.default_rng(seed)
    batch = random_rows(rng, ROWS)
    x_t, time = noise(rng)
    batch["tokens"][:] = rng.integers(4, 64, batch["tokens"].shape)  # also where there is padding
    batch["image_mask"][:, 1] = not masked
    batch["action_mask"][:, :, rng.integers(1, 5) :] = False
    same_observation(batch)
    x_t = x_t[:1].repeat(ROWS, 0)
    time = time[:1].repeat(ROWS, 0)
    texts = []
    for prompt_length, target_length in lengths:
        prompt = rng.integers(4, 64, prompt_length).tolist()
        texts.append([prompt, rng.integers(4, 64, target_length).tolist()])
    packed = {}
    at = 0
    for number, text in enumerate(order, start=1):
        packed[text] = write_segment(batch, 0, at + gaps[number - 1], number, *texts[text])
        at = packed[text].stop
        if text == acting:
            batch["action_segment"][[0, text + 1], 0] = number, 1
    alone = {
        text: write_segment(batch, text + 1, gaps[text + 3], 1, *texts[text]) for text in range(3)
    }
    # Only one other row has the action of the packed row.
    batch["action_mask"][[row for row in range(ROWS) if row not in (0, acting + 1)]] = False
    batch["action_mask"][0] &= acting < 3
    value, grads, logits, velocity = run(batch, x_t, time, np.float32([1, 0, 0, 0]))
    values, many, _, _ = run(batch, x_t, time, np.float32([0, 1, 1, 1]))
    for text in range(3):
        # Nothing precedes the first token of a segment, so nothing predicts it.
        assert_close(logits[0, packed[text]][1:], logits[text + 1, alone[text]][1:])
    if acting < 3:
        assert_close(velocity[0], velocity[acting + 1])
    assert_close(value, values)
    assert_close(grads, many)


@few
@given(
    steps=st.integers(0, 4),
    widths=st.integers(1, 5),
    junk=st.sampled_from(JUNK),
    seed=st.integers(0, 99),
    token=st.sampled_from((5, 63, 64, 2**31 - 1, -(2**31))),
)
def test_masked_values_change_nothing(train, steps, widths, junk, token, seed):
    """Change pixels of an absent camera, padding tokens, padded dimensions and steps."""
    rng = np.random.default_rng(seed)
    batch = random_rows(rng, ROWS)
    batch["image_mask"][:, rng.integers(2)] = False
    for row in range(ROWS - 1):  # the last has no text at all
        write_segment(batch, row, 0, 1, *TEXTS[0])
        write_segment(batch, row, 10, 2, *TEXTS[1])
    batch["action_segment"][:2] = 1
    batch["action_mask"][2:] = False
    batch["action_mask"][0, :, steps:] = False
    batch["action_mask"][..., widths:] = False
    other = {name: value.copy() for name, value in batch.items()}
    absent = ~batch["image_mask"]
    padding = batch["segment"] == 0
    other["images"][absent] = rng.integers(0, 256, other["images"][absent].shape)
    other["tokens"][padding] = token
    other["weight"][~batch["target"]] = junk
    other["actions"][~batch["action_mask"]] = junk
    grads, parts = train(batch)
    others, actual = train(other)
    assert all(np.isfinite(value) and value > 0 for value in parts.values())
    assert_close(parts, actual)
    assert_close(grads, others)


@few
@given(cut=st.integers(1, 4), seed=st.integers(0, 99))
def test_steps_past_the_end_are_not_read(run, cut, seed):
    """The velocities before the end do not depend on the noisy actions after it."""
    rng = np.random.default_rng(seed)
    batch = random_rows(rng, ROWS)
    x_t, time = noise(rng)
    for row in range(ROWS):
        write_segment(batch, row, 0, 1, *TEXTS[0])
    batch["action_segment"][:] = 1
    batch["action_mask"][:, :, cut:] = False
    ones = np.ones(ROWS, np.float32)
    other = x_t.copy()
    other[:, :, cut:] = 100 * rng.normal(size=other[:, :, cut:].shape)
    value, grads, _, velocity = run(batch, x_t, time, ones)
    values, others, _, actual = run(batch, other, time, ones)
    assert_close((value, grads, velocity[:, :, :cut]), (values, others, actual[:, :, :cut]))
    batch["action_mask"][:] = True
    if cut < SIZES["P"]:  # where the steps exist, they matter
        assert (
            np.abs(run(batch, x_t, time, ones)[3] - run(batch, other, time, ones)[3])[
                :, :, :cut
            ].max()
            > 1e-3
        )


@few
@given(steps=st.lists(st.integers(1, 4), min_size=2, max_size=2), seed=st.integers(0, 99))
def test_action_segments_in_one_row_equal_separate_rows(run, steps, seed):
    """Row 0 has two action segments, rows 1 and 2 have one of them each and a missing chunk."""
    rng = np.random.default_rng(seed)
    batch = several_chunks(rng, 2)
    x_t, time = noise(rng)
    at = 0
    for chunk in range(2):
        row = chunk + 1
        at = write_segment(batch, 0, at, chunk + 1, *TEXTS[chunk]).stop
        write_segment(batch, row, 0, 1, *TEXTS[chunk])
        batch["action_segment"][0, chunk] = chunk + 1
        batch["action_segment"][row, 0] = 1
        batch["action_mask"][0, chunk, : steps[chunk]] = True
        batch["action_mask"][row, 0, : steps[chunk]] = True
        x_t[row, 0] = x_t[0, chunk]
        time[row, 0] = time[0, chunk]
    for name in ("images", "image_mask", "state"):
        batch[name] = batch[name][:1].repeat(ROWS, axis=0)
    value, grads, _, velocity = run(batch, x_t, time, np.float32([1, 0, 0, 0]))
    values, many, _, others = run(batch, x_t, time, np.float32([0, 1, 1, 0]))
    assert_close((value, grads), (values, many))
    for chunk, length in enumerate(steps):
        expected = others[chunk + 1, 0, :length]
        assert_close(velocity[0, chunk, :length], expected)
    assert np.abs(velocity[0, 0] - velocity[0, 1]).max() > 1e-3


def test_fast_tokens_of_all_action_segments_count(train):
    """FAST tokens of every action segment count as such; a chunk that is missing counts nowhere."""
    rng = np.random.default_rng(0)
    batch = several_chunks(rng, 2)
    for row in range(2):
        at = write_segment(batch, row, 0, 1, *TEXTS[0]).stop
        write_segment(batch, row, at, 2, *TEXTS[0])
    batch["action_segment"][:2] = [1, 2]
    batch["action_mask"][:2] = True
    _, parts = train(batch)
    assert parts["flow"] > 0 and parts["text"] == 0  # all answers are those of action segments
    same_targets = {name: value.copy() for name, value in batch.items()}
    same_targets["action_segment"][:2] = [1, 0]
    same_targets["action_mask"][:2, 1] = False
    _, alone = train(same_targets)
    np.testing.assert_allclose(parts["fast"], alone["fast"], rtol=1e-6)
    np.testing.assert_allclose(alone["text"], alone["fast"], rtol=1e-6)  # the same tokens


def test_gradients_of_noise_samples_in_one_row_equal_separate_rows(run):
    """Row 0 has two noise samples; rows 1 and 2 have one of them each, twice.

    test_expert.py compares the values.
    """
    rng = np.random.default_rng(0)
    batch = random_rows(rng, ROWS)
    x_t, time = noise(rng)
    for row in range(ROWS):
        write_segment(batch, row, 0, 1, TEXTS[0][0], [])
    batch["action_segment"][:] = 1
    same_observation(batch)
    for draw in range(SAMPLES):
        x_t[draw + 1], time[draw + 1] = x_t[0, draw], time[0, draw]
    value, grads, _, velocity = run(batch, x_t, time, np.float32([1, 0, 0, 0]))
    values, many, _, others = run(batch, x_t, time, np.float32([0, 0.5, 0.5, 0]))
    assert_close((value, grads, velocity[0]), (values, many, others[[1, 2], 0]))


def test_padded_dimensions_equal_a_narrow_model():
    """A robot with 2 of 3 state dimensions and 3 of 5 action dimensions, values and gradients."""
    wide = make_model()
    narrow = make_model(state_dim=2, action_dim=3)
    params = random_params(wide)
    rng = np.random.default_rng(0)
    batch = random_rows(rng, ROWS)
    x_t, time = noise(rng)
    for row in range(ROWS):
        write_segment(batch, row, 0, 1, *TEXTS[0])
    batch["action_segment"][:] = 1
    batch["state"][:, 2:] = 0
    batch["action_mask"][..., 3:] = False
    x_t[..., 3:] = 0
    less = batch | {
        "state": batch["state"][:, :2],
        "actions": batch["actions"][..., :3],
        "action_mask": batch["action_mask"][..., :3],
    }

    def loss(params, model, batch, x_t):
        velocity = model.apply({"params": params}, batch, None, x_t, time)[1]
        return jnp.where(batch["action_mask"], velocity**2, 0).sum()

    step = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    value, grads = step(params, wide, batch, x_t)
    assert_close(step(narrowed(params), narrow, less, x_t[..., :3]), (value, narrowed(grads)))
    assert jax.tree.all(jax.tree.map(lambda x: (x == 0).all(), rest_of(grads)))


def _ends(params, state, action):
    """Slice the parameters along the axes of state and actions."""
    return {
        "action_in_proj": {"kernel": params["action_in_proj"]["kernel"][action]},
        "action_out_proj": {
            "kernel": params["action_out_proj"]["kernel"][:, action],
            "bias": params["action_out_proj"]["bias"][action],
        },
        "state_proj": {"kernel": params["state_proj"]["kernel"][state]},
    }


def narrowed(params):
    """Return the parameters of a model with 2 state and 3 action dimensions."""
    return {
        name: {**value, **_ends(params, slice(2), slice(3)).get(name, {})}
        for name, value in params.items()
    }


def rest_of(params):
    """Return the parameters that `narrowed` leaves out."""
    return _ends(params, slice(2, None), slice(3, None))


def test_segments_and_noise_samples_read_their_inputs(run):
    """Images, prompts, earlier targets, state and time matter; later tokens do not."""
    rng = np.random.default_rng(0)
    batch = random_rows(rng, ROWS)
    x_t, time = noise(rng)
    same_observation(batch)
    x_t = x_t[:1].repeat(ROWS, 0)
    time = time[:1].repeat(ROWS, 0)
    for row in range(ROWS):
        write_segment(batch, row, 0, 1, *TEXTS[0])
    batch["action_segment"][:] = 1
    batch["images"][1] ^= 64
    batch["tokens"][2, 2] = 17  # prompt
    batch["tokens"][3, 6] = 17  # the second of three targets
    ones = np.ones(ROWS, np.float32)
    _, _, logits, velocity = run(batch, x_t, time, ones)

    def moved(row, column):
        return np.abs(logits[row, column] - logits[0, column]).max() > 1e-3

    assert moved(1, 5) and moved(2, 5) and not moved(3, 5) and not moved(3, 6) and moved(3, 7)
    assert moved(2, 2)  # a prompt is bidirectional: its second token reads the third
    changed = np.abs(velocity - velocity[:1]).max((1, 2, 3))
    assert (
        changed[1] > 1e-3 and changed[2] > 1e-3 and changed[3] == 0
    )  # the expert never reads targets
    later = run(batch, x_t, time * 0.5, ones)[3]
    assert np.abs(later - velocity).max() > 1e-3
