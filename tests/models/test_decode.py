"""Tests of decoding: a cache gives the same text and actions as full passes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from etcvla.models import flow
from etcvla.models.decode import (
    ImageCache,
    TextOptions,
    cache_images,
    decode_text,
    sample_actions,
    sample_with_image_cache,
)
from etcvla.models.vla import VLA
from tests.models.small import (
    CONFIG,
    PROMPTS,
    ROWS,
    SIZES,
    acting_rows,
    make_model,
    noise_and_time,
    random_params,
    write_segment,
)

NEW = 6
STEPS = 4
EOS = 1
ACTION = [2, 13, 3]


def prompts_only(batch, prompts):
    """Return the batch with other prompts, one per row."""
    length = batch["tokens"].shape[1]
    batch = batch | {
        name: np.zeros((len(batch["images"]), length), batch[name].dtype)
        for name in ("tokens", "segment", "target", "weight")
    }
    for row, prompt in enumerate(prompts):
        write_segment(batch, row, 0, 1, list(prompt), [])
    return batch


def without_images(batch):
    return {name: value for name, value in batch.items() if not name.startswith("image")}


@functools.partial(jax.jit, static_argnums=0)
def full_pass(model, params, *args):
    """Run the pass of training; compiled once per model."""
    return model.apply({"params": params}, *args)


@functools.partial(jax.jit, static_argnums=0)
def decode(model, params, batch, eos, image_cache=None, allowed=None):
    options = TextOptions(NEW, eos, allowed)
    return decode_text(model, params, batch, options, image_cache)


@functools.partial(jax.jit, static_argnums=0)
def sample(model, params, batch, noise, image_cache=None):
    start = flow.Start(noise)
    chunk, _ = sample_with_image_cache(model, params, batch, start, STEPS, image_cache)
    return chunk


@functools.partial(jax.jit, static_argnums=0)
def make_image_cache(model, params, batch):
    return cache_images(model, params, batch["images"], batch["image_mask"])


def full_logits(model, params, batch, prompts, tokens):
    """Return logits float[B, T, V] of the tokens, by one pass over prompts and targets."""
    full = prompts_only(batch, [])
    for row, (prompt, target) in enumerate(zip(prompts, tokens, strict=True)):
        write_segment(full, row, 0, 1, list(prompt), list(target))
    columns = np.array([[len(prompt)] for prompt in prompts]) + np.arange(len(tokens[0]))
    return full_pass(model, params, full, columns, None, None)[0]


# Text


def make_text_model(**changes):
    """Return a model and parameters. Its layers are a loop, which compiles faster."""
    model = make_model(unroll=1, **changes)
    # With much smaller parameters the most likely token is always the last one.
    return model, random_params(model, scale=0.5)


@pytest.fixture(scope="module", params=[False, True], ids=["apart", "image-attends-prompt"])
def text_model(request):
    return make_text_model(image_attends_prompt=request.param)


@pytest.fixture(scope="module")
def plain():
    return make_text_model()


def question_batch():
    return acting_rows(np.random.default_rng(3), segments=False)


def test_logits_from_a_cache_equal_those_of_one_pass(plain):
    """Run images, then prompts, then one token at a time; compare with a teacher-forced pass."""

    def _logits(module, hidden):
        return module.llm.logits(hidden)

    model, params = plain
    batch = question_batch()
    targets = np.random.default_rng(4).integers(4, 64, (ROWS, NEW))
    expected = full_logits(model, params, batch, PROMPTS, targets)
    run = jax.jit(
        lambda method, *args: model.apply({"params": params}, *args, method=method),
        static_argnums=0,
    )
    image_cache = make_image_cache(model, params, batch)
    num_images = image_cache.image_token_mask.shape[1]
    width = max(map(len, PROMPTS))
    start = num_images + width
    cache = tuple(
        jnp.pad(x, ((0, 0), (0, 0), (0, width + NEW), (0, 0), (0, 0))) for x in image_cache.cache
    )
    prompt = np.concatenate(
        [
            image_cache.image_token_mask,
            batch["segment"][:, :width] > 0,
            np.zeros((ROWS, NEW), bool),
        ],
        axis=1,
    )
    position = image_cache.image_token_mask.sum(1, keepdims=True) + np.arange(width)
    hidden, cache = run(
        VLA.extend,
        batch["tokens"][:, :width],
        position,
        prompt[:, None].repeat(width, 1),
        cache,
        num_images,
    )
    last = np.stack([hidden[row, len(prompt) - 1] for row, prompt in enumerate(PROMPTS)])
    actual = [run(_logits, last)]
    position = prompt.sum(1, keepdims=True)
    for i in range(NEW - 1):
        visible = prompt | (np.arange(start + NEW) >= start) & (np.arange(start + NEW) <= start + i)
        hidden, cache = run(
            VLA.extend, targets[:, i : i + 1], position + i, visible[:, None], cache, start + i
        )
        actual.append(run(_logits, hidden[:, 0]))
    np.testing.assert_allclose(np.stack(actual, 1), expected, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"image_attends_prompt": True},
        {"count_absent_cameras": True},
        {
            "vlm": dataclasses.replace(
                CONFIG.vlm, window=3, post_norms=True, attn_softcap=5.0, final_softcap=9.0
            )
        },
    ],
    ids=["pi0", "image-attends-prompt", "pi0-fast-positions", "gemma-2"],
)
def test_greedy_text_from_a_cache_equals_recomputed_text(changes):
    model, params = make_text_model(**changes)
    tokens = np.asarray(decode(model, params, question_batch(), -1))
    np.testing.assert_array_equal(
        jnp.argmax(full_logits(model, params, question_batch(), PROMPTS, tokens), -1), tokens
    )
    assert (
        len({tuple(row) for row in tokens.tolist()}) == ROWS
    )  # rows read their own prompts and images
    if model.config.vlm.window or model.config.count_absent_cameras:
        np.testing.assert_array_equal(
            decode(
                model,
                params,
                question_batch(),
                -1,
                image_cache=make_image_cache(model, params, question_batch()),
            ),
            tokens,
        )


def test_text_ends_with_eos(plain):
    model, params = plain
    free = np.asarray(decode(model, params, question_batch(), -1))
    for eos in (int(free[0, 2]), int(free[0, 0])):
        ended = np.asarray(decode(model, params, question_batch(), eos))
        for row in range(ROWS):
            ends = np.flatnonzero(free[row] == eos)
            stop = ends[0] + 1 if len(ends) else NEW
            np.testing.assert_array_equal(ended[row], np.where(np.arange(NEW) < stop, free[row], 0))


def test_row_depends_neither_on_other_rows_nor_on_padding(plain):
    model, params = plain
    together = decode(model, params, question_batch(), -1)
    row = 2
    one = {name: value[row : row + 1] for name, value in question_batch().items()}
    one |= {name: one[name][:, : len(PROMPTS[row])] for name in ("tokens", "segment", "target")}
    np.testing.assert_array_equal(decode(model, params, one, -1)[0], together[row])


def test_only_allowed_ids_are_generated(plain):
    model, params = plain
    allowed = np.zeros(CONFIG.vocab_size, bool)
    allowed[50:60] = allowed[EOS] = True
    assert not allowed[np.asarray(decode(model, params, question_batch(), -1))].all()
    tokens = np.asarray(decode(model, params, question_batch(), -1, allowed=allowed))
    logits = np.where(
        allowed, full_logits(model, params, question_batch(), PROMPTS, tokens), -np.inf
    )
    np.testing.assert_array_equal(logits.argmax(-1), tokens)


# Actions


@pytest.fixture(
    scope="module", params=[("text", True), ("token", False)], ids=["text-adaptive", "token-plain"]
)
def expert(request):
    """Return (model, params)."""
    state, adaptive = request.param
    model = make_model(
        unroll=1, state=state, expert=dataclasses.replace(CONFIG.expert, adaptive=adaptive)
    )
    return model, random_params(model)


def euler(model, params, batch, noise):
    """Integrate with one full training pass per velocity."""
    x = noise
    for step in range(STEPS):
        time = np.full((ROWS, 1), 1 - step / STEPS, np.float32)
        x = x - full_pass(model, params, batch, None, x, time)[1] / STEPS
    assert np.abs(x - noise).max() > 0.1
    return x[:, 0]


def test_actions_from_a_cache_equal_full_passes(expert):
    """The rows of the full pass also hold FAST targets and a question, which the expert must
    not read.
    """
    model, params = expert
    noise, _ = noise_and_time(np.random.default_rng(1), 1)
    packed, plain = (
        acting_rows(np.random.default_rng(2), segments=segments) for segments in (True, False)
    )
    np.testing.assert_allclose(
        sample(model, params, plain, noise[:, 0]), euler(model, params, packed, noise), atol=1e-5
    )


def test_wrong_shape_of_noise_is_an_error():
    model = make_model()
    with pytest.raises(
        ValueError, match=r"noise is \(3, 4, 2\), expected \(B, P, A\) = \(3, 4, 5\)"
    ):
        sample_actions(model, {}, question_batch(), np.zeros((ROWS, SIZES["P"], 2)), STEPS)


# One image cache, several prompts


def test_subtask_and_action_share_an_image_cache(text_model):
    """Images are encoded once; the numbers equal those of full passes."""
    model, params = text_model
    batch = question_batch()
    noise, _ = noise_and_time(np.random.default_rng(5), 1)
    image_cache = make_image_cache(model, params, batch)
    assert (image_cache.cache is None) == model.config.image_attends_prompt
    subtask = decode(model, params, without_images(batch), -1, image_cache=image_cache)
    np.testing.assert_array_equal(subtask, decode(model, params, batch, -1))
    prompted = prompts_only(batch, [ACTION + row for row in np.asarray(subtask).tolist()])
    np.testing.assert_allclose(
        sample(model, params, without_images(prompted), noise[:, 0], image_cache),
        euler(model, params, prompted, noise),
        atol=1e-5,
    )


def test_several_questions_and_an_action_share_an_image_cache(text_model):
    """Two prompts per row at once, and an action in a row packed with a question and targets."""
    model, params = text_model
    batch = question_batch()
    noise, _ = noise_and_time(np.random.default_rng(5), 1)
    image_cache = make_image_cache(model, params, batch)
    others = [[2, 40, 41, 3], [2, 42, 3], [2, 43, 44, 45, 3]]
    first = decode(model, params, prompts_only(batch, PROMPTS), -1)
    second = decode(model, params, prompts_only(batch, others), -1)
    separate = np.stack([first, second], axis=1)
    twice = {name: value.repeat(2, axis=0) for name, value in batch.items()}
    interleaved = []
    for prompt, other in zip(PROMPTS, others, strict=True):
        interleaved += [prompt, other]
    both = prompts_only(twice, interleaved)
    image_cache_twice = ImageCache(
        jnp.repeat(image_cache.image_token_mask, 2, axis=0),
        jnp.repeat(image_cache.tokens, 2, axis=0),
        jax.tree.map(lambda x: jnp.repeat(x, 2, axis=1), image_cache.cache),
    )
    together = decode(model, params, without_images(both), -1, image_cache=image_cache_twice)
    np.testing.assert_array_equal(together, separate.reshape(2 * ROWS, NEW))
    packed = acting_rows(np.random.default_rng(3), segments=not model.config.image_attends_prompt)
    np.testing.assert_allclose(
        sample(model, params, without_images(packed), noise[:, 0], image_cache),
        sample(model, params, packed, noise[:, 0]),
        atol=1e-5,
    )


def test_returned_image_cache_serves_the_next_prompt(text_model):
    """The image cache after an action, whose text columns are overwritten, acts like a new one."""
    model, params = text_model
    batch = question_batch()
    noise, _ = noise_and_time(np.random.default_rng(5), 1)
    act = jax.jit(
        functools.partial(sample_with_image_cache, model, num_steps=STEPS),
        donate_argnames="image_cache",
    )
    _, image_cache = act(params, batch, flow.Start(noise[:, 0]))
    for prompts in ([[2, 40, 41, 3], [2, 42, 3], [2, 43, 44, 45, 3]], PROMPTS):
        prompted = prompts_only(batch, prompts)
        chunk, image_cache = act(
            params, without_images(prompted), flow.Start(noise[:, 0]), image_cache=image_cache
        )
        np.testing.assert_allclose(chunk, sample(model, params, prompted, noise[:, 0]), atol=1e-5)
