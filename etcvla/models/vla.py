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
from etcvla.models import flow, lora, ops
from etcvla.models.gemma import Cache, Gemma, GemmaConfig, Mask
from etcvla.models.siglip import SigLIP, SigLIPConfig, to_float

Batch = Mapping[str, jax.Array]
Params = Mapping


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
    insulate: bool  # stop the expert's gradient at the backbone's keys and values (arXiv 2505.23705)
    image_attends_prompt: bool  # image tokens read the prompt, as released PaliGemma: one segment a row then
    dtype: str  # of activations and matrix products; parameters are float32
    remat: str  # "none", "dots", "full"
    unroll: int  # layers a loop turn
    count_absent: bool = False  # an absent camera's tokens take positions too (openpi's pi0-FAST; pi0 skips them)
    lora: tuple[tuple[str, int], ...] = ()  # ordered (regex, rank) over projections; see `etcvla.models.lora`
    lora_scale: float = 1.0  # of all adapters: alpha / rank

    def __post_init__(self):
        if self.state not in ("token", "text"):
            raise ValueError(f'model.state is {self.state!r}, expected "token" or "text"')
        object.__setattr__(self, "lora", tuple((pattern, rank) for pattern, rank in self.lora))  # JSON has lists

    def check(self, batch: Mapping[str, np.ndarray]) -> None:
        """Raises ValueError naming the field of a batch on the host that the model cannot read.

        On a device nothing would: an id beyond the table reads its last row there.
        """
        size = self.siglip.image_size
        batch_lib.validate(batch, H=size, W=size, S=self.state_dim, P=self.horizon, A=self.action_dim)
        tokens = batch["tokens"]
        outside = (tokens < 0) | (tokens >= self.vocab_size)
        if outside.any():
            raise ValueError(f"batch['tokens'] holds id {tokens[outside][0]}, the model has ids 0 to "
                             f"{self.vocab_size - 1}")

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
        streams, adapters = (cfg.vlm,) if cfg.expert is None else (cfg.vlm, cfg.expert), cfg.adapters
        self.img = SigLIP(cfg.siglip, cfg.vlm.width, dtype, adapters, cfg.remat, cfg.unroll)
        self.llm = Gemma(streams, cfg.vocab_size, cfg.insulate, dtype, adapters, cfg.remat, cfg.unroll)
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
        self.time_mlp = ([expert_end("time_mlp_in", width, width), expert_end("time_mlp_out", width, width)]
                         if cfg.expert.adaptive else
                         [expert_end("action_time_mlp_in", 2 * width, width),
                          expert_end("action_time_mlp_out", width, width)])

    # ---- prefix -----------------------------------------------------------------------------------------------------

    def encode_images(self, images: Array) -> Float[Array, "b i d"]:
        """uint8[B, C, H, W, 3] to the image tokens of all cameras, one after another."""
        size = self.config.siglip.image_size
        if images.dtype != jnp.uint8 or images.shape[2:] != (size, size, 3):
            raise ValueError(f"images are {images.dtype}{list(images.shape)}, the model reads uint8[B, C, {size}, "
                             f"{size}, 3]")
        flat = images.reshape(-1, *images.shape[2:])
        tokens = self.img(to_float(flat, jnp.dtype(self.config.dtype)))
        return tokens.reshape(images.shape[0], -1, tokens.shape[-1])

    def encode_prefix(self, batch: Batch) -> tuple[Array, Array, Mask, Bool[Array, "b i"]]:
        """Tokens float[B, I + L, D], positions, mask(s) of the prefix, and which image tokens are there."""
        image_mask = jnp.repeat(batch["image_mask"], self.config.siglip.tokens, axis=1)
        tokens = jnp.concatenate([self.encode_images(batch["images"]), self.llm.embed(batch["tokens"])], axis=1)
        mask = ops.prefix_mask(image_mask, batch["segment"], batch["target"], self.config.image_attends_prompt)
        counted = jnp.ones_like(image_mask) if self.config.count_absent else image_mask
        positions = ops.prefix_positions(counted, batch["segment"])
        if self.config.vlm.window:
            causal = jnp.pad(batch["target"], ((0, 0), (image_mask.shape[1], 0)))
            mask = mask, ops.local_mask(mask, positions, positions, causal, self.config.vlm.window)
        return tokens, positions, mask, image_mask

    # ---- suffix -----------------------------------------------------------------------------------------------------

    def encode_suffix(self, state: Float[Array, "b s"], x_t: Float[Array, "b r p a"],
                      time: Float[Array, "b r"]) -> tuple[Float[Array, "b t d"], Float[Array, "b t d"] | None]:
        """Expert tokens ([state,] R chunks of P actions) and, for an adaptive expert, their condition."""
        batch, draws, horizon, _ = x_t.shape
        actions, cond = self._mix_time(self.action_in_proj(x_t), ops.sincos(time, self.config.expert.width, 4e-3, 4.0))
        tokens = actions.reshape(batch, draws * horizon, -1)
        cond = None if cond is None else jnp.repeat(cond, horizon, axis=1)
        if self.config.state == "text":
            return tokens, cond
        tokens = jnp.concatenate([self.state_proj(state)[:, None], tokens], axis=1)
        # The state token is shared by all draws, so its condition must not depend on their times: it has none.
        cond = None if cond is None else jnp.pad(cond, ((0, 0), (1, 0), (0, 0)))
        return tokens, cond

    def _mix_time(self, actions, time_emb):
        first, second = self.time_mlp
        if self.config.expert.adaptive:
            return actions, nn.swish(second(nn.swish(first(time_emb))))
        time_emb = jnp.broadcast_to(time_emb[:, :, None], actions.shape)
        return second(nn.swish(first(jnp.concatenate([actions, time_emb], axis=-1)))), None

    def suffix_geometry(self, visible: Bool[Array, "b s"], draws: int) -> tuple[Array, Array]:
        """Positions int32[B, T] and mask bool[B, T, S + T] of the suffix over prefix columns it may read.

        The state sees the prefix and itself; an action sees the prefix, the state, and the actions of its own draw.
        """
        horizon = self.config.horizon
        has_state = int(self.config.state == "token")
        draw = jnp.concatenate([jnp.zeros(has_state, jnp.int32), jnp.repeat(jnp.arange(draws) + 1, horizon)])
        order = jnp.concatenate([jnp.arange(has_state), jnp.tile(jnp.arange(horizon) + has_state, draws)])
        among = (draw[:, None] == draw[None, :]) | (draw[None, :] == 0)
        batch, length = visible.shape[0], draw.shape[0]
        mask = jnp.concatenate([jnp.broadcast_to(visible[:, None], (batch, length, visible.shape[1])),
                                jnp.broadcast_to(among[None], (batch, length, length))], axis=2)
        return visible.sum(axis=1, keepdims=True) + order[None], mask

    def _velocity(self, hidden, draws):
        """Expert output to velocities float32[B, R, P, A]."""
        actions = hidden[:, int(self.config.state == "token"):].astype(jnp.float32)
        return self.action_out_proj(actions).reshape(hidden.shape[0], draws, self.config.horizon, -1)

    # ---- entry points -----------------------------------------------------------------------------------------------

    def __call__(self, batch: Batch, slots: Int[Array, "b m"] | None, x_t: Float[Array, "b r p a"] | None,
                 time: Float[Array, "b r"] | None) -> tuple[Array | None, Array | None]:
        """One pass over everything a row teaches.

        Args:
          slots: columns of the text whose token is to be predicted; None for no logits.
          x_t, time: R noisy chunks and their flow times; None leaves the expert out.

        Returns: logits float32[B, M, V] that predict tokens[slots], and velocities float32[B, R, P, A]; None each
          where not asked for.
        """
        prefix, positions, mask, image_mask = self.encode_prefix(batch)
        suffix = suffix_positions = suffix_mask = cond = velocity = logits = None
        if x_t is not None:
            suffix, cond = self.encode_suffix(batch["state"], x_t, time)
            visible = expert_sees(image_mask, batch)
            suffix_positions, suffix_mask = self.suffix_geometry(visible, x_t.shape[1])
        out, _ = self.llm([prefix, suffix], [positions, suffix_positions], [mask, suffix_mask], [None, cond])
        if slots is not None:
            before = image_mask.shape[1] + jnp.maximum(slots - 1, 0)
            logits = self.llm.logits(jnp.take_along_axis(out[0], before[..., None], axis=1))
        if x_t is not None:
            velocity = self._velocity(out[1], x_t.shape[1])
        return logits, velocity

    def prefill(self, batch: Batch) -> tuple[Array, Cache]:
        """The prefix alone: hidden float[B, I + L, D] and its keys and values."""
        prefix, positions, mask, _ = self.encode_prefix(batch)
        out, cache = self.llm([prefix, None], [positions, None], [mask, None], [None, None])
        return out[0], cache

    def act(self, cache: Cache, visible: Bool[Array, "b s"], state: Float[Array, "b s"], x_t: Float[Array, "b p a"],
            time: Float[Array, " b"]) -> Float[Array, "b p a"]:
        """Velocity of one chunk from a cached prefix, of which the expert reads the `visible` columns."""
        suffix, cond = self.encode_suffix(state, x_t[:, None], time[:, None])
        positions, mask = self.suffix_geometry(visible, 1)
        out, _ = self.llm([None, suffix], [None, positions], [None, mask], [None, cond], cache)
        return self._velocity(out[1], 1)[:, 0]

    def extend(self, token: Int[Array, " b"], position: Int[Array, " b"], visible: Bool[Array, "b s"], cache: Cache,
               column: Int[Array, ""]) -> tuple[Float[Array, "b v"], Cache]:
        """Writes one token into the cache at `column` and returns the logits of the next."""
        x = self.llm.embed(token[:, None])
        out, cache = self.llm([x, None], [position[:, None], None], [visible[:, None], None], [None, None], cache,
                              column)
        return self.llm.logits(out[0][:, 0]), cache

    def readout(self, hidden: Float[Array, "b d"]) -> Float[Array, "b v"]:
        """Logits of hidden states that `prefill` returned."""
        return self.llm.logits(hidden)


