"""Gemma as a stack that several token streams share, each with weights of its own.

Stream 0 is the language model, stream 1 the action expert: same depth, heads and head width, other width. A stream
attends to its own keys and to those of the streams before it, never to later ones; that is all that joins them. Names
are those of the released checkpoints; stream i > 0 carries the suffix `_i` (as openpi has it).

Gemma 1 and Gemma 2 are covered: what the second adds (arXiv 2408.00118) are fields of `GemmaConfig` that are off by
default.

Axes as in `etcvla.models.ops`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from etcvla.models import ops
from etcvla.models.lora import LoRA, Projection, dense, make_weight
from etcvla.models.scan import scan_layers

KVCache = tuple[jax.Array, jax.Array]  # keys and values of stream 0: [depth, B, S, K, H] each
Mask = (
    jax.Array | tuple[jax.Array, jax.Array]
)  # bool[B, T, S] of all layers, or of (global, local) layers


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
    """Sizes and switches of one stream. All streams agree in depth, num_heads, num_kv_heads and head_dim."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    adaptive: bool = False  # norms scaled, shifted and gated by a condition (adaRMS of pi0.5)
    query_pre_attn_scalar: int = 0  # queries are scaled by its inverse root; 0: head_dim
    attn_softcap: float = 0.0  # soft cap of attention logits; 0: none
    final_softcap: float = 0.0  # soft cap of the output's logits; 0: none
    post_norms: bool = (
        False  # attention and MLP outputs are normed too, before they join the residual
    )
    mlp_parts: int = (
        1  # that the MLP's width is computed in, one after another, where layers are rematerialised
    )
    window: int = 0  # keys that causal tokens see in local layers (the first, third, ..); 0: no layer is local

    def __post_init__(self):
        if self.mlp_dim % self.mlp_parts:
            raise ValueError(f"mlp_parts {self.mlp_parts} does not divide mlp_dim {self.mlp_dim}")


def _suffix(name: str, stream: int) -> str:
    return name if stream == 0 else f"{name}_{stream}"


class RMSNorm(nn.Module):
    """Plain: normed * (1 + scale). Adaptive: scale, shift and the residual's gate come from the condition.

    Returns (float[B, T, D], gate float[B, T, D] or None).
    """

    adaptive: bool
    dtype: jnp.dtype
    lora: LoRA

    @nn.compact
    def __call__(self, x, cond):
        normed = ops.rms_norm(x)
        if not self.adaptive:
            scale = self.param("scale", nn.initializers.zeros, (x.shape[-1],))
            return (normed * (1 + scale)).astype(self.dtype), None
        # Zero-initialised: the expert starts as plain norms with closed gates, which adaLN-Zero found to train best.
        modulation = dense(
            cond.shape[-1],
            3 * x.shape[-1],
            self.dtype,
            self.lora,
            name="Dense_0",
            init=nn.initializers.zeros,
        )(cond)
        scale, shift, gate = jnp.split(modulation.astype(jnp.float32), 3, axis=-1)
        return (normed * (1 + scale) + shift).astype(self.dtype), gate.astype(self.dtype)


def add_residual(x: jax.Array, y: jax.Array, gate: jax.Array | None) -> jax.Array:
    """x + y, or x + gate * y under an adaptive norm."""
    return x + y if gate is None else x + gate * y


class Attention(nn.Module):
    """One attention over all streams."""

    configs: Sequence[GemmaConfig]
    insulate: bool
    dtype: jnp.dtype
    lora: LoRA

    @nn.compact
    def __call__(self, xs, turns, masks, cache, write_at, gradient_scale, local):
        q, k, v = zip(
            *[self._project(i, x, p) for i, (x, p) in enumerate(zip(xs, turns, strict=True))],
            strict=True,
        )
        k, v = list(k), list(v)
        if cache is not None:
            k[0], v[0] = _into_cache(cache, k[0], v[0], write_at)
        out = []
        for i, x in enumerate(xs):
            if x is None:
                out.append(None)
                continue
            keys, values = [self._visible(i, tensors, gradient_scale) for tensors in (k, v)]
            mask = _mask_of_layer(masks[i], local)
            self.sow("intermediates", f"attention_inputs_{i}", (q[i], keys, mask))
            read = ops.attend(q[i], keys, values, mask, self.configs[i].attn_softcap)
            out.append(self._merge(i, read))
        return out, (k[0], v[0])

    def _visible(self, stream, tensors, gradient_scale):
        """Keys (or values) that a stream reads: those before it, whose gradient `insulate` stops, and its own."""
        before = [t for t in tensors[:stream] if t is not None]
        if gradient_scale is not None:
            before = [ops.scale_gradient(t, gradient_scale) for t in before]
        elif self.insulate:
            before = [jax.lax.stop_gradient(t) for t in before]
        return jnp.concatenate([*before, tensors[stream]], axis=1)

    def _project(self, stream, x, turn):
        if x is None:
            return None, None, None
        cfg = self.configs[stream]
        q = self._einsum(
            "q_einsum", stream, "btd,ndh->btnh", (cfg.num_heads, cfg.width, cfg.head_dim), 1, (0, 2)
        )(x)
        k, v = self._einsum(
            "kv_einsum",
            stream,
            "bsd,kdh->bskh",
            (2, cfg.num_kv_heads, cfg.width, cfg.head_dim),
            2,
            (1, 3),
            (0,),
            split=True,
        )(x)
        scale = (cfg.query_pre_attn_scalar or cfg.head_dim) ** -0.5
        return ops.rope(q, turn) * scale, ops.rope(k, turn), v

    def _merge(self, stream, heads):
        cfg = self.configs[stream]
        shape = (cfg.num_heads, cfg.head_dim, cfg.width)
        return self._einsum("attn_vec_einsum", stream, "btnh,nhd->btd", shape, (0, 1), 2)(heads)

    def _einsum(self, name, stream, equation, shape, *fans, split=False):
        return Projection(
            equation,
            shape,
            self.dtype,
            self.lora,
            bias=False,
            split=split,
            name=_suffix(name, stream),
            init=nn.initializers.lecun_normal(*fans),
        )


