"""Sample actions and decode text from a cached prefix.

The prefix is run once. Its keys and values are kept and serve all later passes.

`decode_text` and `sample_actions` take a batch and do everything. If several prompts refer to the
same images (a subtask and then an action, or many questions), `cache_images` runs the images once
and both functions reuse the result.

Axes as in `etcvla.models.types`; the fields of a batch are described in `etcvla.batch`.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from etcvla.models import flow
from etcvla.models.types import (
    Batch,
    CameraMask,
    Chunks,
    ImageMask,
    ImageTokens,
    KVCache,
    Params,
    TokenIds,
    Tokens,
)
from etcvla.models.vla import (
    VLA,
    action_dim_mask,
    expand_image_mask,
    expert_key_mask,
    layer_masks,
    prefix_positions_and_mask,
)


@flax.struct.dataclass
class ImageCache:
    """Images that have been run once, for any number of prompts.

    With `image_attends_prompt`, the language model's keys of an image depend on the prompt. Then
    only the output of the vision tower is kept, and the language model runs over the images again
    with every prompt.
    """

    image_token_mask: ImageMask  # True for the tokens of present cameras
    tokens: ImageTokens  # output of the vision tower
    # Keys and values of the image tokens, or None. Columns after them may hold text, which the next
    # prompt overwrites.
    cache: KVCache | None


@flax.struct.dataclass
class TextOptions:
    """How `decode_text` chooses tokens. Decoding is greedy."""

    max_new: int = flax.struct.field(pytree_node=False)  # largest number of new tokens
    eos: int = flax.struct.field(pytree_node=False)  # the token id that ends a text
    allowed: Bool[Array, " V"] | None = None  # ids that may be generated; None: all


def cache_images(model: VLA, params: Params, images: Array, image_mask: CameraMask) -> ImageCache:
    """Run images through the vision tower and, unless `image_attends_prompt`, the language model.

    Args:
      model: the model.
      params: its parameters.
      images: uint8[B, C, height, width, 3].
      image_mask: present cameras.
    """
    image_cache = _encode_images(model, params, images, image_mask)
    if model.config.image_attends_prompt:
        return image_cache
    ids = jnp.zeros((len(images), 0), jnp.int32)
    no_text = {"tokens": ids, "segment": ids, "target": ids.astype(bool)}
    _, cache = _run_prompt(model, params, image_cache, no_text)
    return image_cache.replace(cache=cache)


def sample_actions(
    model: VLA, params: Params, batch: Batch, noise: Chunks, num_steps: int
) -> Chunks:
    """Sample normalized action chunks; see `sample_with_image_cache`."""
    chunk, _ = sample_with_image_cache(model, params, batch, flow.Start(noise), num_steps)
    return chunk


def sample_with_image_cache(
    model: VLA,
    params: Params,
    batch: Batch,
    start: flow.Start,
    num_steps: int,
    image_cache: ImageCache | None = None,
) -> tuple[Chunks, ImageCache]:
    """Sample normalized action chunks.

    The prefix is run once, then the expert for `num_steps` Euler steps.

    Args:
      model: the model.
      params: its parameters.
      batch: the rows, with K = 1. Of its actions only `action_mask` is used, for the unpadded
        action dimensions; padded ones stay 0. All steps of the chunk are read, because the end of
        the episode is not known while acting.
      start: noise from which to integrate, and the chunks that the new ones continue.
      num_steps: number of Euler steps.
      image_cache: cache of the batch's images, which are then not read.

    Returns: the chunks, and the image cache for the next prompt about the same images. If the
      caller donates `image_cache`, the new one reuses its buffers.
    """
    expected = (len(batch["tokens"]), model.config.horizon, model.config.action_dim)
    if start.noise.shape != expected:
        raise ValueError(f"noise is {start.noise.shape}, expected (B, P, A) = {expected}")
    if image_cache is None:
        image_cache = _encode_images(model, params, batch["images"], batch["image_mask"])
    _, cache = _run_prompt(model, params, image_cache, batch)
    prefix_mask = expert_key_mask(image_cache.image_token_mask, batch)
    dim_mask = action_dim_mask(batch)[:, 0]

    def _velocity(x_t, time):
        bound = model.bind({"params": params})
        velocity = bound.predict_velocity(cache, prefix_mask, batch["state"], x_t, time)
        return velocity * dim_mask

    chunk = flow.integrate(_velocity, start.noise * dim_mask, num_steps, start.guide)
    if not model.config.image_attends_prompt:
        image_cache = image_cache.replace(cache=cache)
    return chunk, image_cache


def decode_text(
    model: VLA,
    params: Params,
    batch: Batch,
    options: TextOptions,
    image_cache: ImageCache | None = None,
) -> TokenIds:
    """Generate text after every row's prompt until each row has generated `eos`.

    Args:
      model: the model.
      params: its parameters.
      batch: one segment per row, from column 0 on, with a prompt of any length and no targets.
      options: how tokens are chosen, and how many at most.
      image_cache: cache of the batch's images, which are then not read.

    Returns: `max_new` token ids per row; 0 after `eos`.
    """
    if options.max_new < 1:
        raise ValueError(f"max_new is {options.max_new}, expected at least 1")
    if image_cache is None:
        image_cache = _encode_images(model, params, batch["images"], batch["image_mask"])
    hidden, cache = _run_prompt(model, params, image_cache, batch)
    last_hidden = jnp.take_along_axis(hidden, _last_column(batch)[..., None], axis=1)
    run_token = _token_runner(model, params, image_cache, batch, options.max_new)

    def _choose(hidden):
        """Return the most likely token after the hidden state [B, 1, D]."""
        logits = model.bind({"params": params}).llm.logits(hidden[:, 0])
        if options.allowed is not None:
            logits = jnp.where(options.allowed, logits, -jnp.inf)
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def _continue(carry):
        step, _, done, _ = carry
        return (step < options.max_new) & ~done.all()

    def _step(carry):
        # A token is run only if another token follows it.
        step, tokens, done, cache = carry
        previous = jax.lax.dynamic_slice_in_dim(tokens, step - 1, 1, axis=1)
        hidden, cache = run_token(previous, step - 1, cache)
        token = jnp.where(done, 0, _choose(hidden))
        tokens = tokens.at[:, step].set(token)
        return step + 1, tokens, done | (token == options.eos), cache

    first = _choose(last_hidden)
    tokens = jnp.zeros((len(first), options.max_new), jnp.int32).at[:, 0].set(first)
    carry = (1, tokens, first == options.eos, _pad_cache(cache, options.max_new))
    _, tokens, _, _ = jax.lax.while_loop(_continue, _step, carry)
    return tokens


def _encode_images(model: VLA, params: Params, images: Array, image_mask: CameraMask) -> ImageCache:
    """Run the vision tower only.

    If there is just one prompt, the language model runs over the images and the prompt in one pass.
    """
    tokens = model.bind({"params": params}).encode_images(images)
    return ImageCache(expand_image_mask(model.config, image_mask), tokens, None)


def _run_prompt(
    model: VLA, params: Params, image_cache: ImageCache, batch: Batch
) -> tuple[Tokens, KVCache]:
    """Return the hidden states [B, L, D] of the batch's text, and the cache of images and text."""
    bound = model.bind({"params": params})
    image_mask = image_cache.image_token_mask
    num_images = image_mask.shape[1]
    cache = image_cache.cache
    if cache is None:
        hidden, cache = bound.prefill(image_cache.tokens, image_mask, batch)
        return hidden[:, num_images:], cache
    prefix = prefix_positions_and_mask(model.config, image_mask, batch)
    positions, mask = jax.tree.map(lambda x: x[:, num_images:], prefix)
    length = batch["tokens"].shape[1]
    if cache[0].shape[2] != num_images + length:
        images_only = jax.tree.map(lambda x: x[:, :, :num_images], cache)
        cache = _pad_cache(images_only, length)
    return bound.extend(batch["tokens"], positions, mask, cache, num_images)