def init_params(model: VLA, seed: int = 0, loc: tuple[int, int] | None = None) -> Params:
    """Random parameters. (`rbg` keys compile several times faster than JAX's default, and are as good for this.)

    Args:
      loc: (offset, count) of the location tokens, which then start as sine-cosine codes of their coordinate: what is
        learnt of one place is learnt of those beside it. As unrelated vectors a thousand of them are a thousand words.
    """
    cfg = model.config
    size = cfg.siglip.image_size
    batch = batch_lib.zeros(B=1, C=1, H=size, W=size, L=2, S=cfg.state_dim, P=cfg.horizon, A=cfg.action_dim)
    noisy = (None, None) if cfg.expert is None else (jnp.zeros((1, 1, cfg.horizon, cfg.action_dim)), jnp.zeros((1, 1)))
    key = jax.random.key(seed, impl="rbg")
    params = model.init(key, batch, jnp.zeros((1, 1), jnp.int32), *noisy)["params"]
    lora.check(cfg.adapters, params)
    if loc is not None:
        offset, count = loc
        codes = ops.sincos((jnp.arange(count) + 0.5) / count, cfg.vlm.width, 2**-5, 4.0) * (2 / cfg.vlm.width) ** 0.5
        table = params["llm"]["embedder"]["input_embedding"].at[offset:offset + count].set(codes)
        params["llm"]["embedder"]["input_embedding"] = table
    return params


