"""SigLIP image tower: a ViT without class token or pooling. Parameter names and stacking are big_vision's.

Axes as in `etcvla.models.ops`.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from etcvla.models import ops
from etcvla.models.lora import LoRA, Projection, dense, make_weight
from etcvla.models.scan import scan_layers


@dataclasses.dataclass(frozen=True)
class SigLIPConfig:
    """Sizes of the tower."""

    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    patch: int  # pixels, the side of a square patch
    image_size: int  # pixels, the side of the square image

    @property
    def tokens(self) -> int:
        """Image tokens a camera."""
        return (self.image_size // self.patch) ** 2

    def __post_init__(self):
        if self.image_size % self.patch:
            raise ValueError(
                f"siglip.image_size {self.image_size} is not a multiple of patch {self.patch}"
            )
        if self.width % self.num_heads:
            raise ValueError(
                f"siglip.width {self.width} is not a multiple of num_heads {self.num_heads}"
            )
        if self.width % 4:
            raise ValueError(
                f"siglip.width {self.width} is not a multiple of 4, as its position codes must be"
            )


class MlpBlock(nn.Module):
    config: SigLIPConfig
    dtype: jnp.dtype
    lora: LoRA

    @nn.compact
    def __call__(self, x):
        width, mlp_dim = self.config.width, self.config.mlp_dim
        hidden = nn.gelu(
            dense(width, mlp_dim, self.dtype, self.lora, name="Dense_0")(x), approximate=True
        )
        return dense(mlp_dim, width, self.dtype, self.lora, name="Dense_1")(hidden)


class MultiHeadDotProductAttention(nn.Module):
    """Every token reads every token. The name is the one that released checkpoints hold."""

    config: SigLIPConfig
    dtype: jnp.dtype
    lora: LoRA

    @nn.compact
    def __call__(self, x):
        width, heads = self.config.width, self.config.num_heads
        head_dim = width // heads

        def project(name, equation, shape, in_axis, out_axis):
            return Projection(
                equation,
                shape,
                self.dtype,
                self.lora,
                name=name,
                init=nn.initializers.lecun_normal(in_axis, out_axis),
            )

        q, k, v = (
            project(name, "btd,dnh->btnh", (width, heads, head_dim), 0, (1, 2))(x)
            for name in ("query", "key", "value")
        )
        read = ops.attend(q * head_dim**-0.5, k, v)
        return project("out", "btnh,nhd->btd", (heads, head_dim, width), (0, 1), 2)(read)


class EncoderBlock(nn.Module):
    """Pre-norm transformer layer, both ways."""

    config: SigLIPConfig
    dtype: jnp.dtype
    lora: LoRA

    @nn.compact
    def __call__(self, x, _):
        y = nn.LayerNorm(dtype=self.dtype)(x)
        x = x + MultiHeadDotProductAttention(self.config, self.dtype, self.lora)(y)
        y = nn.LayerNorm(dtype=self.dtype)(x)
        x = x + MlpBlock(self.config, self.dtype, self.lora)(y)
        self.sow("intermediates", "tokens", x)
        return ops.shard_batch(x), None


class Transformer(nn.Module):
    config: SigLIPConfig
    dtype: jnp.dtype
    lora: LoRA
    remat: str
    unroll: int

    @nn.compact
    def __call__(self, x):
        block = scan_layers(
            EncoderBlock,
            self.config.depth,
            in_axes=nn.broadcast,
            remat=self.remat,
            unroll=self.unroll,
        )
        x, _ = block(self.config, self.dtype, self.lora, name="encoderblock")(x, None)
        return nn.LayerNorm(dtype=self.dtype, name="encoder_norm")(x)


class SigLIP(nn.Module):
    """Images to tokens of the language model's width.

    Args of the call: images float[M, H, W, 3] in [-1, 1].
    Returns: float[M, (H / patch) * (W / patch), out_width].
    """

    config: SigLIPConfig
    out_width: int
    dtype: jnp.dtype
    lora: LoRA
    remat: str
    unroll: int

    @nn.compact
    def __call__(self, images: Float[Array, "m h w 3"]) -> Float[Array, "m i d"]:
        cfg = self.config
        x = PatchEmbed(cfg, self.dtype, self.lora, name="embedding")(images)
        pos = self.param(
            "pos_embedding",
            lambda _, shape: position_codes(*shape[1:])[None],
            (1, cfg.tokens, cfg.width),
        )
        x = ops.shard_batch(x + pos.astype(self.dtype))
        x = Transformer(cfg, self.dtype, self.lora, self.remat, self.unroll, name="Transformer")(x)
        return dense(cfg.width, self.out_width, self.dtype, self.lora, name="head")(x)


def position_codes(tokens: int, width: int) -> Float[Array, "i d"]:
    """Sine-cosine codes of a square grid's rows and columns, where the learned table starts.

    (From small random values, SigLIP's own start, a tower this side of a billion images does not learn places.)
    """
    side = int(tokens**0.5)
    y, x = jnp.divmod(jnp.arange(tokens), side)
    return jnp.concatenate(
        [ops.sincos_embedding((axis + 0.5) / side, width // 2, 2 / side, 4.0) for axis in (y, x)],
        axis=-1,
    )


def resize_positions(
    table: Float[np.ndarray, "1 i d"], tokens: int
) -> Float[np.ndarray, "1 tokens d"]:
    """A learned position table for another resolution of a square image, as big_vision resamples it.

    That is `scipy.ndimage.zoom` of order 1: bilinear without antialiasing, the four corner patches keep their codes.

    Raises ValueError if either number of tokens is not a square.
    """
    old, new = (round(count**0.5) for count in (table.shape[1], tokens))
    if old**2 != table.shape[1] or new**2 != tokens:
        raise ValueError(
            f"pos_embedding: cannot resize a table of {table.shape[1]} tokens to {tokens}, both must be "
            "squares"
        )
    if old == new:
        return table
    import scipy.ndimage  # takes longer to import than all of this file's other imports but JAX

    grid = np.asarray(table, np.float32).reshape(old, old, -1)
    grid = scipy.ndimage.zoom(grid, (new / old, new / old, 1), order=1)
    return grid.reshape(1, tokens, -1).astype(table.dtype)


class PatchEmbed(nn.Module):
    """A strided convolution, written as the matrix product that it is: several times faster on a CPU."""

    config: SigLIPConfig
    dtype: jnp.dtype
    lora: LoRA

    @nn.compact
    def __call__(self, images):
        cfg, p = self.config, self.config.patch
        init = nn.initializers.lecun_normal(in_axis=(0, 1, 2), out_axis=3)
        weight = make_weight(self, "kernel", init, (p, p, 3, cfg.width), self.dtype, self.lora)
        bias = self.param("bias", nn.initializers.zeros, (cfg.width,))
        m, height, width, _ = images.shape
        patches = (
            images.astype(self.dtype)
            .reshape(m, height // p, p, width // p, p, 3)
            .transpose(0, 1, 3, 2, 4, 5)
        )
        patches = patches.reshape(m, -1, p, p, 3)
        return weight.einsum("miuvc,uvcd->mid", patches) + bias.astype(self.dtype)


def to_float(images: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """uint8 pixels to [-1, 1], the range that every released SigLIP was trained on."""
    return images.astype(dtype) / 127.5 - 1.0