def _last_column(batch: Batch) -> Int[Array, "B 1"]:
    """Return the last text column of every row's prompt."""
    return (batch["segment"] > 0).sum(axis=1, keepdims=True) - 1


def _token_runner(
    model: VLA, params: Params, image_cache: ImageCache, batch: Batch, max_new: int
) -> Callable:
    """Return a function that runs one generated token.

    Its arguments are the tokens [B, 1], their index among the generated ones, and the cache. It
    returns the hidden states and the cache.
    """
    image_mask = image_cache.image_token_mask
    prompt = jnp.concatenate([image_mask, batch["segment"] > 0], axis=1)
    start = prompt.shape[1]
    columns = jnp.arange(start + max_new)
    prompt = jnp.pad(prompt, ((0, 0), (0, max_new)))
    prefix_positions, _ = prefix_positions_and_mask(model.config, image_mask, batch)
    last_column = image_mask.shape[1] + _last_column(batch)
    first = jnp.take_along_axis(prefix_positions, last_column, axis=1) + 1
    key_positions = jnp.concatenate([prefix_positions, first + jnp.arange(max_new)], axis=1)
    causal = jnp.ones_like(first, bool)

    def _run_token(token, index, cache):
        position = first + index
        is_generated = (columns >= start) & (columns <= start + index)
        mask = (prompt | is_generated)[:, None]
        masks = layer_masks(model.config, mask, position, key_positions, causal)
        bound = model.bind({"params": params})
        return bound.extend(token, position, masks, cache, start + index)

    return _run_token


def _pad_cache(cache: KVCache, columns: int) -> KVCache:
    """Append empty columns to the cache."""
    padding = ((0, 0), (0, 0), (0, columns), (0, 0), (0, 0))
    return jax.tree.map(lambda x: jnp.pad(x, padding), cache)
