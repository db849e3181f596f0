"""Compiled model calls of a policy: image cache, flow chunks, FAST chunks and text.

Axes: B batch, L text length, P action horizon, A action width, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from etcvla.data import prompts
from etcvla.data.assets import Assets
from etcvla.models import flow
from etcvla.models.decode import (
    ImageCache,
    TextOptions,
    cache_images,
    decode_text,
    sample_with_image_cache,
)
from etcvla.models.vla import VLA, Params, VLAConfig
from etcvla.policy.observations import Batch
from etcvla.policy.options import PolicyOptions

_IMAGE_FIELDS = ("images", "image_mask")


class ModelCalls:
    """The model of a checkpoint, compiled for inference.

    Every method takes the parameters, so that the trainer can evaluate its current ones.

    Args:
      mesh: devices of the parameters, if there are several; every process gets all results.
    """

    def __init__(
        self, config: VLAConfig, assets: Assets, options: PolicyOptions, mesh: Mesh | None = None
    ):
        self._config = config
        self._assets = assets
        self._options = options
        # The images of the last call (fields of its batch) and their cache, if they are kept.
        self._kept_images: Batch = {}
        self._kept_cache: ImageCache | None = None
        model = VLA(config)
        replicated = NamedSharding(mesh, PartitionSpec()) if mesh else None
        self._cache_images = jax.jit(functools.partial(cache_images, model))
        self._sample_actions = jax.jit(
            functools.partial(sample_with_image_cache, model, num_steps=options.num_steps),
            out_shardings=(replicated, None),
            # The new image cache overwrites the buffers of the old one.
            donate_argnames="image_cache" if options.keep_image_cache else None,
        )
        self._decode_text = jax.jit(functools.partial(decode_text, model), out_shardings=replicated)

    def cache_images(self, params: Params, batch: Batch) -> ImageCache:
        """Encode the images of a batch for several prompts."""
        return self._cache_images(params, batch["images"], batch["image_mask"])

    def take_kept_cache(self, batch: Batch) -> ImageCache | None:
        """Return the kept cache of the last call if it had the same images, and forget it.

        It is forgotten because the next call of `flow_chunks` overwrites its buffers.
        """
        images = self._kept_images
        cache = self._kept_cache
        self._kept_images = {}
        self._kept_cache = None
        same = all(np.array_equal(images.get(name), batch[name]) for name in _IMAGE_FIELDS)
        return cache if same else None

    def flow_chunks(
        self,
        params: Params,
        batch: Batch,
        seeds: Sequence[Any],
        *,
        image_cache: ImageCache | None = None,
        guide: flow.Guide | None = None,
    ) -> np.ndarray:
        """Return normalised chunks float32[B, P, A] of the action expert.

        Args:
          seeds: B seeds of the noise, of `np.random.default_rng`.
          image_cache: of the batch's images, which are then not encoded again.
        """
        shape = (self._config.horizon, self._config.action_dim)
        noise = np.stack(
            [np.random.default_rng(seed).standard_normal(shape, np.float32) for seed in seeds]
        )
        chunks, image_cache = self._sample_actions(
            params, batch, noise, image_cache=image_cache, guide=guide
        )
        if self._options.keep_image_cache:
            self._kept_images = {name: batch[name] for name in _IMAGE_FIELDS}
            self._kept_cache = image_cache
        return np.asarray(chunks)[..., : self._assets.action_spec["action_dim"]]

    def fast_chunks(
        self, params: Params, batch: Batch, *, image_cache: ImageCache | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decode FAST tokens greedily.

        Returns:
          Normalised chunks float32[B, P, A], and bool[B]: whether the tokens decode to a complete
          chunk. Where they do not, the chunk is zero.
        """
        max_new = self._options.max_fast_tokens
        rows = self._decode(params, batch, max_new, self._fast_vocabulary, image_cache)
        tokenizer = self._assets.tokenizer
        prompt = self._assets.action_spec["prompt"]
        fast_tokens = [prompts.read_action(tokenizer, row, prompt=prompt) for row in rows]
        return self._assets.fast.decode_batch(fast_tokens)

    def text(
        self,
        params: Params,
        batch: Batch,
        *,
        max_new: int = 48,
        image_cache: ImageCache | None = None,
    ) -> list[str]:
        """Return greedy answers to B prompts, of at most `max_new` tokens."""
        rows = self._decode(params, batch, max_new, self._vocabulary, image_cache)
        return [self._assets.tokenizer.decode(row).strip() for row in rows]

    def _decode(
        self,
        params: Params,
        batch: Batch,
        max_new: int,
        allowed: np.ndarray,
        image_cache: ImageCache | None,
    ) -> list[np.ndarray]:
        """Return the token ids that the model writes after each prompt, before eos."""
        eos = self._assets.tokenizer.layout.eos
        options = TextOptions(max_new=max_new, eos=eos, allowed=allowed)
        tokens = self._decode_text(params, batch, options, image_cache)
        rows = []
        for row in np.asarray(tokens):
            ends = np.flatnonzero(row == eos)
            rows.append(row[: ends[0]] if len(ends) else row)
        return rows

    @functools.cached_property
    def _vocabulary(self) -> np.ndarray:
        """bool[V]: ids of the tokenizer. Released embedding tables have rows without meaning."""
        allowed = np.zeros(self._config.vocab_size, bool)
        for span in self._assets.tokenizer.layout.ranges.values():
            allowed[span.offset : span.stop] = True
        return allowed

    @functools.cached_property
    def _fast_vocabulary(self) -> np.ndarray:
        """bool[V]: ids that occur in an action's text."""
        allowed = np.zeros(self._config.vocab_size, bool)
        ids = prompts.action_vocabulary(
            self._assets.tokenizer,
            prompt=self._assets.action_spec["prompt"],
            fast_vocab=self._assets.fast.vocab_size,
        )
        allowed[ids] = True
        return allowed
