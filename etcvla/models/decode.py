"""Acting and answering: the prefix is run once, its keys and values are kept, and what follows reads them.

`decode_text` and `sample_actions` take a batch and do all of it. Where one look serves several prompts (a subtask and
then an action, or many questions), `cache_images` runs the images once and both take what it returns.

Axes as in `etcvla.models.ops`; the batch is `etcvla.batch`'s.
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from etcvla.models import flow
from etcvla.models.gemma import KVCache
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
    """Images that were run once, for any number of prompts.

    With `image_attends_prompt` the language model's keys of an image depend on the prompt: then only the tower's work
    is kept (`tokens`), and the language model runs over the images again with every prompt. Else `cache` has it all.
    """

    image_token_mask: Bool[Array, "b i"]  # image tokens of cameras that are present
    tokens: Float[Array, "b i d"]  # what the tower makes of the images
    cache: KVCache | None  # keys and values of the image tokens; what follows them is overwritten

    def repeat(self, times: int) -> ImageCache:
        """Every row `times` times, one after another: for as many prompts about each image_cache."""
        cache = self.cache and tuple(jnp.repeat(x, times, axis=1) for x in self.cache)
        return ImageCache(
            jnp.repeat(self.image_token_mask, times, axis=0),
            jnp.repeat(self.tokens, times, axis=0),
            cache,
        )


def cache_images(
    model: VLA, params: Params, images: Array, image_mask: Bool[Array, "b c"]
) -> ImageCache:
    """Runs uint8[B, C, H, W, 3] through the tower and, where the masks allow it, the language model."""
    image_cache = _glance(model, params, images, image_mask)
    if model.config.image_attends_prompt:
        return image_cache
    rows = len(images)
    no_text = {
        "tokens": jnp.zeros((rows, 0), jnp.int32),
        "segment": jnp.zeros((rows, 0), jnp.int32),
        "target": jnp.zeros((rows, 0), bool),
    }
    _, cache = model.apply(
        {"params": params},
        image_cache.tokens,
        image_cache.image_token_mask,
        no_text,
        method=VLA.prefill,
    )
    return image_cache.replace(cache=cache)


def sample_actions(
    model: VLA,
    params: Params,
    batch: Batch,
    noise: Float[Array, "b p a"],
    num_steps: int,
    *,
    image_cache: ImageCache | None = None,
    guide: flow.Guide | None = None,
) -> Float[Array, "b p a"]:
    """Normalised action chunks: the prefix once, then `num_steps` Euler steps of the expert on its cache.

    Args:
      batch: of its actions only `action_mask` is read, for the widths that there are: the others stay 0. Every step of
        the chunk is taken as present, since acting knows of no episode's end.
      noise: where the integration starts, of the actions' shape.
      image_cache: of the batch's images, which are then not read again.
      guide: the chunks that these go on from, if they must.
    """
    return sample_with_image_cache(
        model, params, batch, noise, num_steps, image_cache=image_cache, guide=guide
    )[0]


def sample_with_image_cache(
    model: VLA,
    params: Params,
    batch: Batch,
    noise: Float[Array, "b p a"],
    num_steps: int,
    *,
    image_cache: ImageCache | None = None,
    guide: flow.Guide | None = None,
) -> tuple[Float[Array, "b p a"], ImageCache]:
    """`sample_actions`, and the image_cache, for the next prompt about the same images.

    The look comes out in the buffers of the one that went in, if the caller donates that.
    """
    expected = (len(batch["tokens"]), model.config.horizon, model.config.action_dim)
    if noise.shape != expected:
        raise ValueError(f"noise is {list(noise.shape)}, expected [B, P, A] = {list(expected)}")
    image_cache = image_cache or _glance(model, params, batch["images"], batch["image_mask"])
    _, cache = _read(model, params, image_cache, batch)
    visible, widths = expert_key_mask(image_cache.image_token_mask, batch), action_dim_mask(batch)

    def velocity(x, time):
        return (
            model.apply({"params": params}, cache, visible, batch["state"], x, time, method=VLA.act)
            * widths
        )

    chunk = flow.integrate(velocity, noise * widths, num_steps, guide)
    return chunk, image_cache if model.config.image_attends_prompt else image_cache.replace(
        cache=cache
    )


def decode_text(
    model: VLA,
    params: Params,
    batch: Batch,
    *,
    max_new: int,
    eos: int,
    temperature: float = 0.0,
    key: jax.Array | None = None,
    allowed: Bool[Array, " v"] | None = None,
    image_cache: ImageCache | None = None,
) -> Int[Array, "b n"]:
    """Continues every row's prompt until each has written `eos`, at most `max_new` tokens; 0 after `eos`.

    Args:
      batch: one segment a row, from column 0 on, prompts only (no targets), prompts of any length.
      temperature: 0 is greedy; else sampling, which needs `key`.
      allowed: the ids that may be written; None for all.
      image_cache: of the batch's images, which are then not read again.
    """
    if max_new < 1:
        raise ValueError(f"max_new is {max_new}, expected at least 1")
    image_cache = image_cache or _glance(model, params, batch["images"], batch["image_mask"])
    hidden, cache = _read(model, params, image_cache, batch)
    last = jnp.take_along_axis(hidden, _last(batch)[..., None], axis=1)

    def pick(hidden, step):
        logits = model.apply({"params": params}, hidden[:, 0], method=VLA.readout)
        logits = logits if allowed is None else jnp.where(allowed, logits, -jnp.inf)
        if temperature == 0.0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return jax.random.categorical(
            jax.random.fold_in(key, step), logits / temperature, axis=-1
        ).astype(jnp.int32)

    extend = functools.partial(model.apply, {"params": params}, method=VLA.extend)
    geometry = _geometry_of_text(model.config, image_cache, batch, max_new)
    return _write(extend, pick, geometry, pick(last, 0), _widen(cache, max_new), max_new, eos)


def _glance(model, params, images, image_mask) -> ImageCache:
    """A look that no language model has run over yet: for one prompt, both are one pass."""
    tokens = model.apply({"params": params}, images, method=VLA.encode_images)
    return ImageCache(expand_image_mask(model.config, image_mask), tokens, None)


def _read(model, params, image_cache, batch) -> tuple[Float[Array, "b l d"], KVCache]:
    """Hidden states of the batch's text, and the cache of images and text."""
    num_images = image_cache.image_token_mask.shape[1]
    if image_cache.cache is None:
        hidden, cache = model.apply(
            {"params": params},
            image_cache.tokens,
            image_cache.image_token_mask,
            batch,
            method=VLA.prefill,
        )
        return hidden[:, num_images:], cache
    positions, mask = jax.tree.map(
        lambda x: x[:, num_images:],
        prefix_positions_and_mask(model.config, image_cache.image_token_mask, batch),
    )
    columns = num_images + batch["tokens"].shape[1]
    cache = image_cache.cache
    if cache[0].shape[2] != columns:
        cache = _widen(tuple(x[:, :, :num_images] for x in cache), columns - num_images)
    return model.apply(
        {"params": params}, batch["tokens"], positions, mask, cache, num_images, method=VLA.extend
    )


