"""The vision-language-action model.

SigLIP and Gemma process the prefix, the action expert processes the suffix.

The prefix holds the image tokens and the text of all segments. The suffix holds an optional state
token for each of the row's K action segments, and R noisy action chunks. Chunk r belongs to action
segment r mod K and reads no other segment. Training runs both in one pass. A policy runs the prefix
once, keeps its keys and values, and runs the suffix once per integration step.

Axes as in `etcvla.models.types`; the fields of a batch are described in `etcvla.batch`.
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
from etcvla.errors import UserError
from etcvla.etc.places import GRID, split_cell
from etcvla.models import lora, ops
from etcvla.models.gemma import EXPERT, LANGUAGE, Gemma, GemmaConfig, TokenStream
from etcvla.models.siglip import SigLIP, SigLIPConfig, to_float
from etcvla.models.types import (
    AttentionMask,
    Batch,
    CameraMask,
    Chunks,
    ExpertKeyMask,
    FlowTimes,
    ImageMask,
    ImageTokens,
    Index,
    KVCache,
    Mask,
    NoisyChunks,
    Params,
    Positions,
    QueryMask,
    Scalar,
    State,
    StepMask,
    TextMask,
    TokenIds,
    Tokens,
)

# Parameters that are read in float32 for any `VLAConfig.dtype`: scales and biases of norms, and
# the projections of actions, state and time.
_FLOAT32 = (
    r".*([nN]orm)[^/]*/(scale|bias)|"
    r"(state_proj|action_in_proj|action_out_proj|(action_)?time_mlp_(in|out))/.*"
)


@dataclasses.dataclass(frozen=True)
class VLAConfig:
    """Sizes and options of the model."""

    siglip: SigLIPConfig
    vlm: GemmaConfig
    # None: the language model alone (pi0-FAST).
    expert: GemmaConfig | None
    vocab_size: int
    state_dim: int
    action_dim: int
    horizon: int
    # "token": one continuous token before the actions (pi0); "text": in the prompt, or absent
    # (pi0.5).
    state: str
    # Stop the gradient of the expert at the keys and values of the language model (arXiv
    # 2505.23705).
    insulate: bool
    # Image tokens read the prompt, as in released PaliGemma. A row must then hold one segment.
    image_attends_prompt: bool
    # Of activations and matrix products; parameters are float32.
    dtype: str
    # "none", "dots" or "full"; see `etcvla.models.scan`.
    remat: str
    # Layers per iteration of the loop over layers.
    unroll: int
    # The tokens of an absent camera take positions too (openpi's pi0-FAST; pi0 skips them).
    count_absent_cameras: bool = False
    # Ordered (regex, rank) rules over projections; see `etcvla.models.lora`.
    lora: tuple[tuple[str, int], ...] = ()
    # Scale of all adapters: alpha / rank.
    lora_scale: float = 1.0

    def __post_init__(self):
        if self.state not in ("token", "text"):
            raise UserError(f'model.state is {self.state!r}, expected "token" or "text"')
        # A config that is read from JSON has lists.
        lora_rules = tuple((pattern, rank) for pattern, rank in self.lora)
        object.__setattr__(self, "lora", lora_rules)

    def check_batch(self, batch: Mapping[str, np.ndarray]) -> None:
        """Check on the host that the model can read a batch.

        Nothing checks this on a device: a token id beyond the table reads the table's last row.

        Raises: UserError naming the field with a wrong dtype or shape, or with a token id outside
          the vocabulary.
        """
        size = self.siglip.image_size
        batch_lib.validate(
            batch, H=size, W=size, Q=self.state_dim, P=self.horizon, A=self.action_dim
        )
        tokens = batch["tokens"]
        outside = (tokens < 0) | (tokens >= self.vocab_size)
        if outside.any():
            raise UserError(
                f"batch['tokens'] holds id {tokens[outside][0]}, the model has ids 0 to "
                f"{self.vocab_size - 1}"
            )

    @property
    def adapters(self) -> lora.LoRA:
        """The LoRA adapters of the model's projections."""
        return lora.LoRA(self.lora, self.lora_scale)