def expert_sees(image_mask: Bool[Array, "b i"], batch: Batch) -> Bool[Array, "b i+l"]:
    """Prefix columns that the expert reads: present images and its segment's prompt, never its FAST tokens."""
    prompt = (batch["segment"] == batch["action_segment"][:, None]) & (batch["segment"] > 0) & ~batch["target"]
    return jnp.concatenate([image_mask, prompt], axis=1)


def action_widths(batch: Batch) -> Bool[Array, "b 1 a"]:
    """The widths that the row's actions have. What pads them to A is no target, so it must be no input either."""
    return batch["action_mask"].any(axis=1, keepdims=True)


def target_slots(target: Bool[Array, "b l"], count: int) -> tuple[Int[Array, "b m"], Bool[Array, "b m"]]:
    """The columns of the first `count` targets of every row, in order, and which of them are real."""
    real, slots = jax.lax.top_k(target.astype(jnp.int32), min(count, target.shape[1]))
    return slots, real > 0


def sample_actions(model: VLA, params: Params, batch: Batch, noise: Float[Array, "b p a"],
                   num_steps: int) -> Float[Array, "b p a"]:
    """Normalised action chunks: the prefix once, then `num_steps` Euler steps of the expert on its cache.

    Of the batch's actions only `action_mask` is read, for the widths that there are: the others stay 0.
    """
    variables = {"params": params}
    _, cache = model.apply(variables, batch, method=VLA.prefill)
    visible = expert_sees(jnp.repeat(batch["image_mask"], model.config.siglip.tokens, axis=1), batch)

    def velocity(x, time):
        return model.apply(variables, cache, visible, batch["state"], x, time, method=VLA.act) * widths

    widths = action_widths(batch)
    return flow.integrate(velocity, noise * widths, num_steps)


