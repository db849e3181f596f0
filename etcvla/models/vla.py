"""The vision-language-action model: SigLIP and Gemma (the prefix), and the action expert (the suffix).

The prefix holds the image tokens and every segment's text; the suffix holds an optional state token and the noisy
action chunk. Training runs both at once; acting runs the prefix once, keeps its keys and values, and loops the suffix.

Axes as in `etcvla.models.ops`; the batch is `etcvla.batch`'s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from etcvla import batch as batch_lib
from etcvla import rules
from etcvla.models import lora, ops
from etcvla.models.gemma import Gemma, GemmaConfig, KVCache, Mask
from etcvla.models.siglip import SigLIP, SigLIPConfig, to_float

Batch = Mapping[str, jax.Array]
Params = Mapping

# Parameters that are read in float32 whatever the rest: scales and biases of norms, and the expert's ends.
_FLOAT32 = (
    r".*([nN]orm)[^/]*/(scale|bias)|"
    r"(state_proj|action_in_proj|action_out_proj|(action_)?time_mlp_(in|out))/.*"
)


@dataclasses.dataclass(frozen=True)
class VLAConfig:
    """Sizes and switches of the model."""

    siglip: SigLIPConfig
    vlm: GemmaConfig
    expert: GemmaConfig | None  # None: the language model alone (pi0-FAST)
    vocab_size: int
    state_dim: int  # S
    action_dim: int  # A
    horizon: int  # P
    state: str  # "token": one continuous token before the actions (pi0); "text": in the prompt or nowhere (pi0.5)
    insulate: (
        bool  # stop the expert's gradient at the backbone's keys and values (arXiv 2505.23705)
    )
    image_attends_prompt: (
        bool  # image tokens read the prompt, as released PaliGemma: one segment a row then
    )
    dtype: str  # of activations and matrix products; parameters are float32
    remat: str  # "none", "dots", "full"
    unroll: int  # layers a loop turn
    count_absent_cameras: bool = (
        False  # an absent camera's tokens take positions too (openpi's pi0-FAST; pi0 skips them)
    )
    lora: tuple[
        tuple[str, int], ...
    ] = ()  # ordered (regex, rank) over projections; see `etcvla.models.lora`
    lora_scale: float = 1.0  # of all adapters: alpha / rank

    def __post_init__(self):
        if self.state not in ("token", "text"):
            raise ValueError(f'model.state is {self.state!r}, expected "token" or "text"')
        object.__setattr__(
            self, "lora", tuple((pattern, rank) for pattern, rank in self.lora)
        )  # JSON has lists

    def check_batch(self, batch: Mapping[str, np.ndarray]) -> None:
        """Raises ValueError naming the field of a batch on the host that the model cannot read.

        On a device nothing would: an id beyond the table reads its last row.
        """
        size = self.siglip.image_size
        batch_lib.validate(
            batch, H=size, W=size, S=self.state_dim, P=self.horizon, A=self.action_dim
        )
        tokens = batch["tokens"]
        outside = (tokens < 0) | (tokens >= self.vocab_size)
        if outside.any():
            raise ValueError(
                f"batch['tokens'] holds id {tokens[outside][0]}, the model has ids 0 to "
                f"{self.vocab_size - 1}"
            )

    @property
    def adapters(self) -> lora.LoRA:
        """Which projections have adapters."""
        return lora.LoRA(self.lora, self.lora_scale)


class VLA(nn.Module):
    """See the module docstring. Parameters: img, llm, and the expert's projections, named as openpi names them."""

    config: VLAConfig

    def setup(self):
        cfg = self.config
        dtype = jnp.dtype(cfg.dtype)
        streams, adapters = (
            (cfg.vlm,) if cfg.expert is None else (cfg.vlm, cfg.expert),
            cfg.adapters,
        )
        self.img = SigLIP(cfg.siglip, cfg.vlm.width, dtype, adapters, cfg.remat, cfg.unroll)
        self.llm = Gemma(
            streams, cfg.vocab_size, cfg.insulate, dtype, adapters, cfg.remat, cfg.unroll
        )
        if cfg.expert is None:
            return
        width = cfg.expert.width

        def expert_end(name, width_in, width_out):
            # In float32 whatever the rest: actions and velocities are physical quantities.
            return lora.dense(width_in, width_out, jnp.float32, adapters, name=name)

        self.action_in_proj = expert_end("action_in_proj", cfg.action_dim, width)
        self.action_out_proj = expert_end("action_out_proj", width, cfg.action_dim)
        if cfg.state == "token":
            self.state_proj = expert_end("state_proj", cfg.state_dim, width)
        self.time_mlp = (
            [expert_end("time_mlp_in", width, width), expert_end("time_mlp_out", width, width)]
            if cfg.expert.adaptive
            else [
                expert_end("action_time_mlp_in", 2 * width, width),
                expert_end("action_time_mlp_out", width, width),
            ]
        )

    # ---- prefix -----------------------------------------------------------------------------------------------------

    def encode_images(self, images: Array) -> Float[Array, "b i d"]:
        """uint8[B, C, H, W, 3] to the image tokens of all cameras, one after another."""
        size = self.config.siglip.image_size
        if images.dtype != jnp.uint8 or images.shape[2:] != (size, size, 3):
            raise ValueError(
                f"images are {images.dtype}{list(images.shape)}, the model reads uint8[B, C, {size}, "
                f"{size}, 3]"
            )
        flat = images.reshape(-1, *images.shape[2:])
        tokens = self.img(to_float(flat, jnp.dtype(self.config.dtype)))
        return tokens.reshape(images.shape[0], -1, tokens.shape[-1])

    def encode_prefix(
        self, images: Float[Array, "b i d"], image_token_mask: Bool[Array, "b i"], batch: Batch
    ) -> tuple[Array, Array, Mask]:
        """Tokens float[B, I + L, D], positions and mask(s) of the prefix; `there` says which image tokens are real."""
        tokens = jnp.concatenate([images, self.llm.embed(batch["tokens"])], axis=1)
        return tokens, *prefix_positions_and_mask(self.config, image_token_mask, batch)

    # ---- suffix -----------------------------------------------------------------------------------------------------

    def encode_suffix(
        self, state: Float[Array, "b s"], x_t: Float[Array, "b r p a"], time: Float[Array, "b r"]
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b t d"] | None]:
        """Expert tokens ([state,] R chunks of P actions) and, for an adaptive expert, their condition."""
        batch, noise_samples, horizon, _ = x_t.shape
        actions, cond = self._mix_time(
            self.action_in_proj(x_t),
            ops.sincos_embedding(time, self.config.expert.width, 4e-3, 4.0),
        )
        tokens = actions.reshape(batch, noise_samples * horizon, -1)
        cond = None if cond is None else jnp.repeat(cond, horizon, axis=1)
        if self.config.state == "text":
            return tokens, cond
        tokens = jnp.concatenate([self.state_proj(state)[:, None], tokens], axis=1)
        # The state token is shared by all noise_samples, so its condition must not depend on their times: it has none.
        cond = None if cond is None else jnp.pad(cond, ((0, 0), (1, 0), (0, 0)))
        return tokens, cond

    def _mix_time(self, actions, time_emb):
        first, second = self.time_mlp
        if self.config.expert.adaptive:
            return actions, nn.swish(second(nn.swish(first(time_emb))))
        time_emb = jnp.broadcast_to(time_emb[:, :, None], actions.shape)
        return second(nn.swish(first(jnp.concatenate([actions, time_emb], axis=-1)))), None

    def suffix_positions_and_mask(
        self, visible: Bool[Array, "b s"], steps: Bool[Array, "b p"], noise_samples: int
    ) -> tuple[Array, Array]:
        """Positions int32[B, T] and mask bool[B, T, S + T] of the suffix over prefix columns it may read.

        The state sees the prefix and itself; an action sees the prefix, the state, and the actions of its own draw at
        the `steps` that are present: what stands past an episode's end was never done, so nothing may read it.
        """
        horizon = self.config.horizon
        has_state = int(self.config.state == "token")
        draw = jnp.concatenate(
            [jnp.zeros(has_state, jnp.int32), jnp.repeat(jnp.arange(noise_samples) + 1, horizon)]
        )
        order = jnp.concatenate(
            [jnp.arange(has_state), jnp.tile(jnp.arange(horizon) + has_state, noise_samples)]
        )
        among = (draw[:, None] == draw[None, :]) | (draw[None, :] == 0)
        real = jnp.pad(
            jnp.tile(steps, (1, noise_samples)), ((0, 0), (has_state, 0)), constant_values=True
        )
        seen = jnp.broadcast_to(visible[:, None], (visible.shape[0], len(draw), visible.shape[1]))
        mask = jnp.concatenate([seen, among[None] & real[:, None]], axis=2)
        return visible.sum(axis=1, keepdims=True) + order[None], mask

    def _velocity(self, hidden, noise_samples):
        """Expert output to velocities float32[B, R, P, A]."""
        actions = hidden[:, int(self.config.state == "token") :].astype(jnp.float32)
        return self.action_out_proj(actions).reshape(
            hidden.shape[0], noise_samples, self.config.horizon, -1
        )

    # ---- entry points -----------------------------------------------------------------------------------------------

    def __call__(
        self,
        batch: Batch,
        target_positions: Int[Array, "b m"] | None,
        x_t: Float[Array, "b r p a"] | None,
        time: Float[Array, "b r"] | None,
        gradient_scale: Float[Array, ""] | None = None,
    ) -> tuple[Array | None, Array | None]:
        """One pass over everything a row teaches.

        Args:
          target_positions: columns of the text whose token is to be predicted; None for no logits.
          x_t, time: R noisy chunks and their flow times; None leaves the expert out.
          gradient_scale: the share of the expert's gradient that reaches the backbone; None: what `insulate` says.

        Returns: logits float32[B, M, V] that predict tokens[target_positions], and velocities float32[B, R, P, A]; None each
          where not asked for.
        """
        image_token_mask = expand_image_mask(self.config, batch["image_mask"])
        prefix, positions, mask = self.encode_prefix(
            self.encode_images(batch["images"]), image_token_mask, batch
        )
        suffix = suffix_positions = suffix_mask = cond = velocity = logits = None
        if x_t is not None:
            suffix, cond = self.encode_suffix(batch["state"], x_t, time)
            suffix_positions, suffix_mask = self.suffix_positions_and_mask(
                expert_key_mask(image_token_mask, batch),
                batch["action_mask"].any(axis=2),
                x_t.shape[1],
            )
        out, _ = self.llm(
            [prefix, suffix],
            [positions, suffix_positions],
            [mask, suffix_mask],
            [None, cond],
            gradient_scale=gradient_scale,
        )
        if target_positions is not None:
            before = image_token_mask.shape[1] + jnp.maximum(target_positions - 1, 0)
            logits = self.llm.logits(jnp.take_along_axis(out[0], before[..., None], axis=1))
        if x_t is not None:
            velocity = self._velocity(out[1], x_t.shape[1])
        return logits, velocity

    def prefill(
        self, images: Float[Array, "b i d"], image_token_mask: Bool[Array, "b i"], batch: Batch
    ) -> tuple[Array, KVCache]:
        """The prefix alone: hidden float[B, I + L, D], and its keys and values."""
        prefix, positions, mask = self.encode_prefix(images, image_token_mask, batch)
        out, cache = self.llm([prefix, None], [positions, None], [mask, None], [None, None])
        return out[0], cache

    def extend(
        self,
        tokens: Int[Array, "b t"],
        positions: Int[Array, "b t"],
        mask: Mask,
        cache: KVCache,
        column: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "b t d"], KVCache]:
        """Writes a block of T tokens into the cache from `column` on: hidden states and the cache.

        `mask` (bool[B, T, S], or one of each kind of layer) says which of the cache's S columns, with the block in
        them, each token reads: a prompt reads all of itself, a written token itself and what stands before it.
        """
        out, cache = self.llm(
            [self.llm.embed(tokens), None],
            [positions, None],
            [mask, None],
            [None, None],
            cache,
            column,
        )
        return out[0], cache

    def readout(self, hidden: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
        """Logits of the tokens that follow, from hidden states of `prefill` or `extend`."""
        return self.llm.logits(hidden)

    def act(
        self,
        cache: KVCache,
        visible: Bool[Array, "b s"],
        state: Float[Array, "b s"],
        x_t: Float[Array, "b p a"],
        time: Float[Array, " b"],
    ) -> Float[Array, "b p a"]:
        """Velocity of one chunk from a cached prefix, of which the expert reads the `visible` columns."""
        suffix, cond = self.encode_suffix(state, x_t[:, None], time[:, None])
        positions, mask = self.suffix_positions_and_mask(visible, jnp.ones(x_t.shape[:2], bool), 1)
        out, _ = self.llm([None, suffix], [None, positions], [None, mask], [None, cond], cache)
        return self._velocity(out[1], 1)[:, 0]


def init_params(model: VLA, seed: int = 0, loc: tuple[int, int] | None = None) -> Params:
    """Random parameters. (`rbg` keys compile several times faster than JAX's default, and are as good for this.)

    Args:
      loc: (offset, count) of the location tokens, which then start as sine-cosine codes of their coordinate: what is
        learnt of one place is learnt of those beside it. As unrelated vectors a thousand of them are a thousand words.
    """
    cfg = model.config
    size = cfg.siglip.image_size
    batch = batch_lib.zeros(
        B=1, C=1, H=size, W=size, L=2, S=cfg.state_dim, P=cfg.horizon, A=cfg.action_dim
    )
    noisy = (
        (None, None)
        if cfg.expert is None
        else (jnp.zeros((1, 1, cfg.horizon, cfg.action_dim)), jnp.zeros((1, 1)))
    )
    key = jax.random.key(seed, impl="rbg")
    params = model.init(key, batch, jnp.zeros((1, 1), jnp.int32), *noisy)["params"]
    lora.check(cfg.adapters, params)
    if loc is not None:
        offset, count = loc
        codes = (
            ops.sincos_embedding((jnp.arange(count) + 0.5) / count, cfg.vlm.width, 2**-5, 4.0)
            * (2 / cfg.vlm.width) ** 0.5
        )
        table = params["llm"]["embedder"]["input_embedding"].at[offset : offset + count].set(codes)
        params["llm"]["embedder"]["input_embedding"] = table
    return params


def read_dtypes(params: Params, config: VLAConfig) -> Params:
    """Return the tree of dtypes in which the modules read the parameters; see `etcvla.models.mixed_precision`."""
    dtype_rules = [(_FLOAT32, jnp.dtype("float32")), (".*", jnp.dtype(config.dtype))]
    return rules.assign(dtype_rules, params, "dtypes", all_used=False)


def expand_image_mask(config: VLAConfig, image_mask: Bool[Array, "b c"]) -> Bool[Array, "b i"]:
    """Which image tokens are present, from which cameras are."""
    return jnp.repeat(image_mask, config.siglip.tokens, axis=1)


def prefix_positions_and_mask(
    config: VLAConfig, image_token_mask: Bool[Array, "b i"], batch: Batch
) -> tuple[Array, Mask]:
    """Positions int32[B, I + L] and mask(s) bool[B, I + L, I + L] of images and text."""
    mask = ops.prefix_mask(
        image_token_mask, batch["segment"], batch["target"], config.image_attends_prompt
    )
    positions = ops.prefix_positions(
        jnp.ones_like(image_token_mask) if config.count_absent_cameras else image_token_mask,
        batch["segment"],
    )
    causal = jnp.pad(batch["target"], ((0, 0), (image_token_mask.shape[1], 0)))
    return positions, layer_masks(config, mask, positions, positions, causal)


def layer_masks(
    config: VLAConfig,
    mask: Bool[Array, "b t s"],
    positions: Int[Array, "b t"],
    key_positions: Int[Array, "b s"],
    causal: Bool[Array, "b t"],
) -> Mask:
    """The mask, and beside it that of the local layers where the model has some."""
    window = config.vlm.window
    return (
        (mask, ops.local_mask(mask, positions, key_positions, causal, window)) if window else mask
    )


def expert_key_mask(image_mask: Bool[Array, "b i"], batch: Batch) -> Bool[Array, "b i+l"]:
    """Prefix columns that the expert reads: present images and its segment's prompt, never its FAST tokens."""
    prompt = (
        (batch["segment"] == batch["action_segment"][:, None])
        & (batch["segment"] > 0)
        & ~batch["target"]
    )
    return jnp.concatenate([image_mask, prompt], axis=1)


def action_dim_mask(batch: Batch) -> Bool[Array, "b 1 a"]:
    """The widths that the row's actions have. What pads them to A is no target, so it must be no input either."""
    return batch["action_mask"].any(axis=1, keepdims=True)


def find_target_positions(
    target: Bool[Array, "b l"], count: int
) -> tuple[Int[Array, "b m"], Bool[Array, "b m"]]:
    """The columns of the first `count` targets of every row, in order, and which of them are real."""
    real, target_positions = jax.lax.top_k(target.astype(jnp.int32), min(count, target.shape[1]))
    return target_positions, real > 0