class VLA(nn.Module):
    """The model. Its parameters have the names of openpi: `img`, `llm`, `action_in_proj`, ..."""

    config: VLAConfig

    def setup(self):
        """Create the modules."""
        cfg = self.config
        options = lora.ModuleOptions(jnp.dtype(cfg.dtype), cfg.adapters, cfg.remat, cfg.unroll)
        streams = (cfg.vlm,) if cfg.expert is None else (cfg.vlm, cfg.expert)
        self.img = SigLIP(cfg.siglip, cfg.vlm.width, options)
        self.llm = Gemma(streams, cfg.vocab_size, cfg.insulate, options)
        if cfg.expert is None:
            return

        # In float32 because actions and velocities are physical quantities.
        options = dataclasses.replace(options, dtype=jnp.float32)

        def _dense(name, in_width, out_width):
            return lora.dense(in_width, out_width, options, name=name)

        width = cfg.expert.width
        self.action_in_proj = _dense("action_in_proj", cfg.action_dim, width)
        self.action_out_proj = _dense("action_out_proj", width, cfg.action_dim)
        if cfg.state == "token":
            self.state_proj = _dense("state_proj", cfg.state_dim, width)
        time_mlp = "time_mlp" if cfg.expert.adaptive else "action_time_mlp"
        in_width = width if cfg.expert.adaptive else 2 * width
        self.time_mlp_in = _dense(f"{time_mlp}_in", in_width, width)
        self.time_mlp_out = _dense(f"{time_mlp}_out", width, width)

    # ---- prefix ----------------------------------------------------------------------------------

    def encode_images(self, images: Array) -> ImageTokens:
        """Encode uint8[B, C, height, width, 3]; the tokens of the cameras are concatenated."""
        size = self.config.siglip.image_size
        if images.dtype != jnp.uint8 or images.shape[2:] != (size, size, 3):
            raise ValueError(
                f"images are {images.dtype}{list(images.shape)}, the model reads "
                f"uint8[B, C, {size}, {size}, 3]"
            )
        flat = images.reshape(-1, *images.shape[2:])
        tokens = self.img(to_float(flat, jnp.dtype(self.config.dtype)))
        return tokens.reshape(images.shape[0], -1, tokens.shape[-1])

    def embed_prefix(
        self, image_tokens: ImageTokens, image_token_mask: ImageMask, batch: Batch
    ) -> TokenStream:
        """Build the prefix stream from encoded images and the batch's text."""
        tokens = jnp.concatenate([image_tokens, self.llm.embedder.encode(batch["tokens"])], axis=1)
        positions, mask = prefix_positions_and_mask(self.config, image_token_mask, batch)
        return TokenStream(tokens, positions, mask)

    # ---- suffix ----------------------------------------------------------------------------------

    def embed_suffix(
        self,
        state: State,
        x_t: NoisyChunks,
        time: FlowTimes,
        prefix_mask: ExpertKeyMask,
        step_mask: StepMask,
    ) -> TokenStream:
        """Build the suffix stream: optional state tokens (K), then R chunks of P actions.

        Args:
          state: normalized proprioception.
          x_t: noisy actions.
          time: flow time of each chunk.
          prefix_mask: prefix columns that the noise samples of each action segment read.
          step_mask: False on steps past the end of the episode. Nothing reads those actions.
        """
        batch, noise_samples, horizon, _ = x_t.shape
        time_embedding = ops.sincos_embedding(time, self.config.expert.width, 4e-3, 4.0)
        actions, cond = self._mix_time(self.action_in_proj(x_t), time_embedding)
        tokens = actions.reshape(batch, noise_samples * horizon, -1)
        if cond is not None:
            cond = jnp.repeat(cond, horizon, axis=1)
        if self.config.state == "token":
            # One state token per action segment, because it reads that segment's prompt.
            num_states = prefix_mask.shape[1]
            state_tokens = jnp.repeat(self.state_proj(state)[:, None], num_states, axis=1)
            tokens = jnp.concatenate([state_tokens, tokens], axis=1)
            # Several noise samples read a state token, so its condition must not depend on their
            # times: it is zero.
            if cond is not None:
                cond = jnp.pad(cond, ((0, 0), (num_states, 0), (0, 0)))
        positions, mask = self._suffix_positions_and_mask(prefix_mask, step_mask, noise_samples)
        return TokenStream(tokens, positions, mask, cond)

    def _mix_time(
        self, actions: Float[Array, "B R P D"], time_embedding: Float[Array, "B R D"]
    ) -> tuple[Float[Array, "B R P D"], Float[Array, "B R D"] | None]:
        """Return the action tokens and the condition (None for a plain expert)."""
        if self.config.expert.adaptive:
            hidden = nn.swish(self.time_mlp_in(time_embedding))
            return actions, nn.swish(self.time_mlp_out(hidden))
        time_embedding = jnp.broadcast_to(time_embedding[:, :, None], actions.shape)
        both = jnp.concatenate([actions, time_embedding], axis=-1)
        return self.time_mlp_out(nn.swish(self.time_mlp_in(both))), None

    def _suffix_positions_and_mask(
        self, prefix_mask: ExpertKeyMask, step_mask: StepMask, noise_samples: int
    ) -> tuple[Positions, AttentionMask]:
        """Compute the positions and the mask bool[B, T, S + T] of the suffix.

        A state token reads its action segment's columns of the prefix and itself. An action reads
        the same columns, the state token, and the actions of its own noise sample at the steps in
        `step_mask`.
        """
        num_segments = prefix_mask.shape[1]
        horizon = self.config.horizon
        sample = np.repeat(np.arange(noise_samples), horizon)
        order = np.tile(np.arange(horizon), noise_samples)  # position after the prefix
        segment = sample % num_segments
        is_real = step_mask[:, segment, order]
        if self.config.state == "token":
            segment = np.concatenate([np.arange(num_segments), segment])
            sample = np.concatenate([np.full(num_segments, -1), sample])
            order = np.concatenate([np.zeros(num_segments, int), order + 1])
            is_real = jnp.pad(is_real, ((0, 0), (num_segments, 0)), constant_values=True)
        is_state = sample == -1
        reads = (sample[:, None] == sample) | is_state
        reads &= segment[:, None] == segment
        mask = jnp.concatenate([prefix_mask[:, segment], reads & is_real[:, None]], axis=2)
        positions = prefix_mask.sum(axis=2)[:, segment] + order
        return positions, mask

    def _velocity(self, hidden: Tokens, noise_samples: int) -> NoisyChunks:
        """Project the expert's output to velocities in float32."""
        horizon = self.config.horizon
        actions = hidden[:, -noise_samples * horizon :].astype(jnp.float32)
        velocity = self.action_out_proj(actions)
        return velocity.reshape(hidden.shape[0], noise_samples, horizon, -1)

    # ---- entry points ----------------------------------------------------------------------------

    def __call__(
        self,
        batch: Batch,
        target_positions: Int[Array, "B M"] | None,
        x_t: NoisyChunks | None,
        time: FlowTimes | None,
        gradient_scale: Scalar | None = None,
        trained_rows: Bool[Array, " V"] | None = None,
        image_cells: Int[Array, "B M"] | None = None,
    ) -> tuple[Float[Array, "B M_or_2M V"] | None, NoisyChunks | None]:
        """Run the whole model, as in training.

        Args:
          batch: a batch.
          target_positions: text columns of the tokens to predict; None: compute no logits.
          x_t: R noisy chunks per row; None: do not run the expert.
          time: their flow times.
          gradient_scale: factor of the gradient from the expert to the language model; None: 0 with
            `insulate`, else 1.
          trained_rows: rows of the token table that get a gradient from the logits; None: all.
          image_cells: cells of `etcvla.etc.places` in the first camera's image. The image tokens
            at them predict words too; None: none do.

        Returns: float32 logits that predict tokens[target_positions], then those of the image
          tokens at `image_cells`, and float32 velocities; each None if it was not requested.
        """
        image_token_mask = expand_image_mask(self.config, batch["image_mask"])
        image_tokens = self.encode_images(batch["images"])
        streams = {LANGUAGE: self.embed_prefix(image_tokens, image_token_mask, batch)}
        if x_t is not None:
            readable = expert_key_mask(image_token_mask, batch)
            step_mask = batch["action_mask"].any(axis=3)
            streams[EXPERT] = self.embed_suffix(batch["state"], x_t, time, readable, step_mask)
        outputs, _ = self.llm(streams, gradient_scale=gradient_scale)
        logits = None
        velocity = None
        if target_positions is not None:
            # The token before a target predicts it.
            columns = image_token_mask.shape[1] + jnp.maximum(target_positions - 1, 0)
            hidden = jnp.take_along_axis(outputs[LANGUAGE], columns[..., None], axis=1)
            if image_cells is not None:
                index = image_index(self.config.siglip.tokens, image_cells)
                at_cells = jnp.take_along_axis(image_tokens, index[..., None], axis=1)
                hidden = jnp.concatenate([hidden, at_cells], axis=1)
            logits = self.llm.logits(hidden, trained_rows)
        if x_t is not None:
            velocity = self._velocity(outputs[EXPERT], x_t.shape[1])
        return logits, velocity

    def prefill(
        self, image_tokens: ImageTokens, image_token_mask: ImageMask, batch: Batch
    ) -> tuple[Float[Array, "B I+L D"], KVCache]:
        """Run the prefix alone and return its hidden states, keys and values."""
        prefix = self.embed_prefix(image_tokens, image_token_mask, batch)
        outputs, cache = self.llm({LANGUAGE: prefix})
        return outputs[LANGUAGE], cache

    def extend(
        self,
        tokens: TokenIds,
        positions: Positions,
        mask: Mask,
        cache: KVCache,
        column: Index | int,
    ) -> tuple[Tokens, KVCache]:
        """Run T text tokens after a cached prefix and write them into the cache from `column` on.

        Args:
          tokens: token ids.
          positions: their positions.
          mask: cache columns that each token reads, those of the new tokens included. A prompt
            token reads the whole prompt, a generated token reads itself and the tokens before it.
          cache: keys and values, with room for the new tokens.
          column: first column to write.

        Returns: hidden states and the updated cache.
        """
        stream = TokenStream(self.llm.embedder.encode(tokens), positions, mask)
        outputs, cache = self.llm({LANGUAGE: stream}, cache, column)
        return outputs[LANGUAGE], cache

    def predict_velocity(
        self,
        cache: KVCache,
        prefix_mask: ExpertKeyMask,
        state: State,
        x_t: Chunks,
        time: Float[Array, " B"],
    ) -> Chunks:
        """Return the velocity of one chunk; the expert reads the cache columns in `prefix_mask`."""
        x_t = x_t[:, None]
        step_mask = jnp.ones(x_t.shape[:3], bool)
        suffix = self.embed_suffix(state, x_t, time[:, None], prefix_mask, step_mask)
        outputs, _ = self.llm({EXPERT: suffix}, cache)
        return self._velocity(outputs[EXPERT], 1)[:, 0]