def _last(batch) -> Int[Array, "b 1"]:
    """The last column of every row's prompt."""
    return (batch["segment"] > 0).sum(axis=1, keepdims=True) - 1


def _geometry_of_text(config, image_cache, batch, max_new):
    """(first column, n -> (position [B, 1], mask(s) [B, 1, S])) of the tokens that are written behind the prompts."""
    prompt = jnp.concatenate([image_cache.image_token_mask, batch["segment"] > 0], axis=1)
    start, columns = prompt.shape[1], jnp.arange(prompt.shape[1] + max_new)
    prompt = jnp.pad(prompt, ((0, 0), (0, max_new)))
    before, _ = prefix_positions_and_mask(config, image_cache.image_token_mask, batch)
    first = (
        jnp.take_along_axis(before, image_cache.image_token_mask.shape[1] + _last(batch), axis=1)
        + 1
    )
    positions = jnp.concatenate([before, first + jnp.arange(max_new)], axis=1)

    def of(n):
        mask = prompt | ((columns >= start) & (columns <= start + n))
        return first + n, layer_masks(
            config, mask[:, None], first + n, positions, jnp.ones_like(first, bool)
        )

    return start, of


def _write(extend, pick, geometry, first, cache, max_new, eos) -> Int[Array, "b n"]:
    """The loop of `decode_text`: a token enters the cache only to find the next one."""
    start, geometry_of = geometry

    def going(carry):
        step, _, done, _ = carry
        return (step < max_new) & ~done.all()

    def body(carry):
        step, out, done, cache = carry
        before = jax.lax.dynamic_slice_in_dim(out, step - 1, 1, axis=1)
        hidden, cache = extend(before, *geometry_of(step - 1), cache, start + step - 1)
        token = jnp.where(done, 0, pick(hidden, step))
        return step + 1, out.at[:, step].set(token), done | (token == eos), cache

    out = jnp.zeros((len(first), max_new), jnp.int32).at[:, 0].set(first)
    return jax.lax.while_loop(going, body, (1, out, first == eos, cache))[1]


def _widen(cache: KVCache, columns: int) -> KVCache:
    """The cache with so many empty columns behind."""
    return tuple(jnp.pad(x, ((0, 0), (0, 0), (0, columns), (0, 0), (0, 0))) for x in cache)
