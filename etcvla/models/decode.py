"""Sample actions and decode text from a cached prefix.

The prefix is run once. Its keys and values are kept and serve all later passes.

`decode_text` and `sample_actions` take a batch and do everything. If several prompts refer to the
same images (a subtask and then an action, or many questions), `cache_images` runs the images once
and both functions reuse the result.

Axes as in `etcvla.models.ops`; the fields of a batch are described in `etcvla.batch`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from etcvla.models import flow
from etcvla.models.gemma import KVCache, Mask
from etcvla.models.vla import (
    VLA,
    Batch,
    Params,
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

    image_token_mask: Bool[Array, "B I"]  # True for the tokens of present cameras
    tokens: Float[Array, "B I D"]  # output of the vision tower
    # Keys and values of the image tokens, or None. Columns after them may hold text, which the next
    # prompt overwrites.
    cache: KVCache | None

    def repeat(self, times: int) -> ImageCache:
        """Repeat every row `times` times in succession, for as many prompts per row."""
        cache = self.cache
        if cache is not None:
            cache = tuple(jnp.repeat(x, times, axis=1) for x in cache)
        mask = jnp.repeat(self.image_token_mask, times, axis=0)
        return ImageCache(mask, jnp.repeat(self.tokens, times, axis=0), cache)


@flax.struct.dataclass
class TextOptions:
    """How `decode_text` chooses tokens."""

    max_new: int = flax.struct.field(pytree_node=False)  # largest number of new tokens
    eos: int = flax.struct.field(pytree_node=False)  # the token id that ends a text
    # 0: greedy decoding; above 0: sampling, which needs `key`.
    temperature: float = flax.struct.field(pytree_node=False, default=0.0)
    key: jax.Array | None = None
    allowed: Bool[Array, " V"] | None = None  # ids that may be generated; None: all


def cache_images(
    model: VLA, params: Params, images: Array, image_mask: Bool[Array, "B C"]
) -> ImageCache:
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
    batch_size = len(images)
    no_text = {
        "tokens": jnp.zeros((batch_size, 0), jnp.int32),
        "segment": jnp.zeros((batch_size, 0), jnp.int32),
        "target": jnp.zeros((batch_size, 0), bool),
    }
    _, cache = _prefill(model, params, image_cache, no_text)
    return image_cache.replace(cache=cache)


def sample_actions(
    model: VLA, params: Params, batch: Batch, noise: Float[Array, "B P A"], num_steps: int
) -> Float[Array, "B P A"]:
    """Sample normalised action chunks; see `sample_with_image_cache`."""
    chunk, _ = sample_with_image_cache(model, params, batch, noise, num_steps)
    return chunk


def sample_with_image_cache(
    model: VLA,
    params: Params,
    batch: Batch,
    noise: Float[Array, "B P A"],
    num_steps: int,
    *,
    image_cache: ImageCache | None = None,
    guide: flow.Guide | None = None,
) -> tuple[Float[Array, "B P A"], ImageCache]:
    """Sample normalised action chunks.

    The prefix is run once, then the expert for `num_steps` Euler steps.

    Args:
      model: the model.
      params: its parameters.
      batch: the rows. Of its actions only `action_mask` is used, for the unpadded action
        dimensions; padded ones stay 0. All steps of the chunk are read, because the end of the
        episode is not known while acting.
      noise: start of the integration.
      num_steps: number of Euler steps.
      image_cache: cache of the batch's images, which are then not read.
      guide: chunks that the new ones continue, for real-time chunking.

    Returns: the chunks, and the image cache for the next prompt about the same images. If the
      caller donates `image_cache`, the new one reuses its buffers.
    """
    expected = (len(batch["tokens"]), model.config.horizon, model.config.action_dim)
    if noise.shape != expected:
        raise ValueError(f"noise is {list(noise.shape)}, expected [B, P, A] = {list(expected)}")
    if image_cache is None:
        image_cache = _encode_images(model, params, batch["images"], batch["image_mask"])
    _, cache = _run_prompt(model, params, image_cache, batch)
    prefix_mask = expert_key_mask(image_cache.image_token_mask, batch)
    dim_mask = action_dim_mask(batch)

    def _velocity(x_t, time):
        velocity = model.apply(
            {"params": params},
            cache,
            prefix_mask,
            batch["state"],
            x_t,
            time,
            method=VLA.predict_velocity,
        )
        return velocity * dim_mask

    chunk = flow.integrate(_velocity, noise * dim_mask, num_steps, guide)
    if not model.config.image_attends_prompt:
        image_cache = image_cache.replace(cache=cache)
    return chunk, image_cache


def decode_text(
    model: VLA,
    params: Params,
    batch: Batch,
    options: TextOptions,
    image_cache: ImageCache | None = None,
) -> Int[Array, "B T"]:
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

    def _choose(hidden, step):
        """Choose the token of step `step` from the hidden state [B, 1, D] before it."""
        logits = model.apply({"params": params}, hidden[:, 0], method=VLA.readout)
        if options.allowed is not None:
            logits = jnp.where(options.allowed, logits, -jnp.inf)
        if options.temperature == 0.0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        key = jax.random.fold_in(options.key, step)
        token = jax.random.categorical(key, logits / options.temperature, axis=-1)
        return token.astype(jnp.int32)

    start = hidden.shape[1] + image_cache.image_token_mask.shape[1]
    position_and_mask = _generated_position_and_mask(model, image_cache, batch, options.max_new)
    extend = functools.partial(model.apply, {"params": params}, method=VLA.extend)

    def _run_token(token, index, cache):
        """Run generated token number `index` [B, 1]; return its hidden state and the cache."""
        position, mask = position_and_mask(index)
        return extend(token, position, mask, cache, start + index)

    cache = _pad_cache(cache, options.max_new)
    return _generate(_run_token, _choose, _choose(last_hidden, 0), cache, options)


def _generate(
    run_token: Callable,
    choose: Callable,
    first: Int[Array, " B"],
    cache: KVCache,
    options: TextOptions,
) -> Int[Array, "B T"]:
    """Run the loop of `decode_text`. A token is run only if another token follows it."""

    def _continue(carry):
        step, _, done, _ = carry
        return (step < options.max_new) & ~done.all()

    def _step(carry):
        step, tokens, done, cache = carry
        previous = jax.lax.dynamic_slice_in_dim(tokens, step - 1, 1, axis=1)
        hidden, cache = run_token(previous, step - 1, cache)
        token = jnp.where(done, 0, choose(hidden, step))
        tokens = tokens.at[:, step].set(token)
        return step + 1, tokens, done | (token == options.eos), cache

    tokens = jnp.zeros((len(first), options.max_new), jnp.int32).at[:, 0].set(first)
    carry = (1, tokens, first == options.eos, cache)
    return jax.lax.while_loop(_continue, _step, carry)[1]


def _encode_images(
    model: VLA, params: Params, images: Array, image_mask: Bool[Array, "B C"]
) -> ImageCache:
    """Run the vision tower only.

    If there is just one prompt, the language model runs over the images and the prompt in one pass.
    """
    tokens = model.apply({"params": params}, images, method=VLA.encode_images)
    return ImageCache(expand_image_mask(model.config, image_mask), tokens, None)


def _prefill(
    model: VLA, params: Params, image_cache: ImageCache, batch: Batch
) -> tuple[Float[Array, "B I+L D"], KVCache]:
    """Run the language model over images and text."""
    return model.apply(
        {"params": params},
        image_cache.tokens,
        image_cache.image_token_mask,
        batch,
        method=VLA.prefill,
    )


def _run_prompt(
    model: VLA, params: Params, image_cache: ImageCache, batch: Batch
) -> tuple[Float[Array, "B L D"], KVCache]:
    """Return the hidden states of the batch's text, and the cache of images and text."""
    num_images = image_cache.image_token_mask.shape[1]
    if image_cache.cache is None:
        hidden, cache = _prefill(model, params, image_cache, batch)
        return hidden[:, num_images:], cache
    prefix = prefix_positions_and_mask(model.config, image_cache.image_token_mask, batch)
    positions, mask = jax.tree.map(lambda x: x[:, num_images:], prefix)
    length = batch["tokens"].shape[1]
    cache = image_cache.cache
    if cache[0].shape[2] != num_images + length:
        cache = _pad_cache(tuple(x[:, :, :num_images] for x in cache), length)
    return model.apply(
        {"params": params}, batch["tokens"], positions, mask, cache, num_images, method=VLA.extend
    )