def init_params(
    model: VLA, seed: int = 0, loc: tuple[int, int] | None = None, places: str = "pair"
) -> Params:
    """Return random parameters.

    Args:
      model: the model.
      seed: seed of an `rbg` key, which compiles several times faster than JAX's default and is as
        good for this use.
      loc: (offset, count) of the location tokens. Their embeddings start as sine-cosine codes of
        their coordinates, so what the model learns about one place holds for its neighbours. Random
        embeddings would be a thousand unrelated words.
      places: notation of points, a name of `etcvla.etc.places.PLACES`.
    """
    cfg = model.config
    size = cfg.siglip.image_size
    batch = batch_lib.zeros(
        B=1, C=1, H=size, W=size, L=2, Q=cfg.state_dim, P=cfg.horizon, A=cfg.action_dim
    )
    x_t = None
    time = None
    if cfg.expert is not None:
        x_t = jnp.zeros((1, 1, cfg.horizon, cfg.action_dim))
        time = jnp.zeros((1, 1))
    key = jax.random.key(seed, impl="rbg")
    params = model.init(key, batch, jnp.zeros((1, 1), jnp.int32), x_t, time)["params"]
    lora.check_rules(cfg.adapters, params)
    if loc is not None:
        offset, count = loc
        codes = _location_codes(count, cfg.vlm.width, places)
        embedder = params["llm"]["embedder"]
        table = embedder["input_embedding"].at[offset : offset + count].set(codes)
        embedder["input_embedding"] = table
    return params


