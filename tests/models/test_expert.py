"""The action expert: what its gradient reaches, its noise draws, and acting and answering from a cache."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from etcvla.models import flow
from etcvla.models.vla import decode_text, sample_actions
from etcvla.rules import path_str
from tests.models.small import CONFIG, SIZES, is_backbone, make_model, random_params, random_rows, write_segment

ROWS, STEPS = 3, 4
PROMPTS = [[2, 11, 12, 3], [2, 20, 21, 22, 23, 24, 3], [2, 3]]


def acting_rows(rng, *, lessons):
    """Rows with an action prompt of another length each; `lessons` adds FAST targets and a second segment."""
    batch = random_rows(rng, ROWS)
    batch["image_mask"][1, 0] = False
    for row, prompt in enumerate(PROMPTS):
        at = write_segment(batch, row, 0, 1, prompt, [50, 51, 1] if lessons else []).stop
        if lessons:
            write_segment(batch, row, at, 2, [2, 30, 31, 3], [40, 1])
    batch["action_segment"][:] = 1
    return batch


def noise_and_time(rng, draws):
    return (rng.normal(size=(ROWS, draws, SIZES["P"], SIZES["A"])).astype(np.float32),
            rng.uniform(0.1, 1, (ROWS, draws)).astype(np.float32))


@pytest.mark.parametrize("insulate", [True, False])
def test_insulation_stops_the_flows_gradient_at_the_backbone(insulate):
    model, rng = make_model(insulate=insulate), np.random.default_rng(0)
    batch, (x_t, time) = acting_rows(rng, lessons=True), noise_and_time(rng, 1)

    def loss(params):
        return jnp.square(model.apply({"params": params}, batch, None, x_t, time)[1]).sum()

    grads = jax.tree_util.tree_flatten_with_path(jax.jit(jax.grad(loss))(random_params(model)))[0]
    largest = {path_str(path): float(np.abs(grad).max()) for path, grad in grads}
    unused = {"llm/final_norm/scale"}  # norms the language model's own output, which the expert does not read
    for name, value in largest.items():
        if is_backbone(name) and insulate or name in unused:
            assert value == 0, name
        elif "key/bias" not in name:  # adds the same to all of a softmax's logits
            assert value > 1e-4, name


def test_how_layers_are_run_changes_no_gradient():
    """Loops and rematerialisation, which only full sizes use, against layers written out."""
    rng = np.random.default_rng(0)
    batch, (x_t, time) = acting_rows(rng, lessons=True), noise_and_time(rng, 1)

    def grads(**how):
        model = make_model(**how)

        def loss(params):
            logits, velocity = model.apply({"params": params}, batch, jnp.full((ROWS, 1), 3), x_t, time)
            return jnp.square(velocity).sum() + jnp.square(logits).sum()

        return jax.jit(jax.grad(loss))(random_params(model))

    for a, b in zip(*map(jax.tree.leaves, (grads(), grads(remat="full", unroll=1))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * max(1, np.abs(a).max()))


def test_half_precision_is_near():
    rng = np.random.default_rng(0)
    batch, (x_t, time) = acting_rows(rng, lessons=True), noise_and_time(rng, 1)
    columns = jnp.full((ROWS, 1), 3)
    found = {}
    for dtype in ("float32", "bfloat16"):
        model = make_model(dtype=dtype)
        run = jax.jit(lambda params, model=model: model.apply({"params": params}, batch, columns, x_t, time))
        found[dtype] = run(random_params(model))
    for exact, near in zip(found["float32"], found["bfloat16"], strict=True):
        assert near.dtype == jnp.float32  # logits and velocities leave in full precision
        assert 0 < np.abs(near - exact).max() < 0.05 * np.abs(exact).max()


@pytest.fixture(scope="module", params=[("token", True), ("text", True), ("token", False)],
                ids=["token-adaptive", "text-adaptive", "token-plain"])
def expert(request):
    """(model, params, jitted velocity of a full pass)."""
    state, adaptive = request.param
    model = make_model(state=state, expert=dataclasses.replace(CONFIG.expert, adaptive=adaptive))
    params = random_params(model)
    return model, params, jax.jit(lambda batch, x_t, time: model.apply({"params": params}, batch, None, x_t, time)[1])


def test_noise_draws_in_a_row_equal_rows_of_their_own(expert):
    _, _, velocity = expert
    rng = np.random.default_rng(1)
    batch, (x_t, time) = acting_rows(rng, lessons=True), noise_and_time(rng, 3)
    together = velocity(batch, x_t, time)
    for draw in range(3):
        alone = velocity(batch, x_t[:, draw:draw + 1], time[:, draw:draw + 1])
        np.testing.assert_allclose(together[:, draw], alone[:, 0], atol=1e-5)


def test_actions_from_a_cache_equal_full_passes(expert):
    """Euler steps of the training pass, whose rows hold FAST targets and a question that the expert must not see."""
    model, params, velocity = expert
    rng = np.random.default_rng(2)
    taught = acting_rows(rng, lessons=True)
    asked = taught | {name: value for name, value in acting_rows(rng, lessons=False).items()
                      if name in ("tokens", "segment", "target", "weight")}
    x = noise = noise_and_time(rng, 1)[0]
    for step in range(STEPS):
        time = np.full((ROWS, 1), 1 - step / STEPS, np.float32)
        x = x - velocity(taught, x, time) / STEPS
    acted = jax.jit(lambda batch, noise: sample_actions(model, params, batch, noise, STEPS))(asked, noise[:, 0])
    np.testing.assert_allclose(acted, x[:, 0], atol=1e-5)
    assert np.abs(acted - noise[:, 0]).max() > 0.1


@pytest.fixture(scope="module")
def writer():
    model = make_model()
    params = random_params(model, scale=0.5)  # much smaller, and the last token's own embedding wins every time
    decode = jax.jit(lambda batch, eos, key, temperature: decode_text(
        model, params, batch, max_new=6, eos=eos, key=key, temperature=temperature), static_argnums=3)
    return model, params, decode


def test_greedy_text_from_a_cache_equals_recomputation(writer):
    model, params, decode = writer
    batch = acting_rows(np.random.default_rng(3), lessons=False)
    written = np.asarray(decode(batch, -1, None, 0.0))
    full = {name: value.copy() for name, value in batch.items()}
    columns = np.zeros((ROWS, 6), int)
    for row, prompt in enumerate(PROMPTS):
        write_segment(full, row, 0, 1, prompt, written[row].tolist())
        columns[row] = len(prompt) + np.arange(6)
    logits, _ = jax.jit(lambda batch: model.apply({"params": params}, batch, columns, None, None))(full)
    np.testing.assert_array_equal(jnp.argmax(logits, -1), written)
    assert len({tuple(row) for row in written.tolist()}) == ROWS  # rows do read their own prompts and images


def test_text_ends_with_eos(writer):
    _, _, decode = writer
    batch = acting_rows(np.random.default_rng(3), lessons=False)
    free = np.asarray(decode(batch, -1, None, 0.0))
    eos = int(free[0, 2])
    ended = np.asarray(decode(batch, eos, None, 0.0))
    for row in range(ROWS):
        ends = np.flatnonzero(free[row] == eos)
        stop = ends[0] + 1 if len(ends) else 6
        np.testing.assert_array_equal(ended[row], np.where(np.arange(6) < stop, free[row], 0))


def test_sampled_text_is_a_function_of_its_key(writer):
    _, _, decode = writer
    batch = acting_rows(np.random.default_rng(3), lessons=False)
    first, again, other = (np.asarray(decode(batch, -1, jax.random.key(seed), 1.0)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_flow_time_and_path():
    time = np.asarray(flow.sample_time(jax.random.key(0), (20_000,)))
    assert time.min() >= 0.001 and time.max() <= 1
    assert time.mean() == pytest.approx(0.999 * 0.6 + 0.001, abs=0.01)  # Beta(1.5, 1) has mean 0.6
    actions, noise = np.ones((1, 2, 3), np.float32), np.full((1, 1, 2, 3), 3, np.float32)
    x_t, velocity = flow.interpolate(actions, noise, np.float32([[0.25]]))
    assert (np.asarray(x_t) == 1.5).all() and (np.asarray(velocity) == 2).all()
    # The true velocity of a straight path leads from noise to actions in any number of steps.
    ends = flow.integrate(lambda x, _: jnp.full_like(x, 2), jnp.asarray(noise[:, 0]), 7)
    np.testing.assert_allclose(ends, actions, atol=1e-6)