def _last_column(batch: Batch) -> Int[Array, "B 1"]:
    """Return the last text column of every row's prompt."""
    return (batch["segment"] > 0).sum(axis=1, keepdims=True) - 1


def _generated_position_and_mask(
    model: VLA, image_cache: ImageCache, batch: Batch, max_new: int
) -> Callable[[Int[Array, ""]], tuple[Int[Array, "B 1"], Mask]]:
    """Return a function from the index of a generated token to its position and mask(s)."""
    image_token_mask = image_cache.image_token_mask
    prompt = jnp.concatenate([image_token_mask, batch["segment"] > 0], axis=1)
    start = prompt.shape[1]
    columns = jnp.arange(start + max_new)
    prompt = jnp.pad(prompt, ((0, 0), (0, max_new)))
    prefix_positions, _ = prefix_positions_and_mask(model.config, image_token_mask, batch)
    last_column = image_token_mask.shape[1] + _last_column(batch)
    first = jnp.take_along_axis(prefix_positions, last_column, axis=1) + 1
    key_positions = jnp.concatenate([prefix_positions, first + jnp.arange(max_new)], axis=1)

    def _position_and_mask(index):
        position = first + index
        mask = prompt | ((columns >= start) & (columns <= start + index))
        causal = jnp.ones_like(first, bool)
        masks = layer_masks(model.config, mask[:, None], position, key_positions, causal)
        return position, masks

    return _position_and_mask


def _pad_cache(cache: KVCache, columns: int) -> KVCache:
    """Append empty columns to the cache."""
    return tuple(jnp.pad(x, ((0, 0), (0, 0), (0, columns), (0, 0), (0, 0))) for x in cache)
