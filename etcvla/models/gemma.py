"""Gemma as one stack of layers that several token streams share, each with its own weights.

Stream 0 is the language model and stream 1 the action expert. They have the same depth, number of
heads and head width, and different model widths. The streams interact only in attention: a stream
reads its own keys and values and those of the streams before it, never those of later ones.
Inputs and outputs are dicts from the number of a stream to its array; a stream may be absent.
Parameters have the names of the released checkpoints; stream i > 0 has the suffix `_i`, as in
openpi.

Gemma 1 and Gemma 2 are supported. The additions of Gemma 2 (arXiv 2408.00118) are fields of
`GemmaConfig` that are off by default. Axes as in `etcvla.models.types`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from etcvla.models import ops
from etcvla.models.lora import ModuleOptions, Projection, Weight, dense, make_weight
from etcvla.models.scan import scan_layers
from etcvla.models.types import (
    Flag,
    Index,
    Keys,
    KVCache,
    Logits,
    Mask,
    Positions,
    Queries,
    RopeTables,
    Scalar,
    Shape,
    TokenIds,
    Tokens,
    Vectors,
)
from etcvla.names import lookup

LANGUAGE = 0  # number of the language model's stream
EXPERT = 1  # number of the action expert's stream
Streams = Mapping[int, Array]  # one array per present stream
LayerKV = tuple[Keys, Keys]  # keys and values of one layer


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
    # only where layers are rematerialized.
    mlp_parts: int = 1
    # Number of keys that causal tokens read in local layers (the first, third, ...); 0: all layers
    # are global.
    window: int = 0
    # Of the gate in the MLPs, a name of `ops.ACTIVATIONS`.
    activation: str = "gelu_tanh"

    def __post_init__(self):
        lookup(ops.ACTIVATIONS, self.activation, "activation of a stream")
        if self.mlp_dim % self.mlp_parts:
            raise ValueError(f"mlp_parts {self.mlp_parts} does not divide mlp_dim {self.mlp_dim}")


@flax.struct.dataclass
class TokenStream:
    """The input of one stream."""

    tokens: Tokens
    positions: Positions
    mask: Mask  # over the keys of the streams before it (or of the cache) and its own
    cond: Tokens | None = None  # condition of an adaptive stream


@flax.struct.dataclass
class LayerInputs:
    """The inputs that all layers share. Dicts have one entry per present stream."""

    rope_tables: Mapping[int, RopeTables]
    masks: Mapping[int, Mask]
    conds: Mapping[int, Tokens | None]
    write_at: Index  # cache column of the first new token of stream 0
    gradient_scale: Scalar | None


class RMSNorm(nn.Module):
    """RMS norm, plain or adaptive.

    A plain norm returns normed * (1 + scale) with a learned scale. An adaptive norm computes the
    scale, a shift and the gate of the residual from a condition.
    """

    adaptive: bool
    options: ModuleOptions

    @nn.compact
    def __call__(self, x: Tokens, cond: Tokens | None) -> tuple[Tokens, Tokens | None]:
        """Return the normalized `x` and the gate (None for a plain norm)."""
        dtype = self.options.dtype
        width = x.shape[-1]
        normed = ops.rms_norm(x)
        if not self.adaptive:
            scale = self.param("scale", nn.initializers.zeros, (width,))
            return (normed * (1 + scale)).astype(dtype), None
        # Zeros make the expert start with plain norms and closed gates (adaLN-Zero).
        zeros = nn.initializers.zeros
        project = dense(cond.shape[-1], 3 * width, self.options, name="Dense_0", init=zeros)
        modulation = project(cond).astype(jnp.float32)
        scale, shift, gate = jnp.split(modulation, 3, axis=-1)
        return (normed * (1 + scale) + shift).astype(dtype), gate.astype(dtype)


class Attention(nn.Module):
    """Self-attention over all streams."""

    configs: Sequence[GemmaConfig]
    insulate: bool
    options: ModuleOptions

    @nn.compact
    def __call__(
        self, xs: Streams, cache: LayerKV | None, is_local: Flag, shared: LayerInputs
    ) -> tuple[Streams, LayerKV]:
        """Return the output of each stream and the keys and values of stream 0."""
        queries = {}
        kvs = {}
        for i, x in xs.items():
            queries[i], kvs[i] = self._project(i, x, shared.rope_tables[i])
        if cache is not None:
            kvs[LANGUAGE] = _update_cache(cache, kvs.get(LANGUAGE), shared.write_at)
        outputs = {}
        for i, query in queries.items():
            key, value = self._readable(i, kvs, shared.gradient_scale)
            mask = _mask_of_layer(shared.masks[i], is_local)
            self.sow("intermediates", f"attention_inputs_{i}", (query, key, mask))
            heads = ops.attend(query, key, value, mask, self.configs[i].attn_softcap)
            outputs[i] = self._merge_heads(i, heads)
        return outputs, kvs[LANGUAGE]

    def _readable(
        self, stream: int, kvs: Mapping[int, LayerKV], gradient_scale: Scalar | None
    ) -> LayerKV:
        """Concatenate the keys and values of the earlier streams and of this one.

        The gradient to the earlier streams is scaled, or stopped with `insulate`.
        """
        earlier = [kvs[i] for i in range(stream) if i in kvs]
        if gradient_scale is not None:
            earlier = jax.tree.map(lambda x: ops.scale_gradient(x, gradient_scale), earlier)
        elif self.insulate:
            earlier = jax.lax.stop_gradient(earlier)
        return jax.tree.map(lambda *xs: jnp.concatenate(xs, axis=1), *earlier, kvs[stream])

    def _project(self, stream: int, x: Tokens, tables: RopeTables) -> tuple[Queries, LayerKV]:
        """Compute the scaled queries, and the keys and values, of one stream."""
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
        return ops.rope(q, tables) * scale, (ops.rope(k, tables), v)

    def _merge_heads(self, stream: int, heads: Queries) -> Tokens:
        """Project the outputs of the heads to the stream's width."""
        cfg = self.configs[stream]
        return self._projection(
            _suffix("attn_vec_einsum", stream),
            "btnh,nhd->btd",
            (cfg.num_heads, cfg.head_dim, cfg.width),
            nn.initializers.lecun_normal((0, 1), 2),
        )(heads)

    def _projection(
        self, name: str, equation: str, shape: Shape, init: Callable, split: bool = False
    ) -> Projection:
        return Projection(
            equation, shape, self.options, bias=False, split=split, init=init, name=name
        )