def _mask_of_layer(mask: Mask, local: jax.Array) -> jax.Array:
    return jnp.where(local, mask[1], mask[0]) if isinstance(mask, tuple) else mask


def _into_cache(
    cache: KVCache, k: jax.Array | None, v: jax.Array | None, write_at: jax.Array
) -> KVCache:
    """The cached keys and values of one layer, with new ones (if any) written from column `write_at` on."""
    if k is None:
        return cache
    return tuple(
        jax.lax.dynamic_update_slice(old, new.astype(old.dtype), (0, write_at, 0, 0))
        for old, new in zip(cache, (k, v), strict=True)
    )


class FeedForward(nn.Module):
    """Gated gelu: down(gelu(gate(x)) * up(x))."""

    config: GemmaConfig
    dtype: jnp.dtype
    lora: LoRA

    @nn.compact
    def __call__(self, x):
        cfg, how = self.config, (self.dtype, self.lora)
        init = nn.initializers.lecun_normal(in_axis=1, out_axis=2, batch_axis=(0,))
        gating = make_weight(self, "gating_einsum", init, (2, cfg.width, cfg.mlp_dim), *how)
        linear = make_weight(
            self, "linear", nn.initializers.lecun_normal(), (cfg.mlp_dim, cfg.width), *how
        )
        if cfg.mlp_parts == 1:
            return _gated(x, gating, linear)

        @jax.checkpoint
        def add(y, i):
            return y + _gated(
                x, gating.part("f", i, cfg.mlp_parts), linear.part("f", i, cfg.mlp_parts)
            ), None

        return jax.lax.scan(add, jnp.zeros_like(x), jnp.arange(cfg.mlp_parts))[0]


def _gated(x, gating, linear):
    gate, up = (gating[i].einsum("btd,df->btf", x) for i in range(2))
    return linear.einsum("btf,fd->btd", nn.gelu(gate, approximate=True) * up)


class Block(nn.Module):
    """One layer of every stream. The carry is the streams; the output is this layer's keys and values of stream 0."""

    configs: Sequence[GemmaConfig]
    insulate: bool
    dtype: jnp.dtype
    lora: LoRA

    @nn.compact
    def __call__(self, xs, cache, local, turns, masks, conds, write_at, gradient_scale):
        normed, gates = self._norm("pre_attention_norm", xs, conds)
        attended, cache = Attention(
            self.configs, self.insulate, self.dtype, self.lora, name="attn"
        )(normed, turns, masks, cache, write_at, gradient_scale, local)
        attended = self._post_norm("post_attention_norm", attended)
        xs = [
            _map(add_residual, x, y, gate) for x, y, gate in zip(xs, attended, gates, strict=True)
        ]
        normed, gates = self._norm("pre_ffw_norm", xs, conds)
        fed = [
            _map(FeedForward(cfg, self.dtype, self.lora, name=_suffix("mlp", i)), y)
            for i, (cfg, y) in enumerate(zip(self.configs, normed, strict=True))
        ]
        fed = self._post_norm("post_ffw_norm", fed)
        xs = [_map(add_residual, x, y, gate) for x, y, gate in zip(xs, fed, gates, strict=True)]
        self.sow("intermediates", "streams", xs)
        return [_map(ops.shard_batch, x) for x in xs], cache

    def _norm(self, name, xs, conds):
        pairs = [
            (None, None)
            if x is None
            else RMSNorm(cfg.adaptive, self.dtype, self.lora, name=_suffix(name, i))(x, cond)
            for i, (cfg, x, cond) in enumerate(zip(self.configs, xs, conds, strict=True))
        ]
        return tuple(zip(*pairs, strict=True))

    def _post_norm(self, name, ys):
        return [
            y
            if y is None or not cfg.post_norms
            else RMSNorm(False, self.dtype, self.lora, name=_suffix(name, i))(y, None)[0]
            for i, (cfg, y) in enumerate(zip(self.configs, ys, strict=True))
        ]


