"""Gemma as one stack of layers that several token streams share, each with its own weights.

Stream 0 is the language model and stream 1 the action expert. They have the same depth, number of
heads and head width, and different model widths. The streams interact only in attention: a stream
reads its own keys and values and those of the streams before it, never those of later ones.
Parameters have the names of the released checkpoints; stream i > 0 has the suffix `_i`, as in
openpi.

Gemma 1 and Gemma 2 are supported. The additions of Gemma 2 (arXiv 2408.00118) are fields of
`GemmaConfig` that are off by default. Axes as in `etcvla.models.ops`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from etcvla.models import ops
from etcvla.models.lora import LoRA, Projection, Weight, dense, make_weight
from etcvla.models.scan import scan_layers

KVCache = tuple[Array, Array]  # keys and values of stream 0, each float[depth, B, S, K, H]
Mask = Array | tuple[Array, Array]  # bool[B, T, S] for all layers, or for (global, local) layers
PerStream = Sequence[Array | None]  # one array per stream, None for an absent stream


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
    """Sizes and options of one stream. All streams have equal depth, heads and head width."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    # Norms are scaled, shifted and gated by a condition (adaRMS of pi0.5).
    adaptive: bool = False
    # Queries are multiplied by the inverse square root of this number; 0: of head_dim.
    query_pre_attn_scalar: int = 0
    # Soft caps of the attention logits and of the output logits; 0: none.
    attn_softcap: float = 0.0
    final_softcap: float = 0.0
    # The outputs of attention and MLP are normalized before they are added to the residual.
    post_norms: bool = False
    # Split the MLP's width into this many parts, computed one after another to save memory. Used
    # only where layers are rematerialised.
    mlp_parts: int = 1
    # Number of keys that causal tokens read in local layers (the first, third, ...); 0: all layers
    # are global.
    window: int = 0

    def __post_init__(self):
        if self.mlp_dim % self.mlp_parts:
            raise ValueError(f"mlp_parts {self.mlp_parts} does not divide mlp_dim {self.mlp_dim}")


@flax.struct.dataclass
class TokenStream:
    """The input of one stream."""

    tokens: Float[Array, "B T D"]
    positions: Int[Array, "B T"]
    mask: Mask  # over the keys of the streams before it (or of the cache) and its own
    cond: Float[Array, "B T D"] | None = None  # condition of an adaptive stream


@flax.struct.dataclass
class LayerInputs:
    """The inputs that all layers share. Lists have one entry per stream, None if it is absent."""

    rope_tables: Sequence[ops.RopeTables | None]
    masks: Sequence[Mask | None]
    conds: PerStream
    write_at: Int[Array, ""]  # cache column of the first new token of stream 0
    gradient_scale: Float[Array, ""] | None


class RMSNorm(nn.Module):
    """RMS norm, plain or adaptive.

    A plain norm returns normed * (1 + scale) with a learned scale. An adaptive norm computes the
    scale, a shift and the gate of the residual from a condition.
    """

    adaptive: bool
    dtype: jnp.dtype
    lora: LoRA

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], cond: Float[Array, "B T D"] | None
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"] | None]:
        """Return the normalized `x` and the gate (None for a plain norm)."""
        width = x.shape[-1]
        normed = ops.rms_norm(x)
        if not self.adaptive:
            scale = self.param("scale", nn.initializers.zeros, (width,))
            return (normed * (1 + scale)).astype(self.dtype), None
        # Zeros make the expert start with plain norms and closed gates (adaLN-Zero).
        zeros = nn.initializers.zeros
        project = dense(
            cond.shape[-1], 3 * width, self.dtype, self.lora, name="Dense_0", init=zeros
        )
        modulation = project(cond).astype(jnp.float32)
        scale, shift, gate = jnp.split(modulation, 3, axis=-1)
        return (normed * (1 + scale) + shift).astype(self.dtype), gate.astype(self.dtype)


def add_residual(
    x: Float[Array, "B T D"], y: Float[Array, "B T D"], gate: Float[Array, "B T D"] | None
) -> Float[Array, "B T D"]:
    """Return x + y, or x + gate * y for an adaptive norm."""
    return x + y if gate is None else x + gate * y