def _suffix(name: str, stream: int) -> str:
    """Return the name of a stream's parameter."""
    return name if stream == LANGUAGE else f"{name}_{stream}"


def _mask_of_layer(mask: Mask, is_local: Flag) -> Array:
    if isinstance(mask, tuple):
        global_mask, local_mask = mask
        return jnp.where(is_local, local_mask, global_mask)
    return mask


def _update_cache(cache: LayerKV, new: LayerKV | None, write_at: Index) -> LayerKV:
    """Write new keys and values of one layer, if any, into its cache from column `write_at`."""
    if new is None:
        return cache

    def _write(old, new):
        return jax.lax.dynamic_update_slice(old, new.astype(old.dtype), (0, write_at, 0, 0))

    return jax.tree.map(_write, cache, new)


class FeedForward(nn.Module):
    """The gated MLP: down(activation(gate(x)) * up(x))."""

    config: GemmaConfig
    options: ModuleOptions

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        """Return the output of the MLP."""
        cfg = self.config
        gating = make_weight(
            self,
            "gating_einsum",
            nn.initializers.lecun_normal(in_axis=1, out_axis=2, batch_axis=(0,)),
            (2, cfg.width, cfg.mlp_dim),
        )
        linear = make_weight(
            self,
            "linear",
            nn.initializers.lecun_normal(),
            (cfg.mlp_dim, cfg.width),
        )
        activation = ops.ACTIVATIONS[cfg.activation]
        if cfg.mlp_parts == 1:
            return _gated_mlp(x, gating, linear, activation)

        @jax.checkpoint
        def _add_part(total, i):
            gating_part = gating.part("f", i, cfg.mlp_parts)
            linear_part = linear.part("f", i, cfg.mlp_parts)
            return total + _gated_mlp(x, gating_part, linear_part, activation), None

        total, _ = jax.lax.scan(_add_part, jnp.zeros_like(x), jnp.arange(cfg.mlp_parts))
        return total


def _gated_mlp(x: Tokens, gating: Weight, linear: Weight, activation: Callable) -> Tokens:
    gate = gating[0].einsum("btd,df->btf", x)
    up = gating[1].einsum("btd,df->btf", x)
    return linear.einsum("btf,fd->btd", activation(gate) * up)