def _map(fn, x, *args):
    return None if x is None else fn(x, *args)


class Embedder(nn.Module):
    """Token table; the same table reads out the logits."""

    vocab_size: int
    width: int
    dtype: jnp.dtype

    def setup(self):
        self.table = self.param(
            "input_embedding",
            nn.initializers.normal(self.width**-0.5),
            (self.vocab_size, self.width),
        )

    def encode(self, tokens):
        return self.table.astype(self.dtype)[tokens] * jnp.asarray(self.width**0.5, self.dtype)

    def decode(self, x):
        return jnp.einsum(
            "...d,vd->...v", x, self.table.astype(self.dtype), preferred_element_type=jnp.float32
        )


class Gemma(nn.Module):
    """Token streams through the shared stack."""

    configs: Sequence[GemmaConfig]
    vocab_size: int
    insulate: bool
    dtype: jnp.dtype
    lora: LoRA
    remat: str
    unroll: int

    def setup(self):
        depth = {cfg.depth for cfg in self.configs}
        heads = {(cfg.num_heads, cfg.num_kv_heads, cfg.head_dim) for cfg in self.configs}
        if len(depth) > 1 or len(heads) > 1:
            raise ValueError(f"streams must agree in depth and heads, got {self.configs}")
        # Parts save memory only where they are computed again, and cost a gather where each device has a part already.
        whole = self.remat == "none" or ops.mesh_size("tensor") > 1
        configs = [
            dataclasses.replace(cfg, mlp_parts=1 if whole else cfg.mlp_parts)
            for cfg in self.configs
        ]
        self.embedder = Embedder(self.vocab_size, self.configs[0].width, self.dtype)
        self.layers = scan_layers(
            Block,
            self.configs[0].depth,
            in_axes=(0, 0, *(nn.broadcast,) * 5),
            remat=self.remat,
            unroll=self.unroll,
        )(configs, self.insulate, self.dtype, self.lora)
        self.final_norms = [
            RMSNorm(cfg.adaptive, self.dtype, self.lora, name=_suffix("final_norm", i))
            for i, cfg in enumerate(self.configs)
        ]

    def __call__(
        self,
        xs: Sequence[Array | None],
        positions: Sequence[Array | None],
        masks: Sequence[Mask | None],
        conds: Sequence[Array | None],
        cache: KVCache | None = None,
        write_at: Array | int = 0,
        gradient_scale: Array | None = None,
    ) -> tuple[list[Array | None], KVCache]:
        """Runs the streams.

        Args:
          xs: per stream float[B, T, D], or None where the stream is absent. (Streams that the stack has not, as the
            expert's where there is none, are left out of all arguments.)
          positions: per stream int[B, T].
          masks: per stream bool[B, T, S], S the keys of the streams before it (or the cache) and its own; a pair of
            them, for global and for local layers, where these differ.
          conds: per adaptive stream float[B, T, D], else None.
          cache: keys and values of stream 0; new tokens of stream 0 are written from column `write_at` on.
          gradient_scale: the share of a stream's gradient that reaches the streams before it; None: all or, insulated, nothing.

        Returns: per stream float[B, T, D] after its final norm, and stream 0's keys and values.
        """
        xs, positions, masks, conds = (
            part[: len(self.configs)] for part in (xs, positions, masks, conds)
        )
        xs = [_map(lambda x: ops.shard_batch(x.astype(self.dtype)), x) for x in xs]
        local = jnp.arange(self.configs[0].depth) % 2 == 0
        turns = [_map(ops.rope_tables, p, self.configs[0].head_dim) for p in positions]
        xs, cache = self.layers(
            xs, cache, local, turns, masks, conds, jnp.asarray(write_at, jnp.int32), gradient_scale
        )
        return [
            _map(lambda x, n, c: n(x, c)[0], x, norm, cond)
            for x, norm, cond in zip(xs, self.final_norms, conds, strict=True)
        ], cache

    def embed(self, tokens: Array) -> Array:
        """int[...] to float[..., D], scaled by sqrt(D)."""
        return self.embedder.encode(tokens)

    def logits(self, x: Array) -> Array:
        """float[..., D] to float32[..., V]."""
        return ops.shard_batch(
            ops.softcap(self.embedder.decode(x), self.configs[0].final_softcap), "tensor"
        )
