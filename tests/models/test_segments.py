"""A packed row teaches what its segments teach apart; what is masked teaches nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.small import SIZES, make_model, random_params, random_rows, write_segment

ROWS, DRAWS = 4, 2
TEXTS = [([2, 11, 12, 13, 3], [40, 41, 1]), ([2, 20, 3], [50, 51, 52, 1]), ([2, 30, 31, 32, 33, 3], [60, 1])]
few = settings(max_examples=12, deadline=None)


@pytest.fixture(scope="module", params=["token", "text"])
def run(request):
    """(batch, x_t, time, row weights) -> gradient of the weighted rows' loss, logits [B, L, V], velocities."""
    model = make_model(state=request.param)
    params = random_params(model)

    def loss(params, batch, x_t, time, row_weight):
        columns = jnp.broadcast_to(jnp.arange(SIZES["L"]), (ROWS, SIZES["L"]))
        logits, velocity = model.apply({"params": params}, batch, columns, x_t, time)
        text = optax.softmax_cross_entropy_with_integer_labels(logits, batch["tokens"]) * batch["weight"]
        flow = jnp.where(batch["action_mask"][:, None], velocity**2, 0)
        return (row_weight * (text.sum(1) + flow.sum((1, 2, 3)))).sum(), (logits, velocity)

    step = jax.jit(jax.grad(loss, has_aux=True))
    return lambda *args: jax.tree.map(np.asarray, step(params, *args))


def noise(rng):
    return (rng.normal(size=(ROWS, DRAWS, SIZES["P"], SIZES["A"])).astype(np.float32),
            rng.uniform(0.1, 1, (ROWS, DRAWS)).astype(np.float32))


def same_look(batch):
    """All rows see what row 0 sees."""
    for name in ("images", "image_mask", "state", "actions", "action_mask"):
        batch[name] = batch[name][:1].repeat(ROWS, axis=0)


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * max(1, np.abs(x).max())), a, b)


@few
@given(order=st.permutations(range(3)), gaps=st.lists(st.integers(0, 2), min_size=6, max_size=6),
       masked=st.booleans(), seed=st.integers(0, 99))
def test_a_packed_row_equals_its_segments_apart(run, order, gaps, masked, seed):
    """Row 0 packs three segments, the first of which drives the expert; rows 1 to 3 hold one each."""
    rng = np.random.default_rng(seed)
    batch, (x_t, time) = random_rows(rng, ROWS), noise(rng)
    batch["image_mask"][:, 1] = not masked
    same_look(batch)
    x_t, time = x_t[:1].repeat(ROWS, 0), time[:1].repeat(ROWS, 0)
    packed, at = {}, 0
    for number, text in enumerate(order, start=1):
        packed[text] = write_segment(batch, 0, at + gaps[number - 1], number, *TEXTS[text])
        at = packed[text].stop
        if text == 0:
            batch["action_segment"][0] = number
    alone = {text: write_segment(batch, text + 1, gaps[text + 3], 1, *TEXTS[text]) for text in range(3)}
    batch["action_segment"][1] = 1
    batch["action_mask"][2:] = False  # only row 1 stands for the packed row's action
    one, (logits, velocity) = run(batch, x_t, time, np.float32([1, 0, 0, 0]))
    many, _ = run(batch, x_t, time, np.float32([0, 1, 1, 1]))
    for text in range(3):
        # A segment's first token has nothing before it, so nothing predicts it.
        assert_close(logits[0, packed[text]][1:], logits[text + 1, alone[text]][1:])
    assert_close(velocity[0], velocity[1])
    assert_close(one, many)


@few
@given(seed=st.integers(0, 99))
def test_what_is_masked_changes_nothing(run, seed):
    """An absent camera's pixels and padding tokens, in values and gradients."""
    rng = np.random.default_rng(seed)
    batch, (x_t, time) = random_rows(rng, ROWS), noise(rng)
    batch["image_mask"][:, rng.integers(2)] = False
    for row in range(ROWS):
        write_segment(batch, row, 0, 1, *TEXTS[0])
        write_segment(batch, row, 10, 2, *TEXTS[1])
    batch["action_segment"][:2] = 1
    ones = np.ones(ROWS, np.float32)
    expected = run(batch, x_t, time, ones)
    other = {name: value.copy() for name, value in batch.items()}
    absent, padding = ~batch["image_mask"], batch["segment"] == 0
    other["images"][absent] = rng.integers(0, 256, other["images"][absent].shape)
    other["tokens"][padding] = rng.integers(0, 64, padding.sum())
    grads, (logits, velocity) = run(other, x_t, time, ones)
    assert_close(expected[0], grads)
    text = batch["segment"] > 0
    text[:, [0, 10]] = False
    assert_close(expected[1][0][text], logits[text])
    assert_close(expected[1][1], velocity)


def test_segments_and_draws_do_see_what_they_should(run):
    """The converse: an image, a prompt, an earlier target, the state and time matter, and nothing sees ahead."""
    rng = np.random.default_rng(0)
    batch, (x_t, time) = random_rows(rng, ROWS), noise(rng)
    same_look(batch)
    x_t, time = x_t[:1].repeat(ROWS, 0), time[:1].repeat(ROWS, 0)
    for row in range(ROWS):
        write_segment(batch, row, 0, 1, *TEXTS[0])
    batch["action_segment"][:] = 1
    batch["images"][1] ^= 64
    batch["tokens"][2, 2] = 17  # prompt
    batch["tokens"][3, 6] = 17  # the second of three targets
    ones = np.ones(ROWS, np.float32)
    _, (logits, velocity) = run(batch, x_t, time, ones)

    def moved(row, column):
        return np.abs(logits[row, column] - logits[0, column]).max() > 1e-3

    assert moved(1, 5) and moved(2, 5) and not moved(3, 5) and not moved(3, 6) and moved(3, 7)
    assert moved(2, 2)  # a prompt is seen both ways: its second token reads the third
    changed = np.abs(velocity - velocity[:1]).max((1, 2, 3))
    assert changed[1] > 1e-3 and changed[2] > 1e-3 and changed[3] == 0  # the expert never sees targets
    _, (_, later) = run(batch, x_t, time * 0.5, ones)
    assert np.abs(later - velocity).max() > 1e-3