class Block(nn.Module):
    """One layer of every stream."""

    configs: Sequence[GemmaConfig]
    insulate: bool
    options: ModuleOptions

    @nn.compact
    def __call__(
        self, xs: Streams, cache: LayerKV | None, is_local: Flag, shared: LayerInputs
    ) -> tuple[Streams, LayerKV]:
        """Return the streams (the carry of the scan) and the keys and values of stream 0."""
        attention = Attention(self.configs, self.insulate, self.options, name="attn")
        normed, gates = self._norm("pre_attention_norm", xs, shared.conds)
        outputs, cache = attention(normed, cache, is_local, shared)
        xs = self._add("post_attention_norm", xs, outputs, gates)

        normed, gates = self._norm("pre_ffw_norm", xs, shared.conds)
        outputs = {}
        for i, x in normed.items():
            mlp = FeedForward(self.configs[i], self.options, name=_suffix("mlp", i))
            outputs[i] = mlp(x)
        xs = self._add("post_ffw_norm", xs, outputs, gates)
        self.sow("intermediates", "streams", xs)
        return jax.tree.map(ops.shard_batch, xs), cache

    def _norm(
        self, name: str, xs: Streams, conds: Mapping[int, Tokens | None]
    ) -> tuple[Streams, Mapping[int, Tokens | None]]:
        """Return the normalized streams and the gates of their residuals."""
        normed = {}
        gates = {}
        for i, x in xs.items():
            adaptive = self.configs[i].adaptive
            norm = RMSNorm(adaptive, self.options, name=_suffix(name, i))
            normed[i], gates[i] = norm(x, conds[i])
        return normed, gates

    def _add(
        self, norm: str, xs: Streams, ys: Streams, gates: Mapping[int, Tokens | None]
    ) -> Streams:
        """Add `ys` to the residual streams `xs`.

        The norm `norm` (with `post_norms`) and then the gate of an adaptive norm apply to `ys`.
        """
        total = {}
        for i, y in ys.items():
            if self.configs[i].post_norms:
                y, _ = RMSNorm(False, self.options, name=_suffix(norm, i))(y, None)
            total[i] = xs[i] + (y if gates[i] is None else gates[i] * y)
        return total


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

    def encode(self, tokens: TokenIds) -> Tokens:
        """Return the embeddings, multiplied by sqrt(D)."""
        return self.table.astype(self.dtype)[tokens] * jnp.asarray(self.width**0.5, self.dtype)

    def decode(self, x: Vectors, trained_rows: Bool[Array, " V"] | None = None) -> Logits:
        """Return the logits in float32.

        Args:
          trained_rows: rows of the table that get a gradient from the logits; None: all.
        """
        table = self.table.astype(self.dtype)
        if trained_rows is not None:
            table = jnp.where(trained_rows[:, None], table, jax.lax.stop_gradient(table))
        return jnp.einsum("...d,vd->...v", x, table, preferred_element_type=jnp.float32)


class Gemma(nn.Module):
    """The stack of layers with its token table and final norms."""

    configs: Sequence[GemmaConfig]
    vocab_size: int
    insulate: bool
    options: ModuleOptions

    def setup(self):
        """Create the modules."""
        configs = self.configs
        shapes = {(cfg.depth, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim) for cfg in configs}
        if len(shapes) > 1:
            raise ValueError(f"streams must agree in depth and heads, got {configs}")
        # Splitting the MLP saves memory only with rematerialization. Where tensor parallelism
        # splits the MLP already, it would cost a gather.
        if self.options.remat == "none" or ops.mesh_size("tensor") > 1:
            configs = [dataclasses.replace(cfg, mlp_parts=1) for cfg in configs]
        self.embedder = Embedder(self.vocab_size, configs[0].width, self.options.dtype)
        layers = scan_layers(
            Block,
            configs[0].depth,
            in_axes=(0, 0, nn.broadcast),
            options=self.options,
        )
        self.layers = layers(configs, self.insulate, self.options)
        self.final_norms = [
            RMSNorm(cfg.adaptive, self.options, name=_suffix("final_norm", i))
            for i, cfg in enumerate(configs)
        ]

    def __call__(
        self,
        streams: Mapping[int, TokenStream],
        cache: KVCache | None = None,
        write_at: Index | int = 0,
        gradient_scale: Scalar | None = None,
    ) -> tuple[Streams, KVCache]:
        """Run the streams through all layers.

        Args:
          streams: the present streams by number.
          cache: keys and values of stream 0. New tokens of stream 0 are written into it.
          write_at: first cache column to write.
          gradient_scale: factor of the gradient from a stream to the streams before it; None: 0
            with `insulate`, else 1.

        Returns: for each stream float[B, T, D] after its final norm, and the keys and values of
          stream 0.
        """
        config = self.configs[LANGUAGE]
        rope_tables = {}
        xs = {}
        for i, stream in streams.items():
            rope_tables[i] = ops.rope_tables(stream.positions, config.head_dim)
            xs[i] = ops.shard_batch(stream.tokens.astype(self.options.dtype))
        shared = LayerInputs(
            rope_tables=rope_tables,
            masks={i: stream.mask for i, stream in streams.items()},
            conds={i: stream.cond for i, stream in streams.items()},
            write_at=jnp.asarray(write_at, jnp.int32),
            gradient_scale=gradient_scale,
        )
        is_local = jnp.arange(config.depth) % 2 == 0
        xs, cache = self.layers(xs, cache, is_local, shared)
        outputs = {}
        for i, x in xs.items():
            outputs[i], _ = self.final_norms[i](x, shared.conds[i])
        return outputs, cache

    def logits(self, x: Vectors, trained_rows: Bool[Array, " V"] | None = None) -> Logits:
        """Return the float32 logits of the next token from hidden states.

        Args:
          trained_rows: rows of the token table that get a gradient from the logits; None: all.
        """
        logits = self.embedder.decode(x, trained_rows)
        logits = ops.softcap(logits, self.configs[LANGUAGE].final_softcap)
        return ops.shard_batch(logits, "tensor")