class Attention(nn.Module):
    """Self-attention over all streams."""

    configs: Sequence[GemmaConfig]
    insulate: bool
    dtype: jnp.dtype
    lora: LoRA

    @nn.compact
    def __call__(
        self, xs: PerStream, cache: KVCache | None, is_local: Bool[Array, ""], shared: LayerInputs
    ) -> tuple[list[Array | None], KVCache]:
        """Return the output of each stream and the keys and values of stream 0."""
        queries = [None] * len(xs)
        keys = [None] * len(xs)
        values = [None] * len(xs)
        for i, x in enumerate(xs):
            if x is not None:
                queries[i], keys[i], values[i] = self._project(i, x, shared.rope_tables[i])
        if cache is not None:
            keys[0], values[0] = _update_cache(cache, keys[0], values[0], shared.write_at)
        outputs = [None] * len(xs)
        for i, query in enumerate(queries):
            if query is None:
                continue
            key = self._readable(i, keys, shared.gradient_scale)
            value = self._readable(i, values, shared.gradient_scale)
            mask = _mask_of_layer(shared.masks[i], is_local)
            self.sow("intermediates", f"attention_inputs_{i}", (query, key, mask))
            heads = ops.attend(query, key, value, mask, self.configs[i].attn_softcap)
            outputs[i] = self._merge_heads(i, heads)
        return outputs, (keys[0], values[0])

    def _readable(
        self, stream: int, tensors: PerStream, gradient_scale: Float[Array, ""] | None
    ) -> Float[Array, "B S K H"]:
        """Concatenate the keys (or values) of the earlier streams and of this one.

        The gradient to the earlier streams is scaled, or stopped with `insulate`.
        """
        earlier = [x for x in tensors[:stream] if x is not None]
        if gradient_scale is not None:
            earlier = [ops.scale_gradient(x, gradient_scale) for x in earlier]
        elif self.insulate:
            earlier = [jax.lax.stop_gradient(x) for x in earlier]
        return jnp.concatenate([*earlier, tensors[stream]], axis=1)

    def _project(
        self, stream: int, x: Float[Array, "B T D"], tables: ops.RopeTables
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """Compute the scaled queries, keys and values of one stream."""
        cfg = self.configs[stream]
        q = self._projection(
            _suffix("q_einsum", stream),
            "btd,ndh->btnh",
            (cfg.num_heads, cfg.width, cfg.head_dim),
            nn.initializers.lecun_normal(1, (0, 2)),
        )(x)
        k, v = self._projection(
            _suffix("kv_einsum", stream),
            "bsd,kdh->bskh",
            (2, cfg.num_kv_heads, cfg.width, cfg.head_dim),
            nn.initializers.lecun_normal(2, (1, 3), (0,)),
            split=True,
        )(x)
        scale = (cfg.query_pre_attn_scalar or cfg.head_dim) ** -0.5
        return ops.rope(q, tables) * scale, ops.rope(k, tables), v

    def _merge_heads(self, stream: int, heads: Float[Array, "B T N H"]) -> Float[Array, "B T D"]:
        """Project the outputs of the heads to the stream's width."""
        cfg = self.configs[stream]
        return self._projection(
            _suffix("attn_vec_einsum", stream),
            "btnh,nhd->btd",
            (cfg.num_heads, cfg.head_dim, cfg.width),
            nn.initializers.lecun_normal((0, 1), 2),
        )(heads)

    def _projection(
        self, name: str, equation: str, shape: tuple[int, ...], init: Callable, split: bool = False
    ) -> Projection:
        return Projection(
            equation, shape, self.dtype, self.lora, bias=False, split=split, init=init, name=name
        )


def _suffix(name: str, stream: int) -> str:
    """Return the name of a stream's parameter."""
    return name if stream == 0 else f"{name}_{stream}"


def _mask_of_layer(mask: Mask, is_local: Bool[Array, ""]) -> Bool[Array, "B T S"]:
    if isinstance(mask, tuple):
        global_mask, local_mask = mask
        return jnp.where(is_local, local_mask, global_mask)
    return mask


def _update_cache(
    cache: KVCache, k: Array | None, v: Array | None, write_at: Int[Array, ""]
) -> KVCache:
    """Write new keys and values of one layer, if any, into its cache from column `write_at`."""
    if k is None:
        return cache

    def _write(old, new):
        return jax.lax.dynamic_update_slice(old, new.astype(old.dtype), (0, write_at, 0, 0))

    old_k, old_v = cache
    return _write(old_k, k), _write(old_v, v)


class FeedForward(nn.Module):
    """The gated MLP: down(gelu(gate(x)) * up(x))."""

    config: GemmaConfig
    dtype: jnp.dtype
    lora: LoRA

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Return the output of the MLP."""
        cfg = self.config
        gating = make_weight(
            self,
            "gating_einsum",
            nn.initializers.lecun_normal(in_axis=1, out_axis=2, batch_axis=(0,)),
            (2, cfg.width, cfg.mlp_dim),
            self.dtype,
            self.lora,
        )
        linear = make_weight(
            self,
            "linear",
            nn.initializers.lecun_normal(),
            (cfg.mlp_dim, cfg.width),
            self.dtype,
            self.lora,
        )
        if cfg.mlp_parts == 1:
            return _gated_mlp(x, gating, linear)

        @jax.checkpoint
        def _add_part(total, i):
            gating_part = gating.part("f", i, cfg.mlp_parts)
            linear_part = linear.part("f", i, cfg.mlp_parts)
            return total + _gated_mlp(x, gating_part, linear_part), None

        total, _ = jax.lax.scan(_add_part, jnp.zeros_like(x), jnp.arange(cfg.mlp_parts))
        return total


def _gated_mlp(x: Float[Array, "B T D"], gating: Weight, linear: Weight) -> Float[Array, "B T D"]:
    gate = gating[0].einsum("btd,df->btf", x)
    up = gating[1].einsum("btd,df->btf", x)
    return linear.einsum("btf,fd->btd", nn.gelu(gate, approximate=True) * up)


class Block(nn.Module):
    """One layer of every stream."""

    configs: Sequence[GemmaConfig]
    insulate: bool
    dtype: jnp.dtype
    lora: LoRA

    @nn.compact
    def __call__(
        self, xs: PerStream, cache: KVCache | None, is_local: Bool[Array, ""], shared: LayerInputs
    ) -> tuple[list[Array | None], KVCache]:
        """Return the streams (the carry of the scan) and the keys and values of stream 0."""
        normed, gates = self._norm("pre_attention_norm", xs, shared.conds)
        attention = Attention(self.configs, self.insulate, self.dtype, self.lora, name="attn")
        outputs, cache = attention(normed, cache, is_local, shared)
        outputs = self._post_norm("post_attention_norm", outputs)
        xs = _map_streams(add_residual, xs, outputs, gates)

        normed, gates = self._norm("pre_ffw_norm", xs, shared.conds)
        outputs = self._post_norm("post_ffw_norm", self._feed_forward(normed))
        xs = _map_streams(add_residual, xs, outputs, gates)
        self.sow("intermediates", "streams", xs)
        return _map_streams(ops.shard_batch, xs), cache

    def _norm(
        self, name: str, xs: PerStream, conds: PerStream
    ) -> tuple[list[Array | None], list[Array | None]]:
        """Return the normalized streams and the gates of their residuals."""
        normed = [None] * len(xs)
        gates = [None] * len(xs)
        for i, x in enumerate(xs):
            if x is not None:
                norm = self._make_norm(name, i, self.configs[i].adaptive)
                normed[i], gates[i] = norm(x, conds[i])
        return normed, gates

    def _post_norm(self, name: str, xs: PerStream) -> list[Array | None]:
        """Normalize the streams that have `post_norms`."""
        out = list(xs)
        for i, x in enumerate(xs):
            if x is not None and self.configs[i].post_norms:
                out[i], _ = self._make_norm(name, i, adaptive=False)(x, None)
        return out

    def _make_norm(self, name: str, stream: int, adaptive: bool) -> RMSNorm:
        return RMSNorm(adaptive, self.dtype, self.lora, name=_suffix(name, stream))

    def _feed_forward(self, xs: PerStream) -> list[Array | None]:
        out = [None] * len(xs)
        for i, x in enumerate(xs):
            if x is not None:
                mlp = FeedForward(self.configs[i], self.dtype, self.lora, name=_suffix("mlp", i))
                out[i] = mlp(x)
        return out


def _map_streams(fn: Callable, xs: Sequence[Any], *others: Sequence[Any]) -> list[Any]:
    """Apply `fn` to the entries of each present stream; an absent stream stays None."""
    rows = zip(xs, *others, strict=True)
    return [None if row[0] is None else fn(*row) for row in rows]


class Embedder(nn.Module):
    """The token table, which also computes the logits."""

    vocab_size: int
    width: int
    dtype: jnp.dtype

    def setup(self):
        self.table = self.param(
            "input_embedding",
            nn.initializers.normal(self.width**-0.5),
            (self.vocab_size, self.width),
        )

    def encode(self, tokens: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        """Return the embeddings, multiplied by sqrt(D)."""
        return self.table.astype(self.dtype)[tokens] * jnp.asarray(self.width**0.5, self.dtype)

    def decode(self, x: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Return the logits in float32."""
        table = self.table.astype(self.dtype)
        return jnp.einsum("...d,vd->...v", x, table, preferred_element_type=jnp.float32)


class Gemma(nn.Module):
    """The stack of layers with its token table and final norms."""

    configs: Sequence[GemmaConfig]
    vocab_size: int
    insulate: bool
    dtype: jnp.dtype
    lora: LoRA
    remat: str
    unroll: int

    def setup(self):
        depths = {cfg.depth for cfg in self.configs}
        heads = {(cfg.num_heads, cfg.num_kv_heads, cfg.head_dim) for cfg in self.configs}
        if len(depths) > 1 or len(heads) > 1:
            raise ValueError(f"streams must agree in depth and heads, got {self.configs}")
        configs = self.configs
        # Splitting the MLP saves memory only with rematerialisation. Where tensor parallelism
        # splits the MLP already, it would cost a gather.
        if self.remat == "none" or ops.mesh_size("tensor") > 1:
            configs = [dataclasses.replace(cfg, mlp_parts=1) for cfg in configs]
        self.embedder = Embedder(self.vocab_size, configs[0].width, self.dtype)
        layers = scan_layers(
            Block,
            configs[0].depth,
            in_axes=(0, 0, nn.broadcast),
            remat=self.remat,
            unroll=self.unroll,
        )
        self.layers = layers(configs, self.insulate, self.dtype, self.lora)
        self.final_norms = [
            RMSNorm(cfg.adaptive, self.dtype, self.lora, name=_suffix("final_norm", i))
            for i, cfg in enumerate(configs)
        ]

    def __call__(
        self,
        streams: Sequence[TokenStream | None],
        cache: KVCache | None = None,
        write_at: Int[Array, ""] | int = 0,
        gradient_scale: Float[Array, ""] | None = None,
    ) -> tuple[list[Array | None], KVCache]:
        """Run the streams through all layers.

        Args:
          streams: one entry per stream, None for an absent one. The entry of a stream that this
            model does not have (the expert of a language model alone) must be None and is ignored.
          cache: keys and values of stream 0. New tokens of stream 0 are written into it.
          write_at: first cache column to write.
          gradient_scale: factor of the gradient from a stream to the streams before it; None: 0
            with `insulate`, else 1.

        Returns: for each stream float[B, T, D] after its final norm, and the keys and values of
          stream 0.
        """
        streams = streams[: len(self.configs)]
        config = self.configs[0]
        shared = LayerInputs(
            rope_tables=_map_streams(
                lambda stream: ops.rope_tables(stream.positions, config.head_dim), streams
            ),
            masks=_map_streams(lambda stream: stream.mask, streams),
            conds=_map_streams(lambda stream: stream.cond, streams),
            write_at=jnp.asarray(write_at, jnp.int32),
            gradient_scale=gradient_scale,
        )
        is_local = jnp.arange(config.depth) % 2 == 0
        xs = _map_streams(lambda stream: ops.shard_batch(stream.tokens.astype(self.dtype)), streams)
        xs, cache = self.layers(xs, cache, is_local, shared)
        outputs = [None] * len(xs)
        for i, x in enumerate(xs):
            if x is not None:
                outputs[i], _ = self.final_norms[i](x, shared.conds[i])
        return outputs, cache

    def embed(self, tokens: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        """Return the embeddings of the tokens, multiplied by sqrt(D)."""
        return self.embedder.encode(tokens)

    def logits(self, x: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Return the float32 logits of the next token from hidden states."""
        logits = ops.softcap(self.embedder.decode(x), self.configs[0].final_softcap)
        return ops.shard_batch(logits, "tensor")