def decode_text(model: VLA, params: Params, batch: Batch, *, max_new: int, eos: int, temperature: float = 0.0,
                key: jax.Array | None = None) -> Int[Array, "b n"]:
    """Continues every row's prompt until each has written `eos`, at most `max_new` tokens; 0 after `eos`.

    Args:
      batch: one segment a row, prompts only (no targets), prompts of any length.
      temperature: 0 is greedy; else sampling, which needs `key`.
    """
    variables = {"params": params}
    hidden, cache = model.apply(variables, batch, method=VLA.prefill)
    cache = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, max_new), (0, 0), (0, 0))), cache)
    image_mask = jnp.repeat(batch["image_mask"], model.config.siglip.tokens, axis=1)
    prompt = jnp.concatenate([image_mask, batch["segment"] > 0], axis=1)
    last = image_mask.shape[1] + (batch["segment"] > 0).sum(axis=1) - 1
    logits = model.apply(variables, jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0], method=VLA.readout)
    start, position = prompt.shape[1], prompt.sum(axis=1)
    column = jnp.arange(start + max_new)
    prompt = jnp.pad(prompt, ((0, 0), (0, max_new)))

    def pick(logits, step):
        if temperature == 0.0:
            return jnp.argmax(logits, axis=-1)
        return jax.random.categorical(jax.random.fold_in(key, step), logits / temperature, axis=-1)

    def going(carry):
        step, _, _, done, _ = carry
        return (step < max_new) & ~done.all()

    def write(carry):
        step, logits, out, done, cache = carry
        token = jnp.where(done, 0, pick(logits, step)).astype(jnp.int32)
        visible = prompt | ((column >= start) & (column <= start + step))
        logits, cache = model.apply(variables, token, position + step, visible, cache, start + step,
                                    method=VLA.extend)
        return step + 1, logits, out.at[:, step].set(token), done | (token == eos), cache

    rows = logits.shape[0]
    state = (0, logits, jnp.zeros((rows, max_new), jnp.int32), jnp.zeros(rows, bool), cache)
    return jax.lax.while_loop(going, write, state)[2]
