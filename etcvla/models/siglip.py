"""The SigLIP image tower: a ViT without class token or pooling.

The names and the stacking of the parameters are those of big_vision. Axes as in
`etcvla.models.ops`; in this module the batch axis B counts images (rows times cameras).
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from etcvla.errors import UserError
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
    patch: int  # side of a square patch, pixels
    image_size: int  # side of the square image, pixels

    @property
    def tokens(self) -> int:
        """Number of image tokens per camera."""
        return (self.image_size // self.patch) ** 2

    def __post_init__(self):
        if self.image_size % self.patch:
            raise UserError(
                f"siglip.image_size {self.image_size} is not a multiple of patch {self.patch}"
            )
        if self.width % self.num_heads:
            raise UserError(
                f"siglip.width {self.width} is not a multiple of num_heads {self.num_heads}"
            )
        if self.width % 4:
            raise UserError(
                f"siglip.width {self.width} is not a multiple of 4, as position embeddings need"
            )


class MlpBlock(nn.Module):
    """The MLP of a layer."""

    config: SigLIPConfig
    dtype: jnp.dtype
    lora: LoRA

    @nn.compact
    def __call__(self, x: Float[Array, "B I D"]) -> Float[Array, "B I D"]:
        """Return the output of the MLP."""
        width = self.config.width
        mlp_dim = self.config.mlp_dim
        hidden = dense(width, mlp_dim, self.dtype, self.lora, name="Dense_0")(x)
        hidden = nn.gelu(hidden, approximate=True)
        return dense(mlp_dim, width, self.dtype, self.lora, name="Dense_1")(hidden)


class MultiHeadDotProductAttention(nn.Module):
    """Bidirectional self-attention. Released checkpoints contain this name."""

    config: SigLIPConfig
    dtype: jnp.dtype
    lora: LoRA

    @nn.compact
    def __call__(self, x: Float[Array, "B I D"]) -> Float[Array, "B I D"]:
        """Return the output of the attention."""
        width = self.config.width
        heads = self.config.num_heads
        head_dim = width // heads

        def _project_in(name):
            init = nn.initializers.lecun_normal(0, (1, 2))
            shape = (width, heads, head_dim)
            return Projection("btd,dnh->btnh", shape, self.dtype, self.lora, name=name, init=init)(
                x
            )

        q = _project_in("query")
        k = _project_in("key")
        v = _project_in("value")
        merged = ops.attend(q * head_dim**-0.5, k, v)
        return Projection(
            "btnh,nhd->btd",
            (heads, head_dim, width),
            self.dtype,
            self.lora,
            name="out",
            init=nn.initializers.lecun_normal((0, 1), 2),
        )(merged)


class EncoderBlock(nn.Module):
    """A pre-norm transformer layer."""

    config: SigLIPConfig
    dtype: jnp.dtype
    lora: LoRA

    @nn.compact
    def __call__(self, x: Float[Array, "B I D"], _: None) -> tuple[Float[Array, "B I D"], None]:
        """Return the carry of the scan over layers."""
        y = nn.LayerNorm(dtype=self.dtype)(x)
        x = x + MultiHeadDotProductAttention(self.config, self.dtype, self.lora)(y)
        y = nn.LayerNorm(dtype=self.dtype)(x)
        x = x + MlpBlock(self.config, self.dtype, self.lora)(y)
        self.sow("intermediates", "tokens", x)
        return ops.shard_batch(x), None


class Transformer(nn.Module):
    """The layers and the final norm."""

    config: SigLIPConfig
    dtype: jnp.dtype
    lora: LoRA
    remat: str
    unroll: int

    @nn.compact
    def __call__(self, x: Float[Array, "B I D"]) -> Float[Array, "B I D"]:
        """Return the normalized output of the last layer."""
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
    """The tower with its output projection to the width of the language model."""

    config: SigLIPConfig
    out_width: int
    dtype: jnp.dtype
    lora: LoRA
    remat: str
    unroll: int

    @nn.compact
    def __call__(self, images: Float[Array, "B height width 3"]) -> Float[Array, "B I D"]:
        """Return the image tokens of images in [-1, 1]."""
        cfg = self.config
        x = PatchEmbed(cfg, self.dtype, self.lora, name="embedding")(images)
        positions = self.param("pos_embedding", _init_positions, (1, cfg.tokens, cfg.width))
        x = ops.shard_batch(x + positions.astype(self.dtype))
        x = Transformer(cfg, self.dtype, self.lora, self.remat, self.unroll, name="Transformer")(x)
        return dense(cfg.width, self.out_width, self.dtype, self.lora, name="head")(x)


class PatchEmbed(nn.Module):
    """The patch embedding: a strided convolution, computed as a matrix product.

    The product is several times faster than a convolution on a CPU.
    """

    config: SigLIPConfig
    dtype: jnp.dtype
    lora: LoRA

    @nn.compact
    def __call__(self, images: Float[Array, "B height width 3"]) -> Float[Array, "B I D"]:
        """Return one token per patch."""
        width = self.config.width
        patch = self.config.patch
        init = nn.initializers.lecun_normal(in_axis=(0, 1, 2), out_axis=3)
        shape = (patch, patch, 3, width)
        weight = make_weight(self, "kernel", init, shape, self.dtype, self.lora)
        bias = self.param("bias", nn.initializers.zeros, (width,))
        batch, image_height, image_width, _ = images.shape
        rows = image_height // patch
        columns = image_width // patch
        patches = images.astype(self.dtype).reshape(batch, rows, patch, columns, patch, 3)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, patch, patch, 3)
        return weight.einsum("biuvc,uvcd->bid", patches) + bias.astype(self.dtype)


def position_codes(tokens: int, width: int) -> Float[Array, "I D"]:
    """Return sine-cosine codes of the rows and columns of a square grid.

    The learned position table starts with these values. SigLIP itself starts with small random
    values, from which a tower does not learn places unless it is trained on billions of images.
    """
    side = int(tokens**0.5)
    row, column = jnp.divmod(jnp.arange(tokens), side)
    codes = [
        ops.sincos_embedding((index + 0.5) / side, width // 2, 2 / side, 4.0)
        for index in (row, column)
    ]
    return jnp.concatenate(codes, axis=-1)


def _init_positions(_, shape: tuple[int, int, int]) -> Float[Array, "1 I D"]:
    """Initialise the position table (a Flax initialiser, whose key is not used)."""
    _, tokens, width = shape
    return position_codes(tokens, width)[None]


def resize_positions(
    table: Float[np.ndarray, "1 I D"], tokens: int
) -> Float[np.ndarray, "1 tokens D"]:
    """Resize a learned position table to another resolution of a square image, as big_vision does.

    That is `scipy.ndimage.zoom` of order 1: bilinear without antialiasing, and the four corner
    patches keep their codes.

    Raises: UserError if either number of tokens is not a square.
    """
    old_side = round(table.shape[1] ** 0.5)
    new_side = round(tokens**0.5)
    if old_side**2 != table.shape[1] or new_side**2 != tokens:
        raise UserError(
            f"pos_embedding: cannot resize a table of {table.shape[1]} tokens to {tokens}, "
            "both must be squares"
        )
    if old_side == new_side:
        return table
    import scipy.ndimage  # imported here because it takes longer than all other imports but JAX

    grid = np.asarray(table, np.float32).reshape(old_side, old_side, -1)
    scale = new_side / old_side
    grid = scipy.ndimage.zoom(grid, (scale, scale, 1), order=1)
    return grid.reshape(1, tokens, -1).astype(table.dtype)


def to_float(images: UInt8[Array, "*B height width 3"], dtype: jnp.dtype) -> Float[Array, "*shape"]:
    """Scale pixels to [-1, 1], the range on which every released SigLIP was trained."""
    return images.astype(dtype) / 127.5 - 1.0