def image_index(num_tokens: int, cells: Int[Array, "B M"]) -> Int[Array, "B M"]:
    """Return the numbers of the image tokens whose patches contain cells of the image."""
    side = int(num_tokens**0.5)
    row, column = split_cell(cells)
    return row * side // GRID * side + column * side // GRID


def _location_codes(count: int, width: int, places: str) -> Float[Array, "N D"]:
    """Return sine-cosine codes of unit norm for the location tokens.

    The code of a cell is that of its row, then that of its column.
    """
    tokens = jnp.arange(count)
    if places == "cell":
        axes = split_cell(tokens)
        size = GRID
        min_period = 2**-3  # four cells; a period below two cells would be aliased
    else:
        axes = (tokens,)
        size = count
        min_period = 2**-5
    codes = [
        ops.sincos_embedding((axis + 0.5) / size, width // len(axes), min_period, 4.0)
        for axis in axes
    ]
    return jnp.concatenate(codes, axis=-1) * (2 / width) ** 0.5


def read_dtypes(params: Params, config: VLAConfig) -> Params:
    """Return the tree of dtypes in which the modules read the parameters.

    See `etcvla.models.mixed_precision`.
    """
    dtype_rules = [(_FLOAT32, jnp.dtype("float32")), (".*", jnp.dtype(config.dtype))]
    return rules.assign(dtype_rules, params, "dtypes", all_used=False)


def expand_image_mask(config: VLAConfig, image_mask: CameraMask) -> ImageMask:
    """Return the mask of image tokens from the mask of cameras."""
    return jnp.repeat(image_mask, config.siglip.tokens, axis=1)


def prefix_positions_and_mask(
    config: VLAConfig, image_token_mask: ImageMask, batch: Batch
) -> tuple[Int[Array, "B I+L"], Mask]:
    """Compute the positions of the prefix and its mask(s) bool[B, I + L, I + L]."""
    segment = batch["segment"]
    target = batch["target"]
    mask = ops.prefix_mask(image_token_mask, segment, target, config.image_attends_prompt)
    takes_position = image_token_mask
    if config.count_absent_cameras:
        takes_position = jnp.ones_like(image_token_mask)
    positions = ops.prefix_positions(takes_position, segment)
    causal = jnp.pad(target, ((0, 0), (image_token_mask.shape[1], 0)))
    return positions, layer_masks(config, mask, positions, positions, causal)


def layer_masks(
    config: VLAConfig,
    mask: AttentionMask,
    positions: Positions,
    key_positions: Int[Array, "B S"],
    causal: QueryMask,
) -> Mask:
    """Return the mask, or the masks of global and local layers if the model has local layers."""
    window = config.vlm.window
    if not window:
        return mask
    return mask, ops.local_mask(mask, positions, key_positions, causal, window)


def action_token_mask(batch: Batch) -> Bool[Array, "B K L"]:
    """Return the tokens of each action segment: its prompt and its FAST tokens."""
    segment = batch["segment"][:, None]
    return (segment == batch["action_segment"][..., None]) & (segment > 0)


def expert_key_mask(image_token_mask: ImageMask, batch: Batch) -> Bool[Array, "B K I+L"]:
    """Return the prefix columns that the expert reads for each action segment.

    These are the present image tokens and the segment's prompt, but not its FAST tokens.
    """
    prompt = action_token_mask(batch) & ~batch["target"][:, None]
    images = jnp.repeat(image_token_mask[:, None], prompt.shape[1], axis=1)
    return jnp.concatenate([images, prompt], axis=2)


def action_dim_mask(batch: Batch) -> Bool[Array, "B K 1 A"]:
    """Return the mask of the unpadded action dimensions.

    The padding is no target of the flow loss, so it must not be an input either.
    """
    return batch["action_mask"].any(axis=2, keepdims=True)


def find_target_positions(
    target: TextMask, count: int
) -> tuple[Int[Array, "B M"], Bool[Array, "B M"]]:
    """Find the first `count` targets of every row.

    Returns: their columns in order, and a mask of the real ones if a row has fewer.
    """
    is_target, positions = jax.lax.top_k(target.astype(jnp.int32), min(count, target.shape[1]))
    return positions, is_target > 0
