"""The SigLIP image tower: a ViT without class token or pooling.

The names and the stacking of the parameters are those of big_vision. Axes as in
`etcvla.models.types`; in this module the batch axis B counts images (rows times cameras).
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from etcvla.errors import UserError
from etcvla.models import ops
from etcvla.models.lora import ModuleOptions, Projection, dense, make_weight
from etcvla.models.scan import scan_layers
from etcvla.models.types import AnyShape, ImageTokens, Shape
from etcvla.names import lookup

# Start of a tower without released weights. Neighbouring pixels are alike, so a patch differs
# little from the mean patch: with the usual variance of 1 and position codes of full size, position
# is 95 % of the difference of two image tokens, and a small model learns to read places later.
_PATCH_VARIANCE = 9.0
_POSITION_SCALE = 0.5


@dataclasses.dataclass(frozen=True)
class SigLIPConfig:
    """Sizes of the tower."""

    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    patch: int  # side of a square patch, pixels
    image_size: int  # side of the square image, pixels
    activation: str = "gelu_tanh"  # of the MLPs, a name of `ops.ACTIVATIONS`

    @property
    def tokens(self) -> int:
        """Number of image tokens per camera."""
        return (self.image_size // self.patch) ** 2

    def __post_init__(self):
        lookup(ops.ACTIVATIONS, self.activation, "siglip.activation")
        checks = (
            ("image_size", self.image_size, f"patch {self.patch}", self.patch),
            ("width", self.width, f"num_heads {self.num_heads}", self.num_heads),
            ("width", self.width, "4, as position codes need", 4),
        )
        for field, value, divisor_name, divisor in checks:
            if value % divisor:
                raise UserError(f"siglip.{field} {value} is not a multiple of {divisor_name}")


class MlpBlock(nn.Module):
    """The MLP of a layer."""

    config: SigLIPConfig
    options: ModuleOptions

    @nn.compact
    def __call__(self, x: ImageTokens) -> ImageTokens:
        """Return the output of the MLP."""
        width = self.config.width
        mlp_dim = self.config.mlp_dim
        hidden = dense(width, mlp_dim, self.options, name="Dense_0")(x)
        hidden = ops.ACTIVATIONS[self.config.activation](hidden)
        return dense(mlp_dim, width, self.options, name="Dense_1")(hidden)


class MultiHeadDotProductAttention(nn.Module):
    """Bidirectional self-attention. Released checkpoints contain this name."""

    config: SigLIPConfig
    options: ModuleOptions

    @nn.compact
    def __call__(self, x: ImageTokens) -> ImageTokens:
        """Return the output of the attention."""
        width = self.config.width
        heads = self.config.num_heads
        head_dim = width // heads

        def _projection(name, equation, shape, init):
            return Projection(equation, shape, self.options, init=init, name=name)

        init = nn.initializers.lecun_normal(0, (1, 2))
        q, k, v = (
            _projection(name, "btd,dnh->btnh", (width, heads, head_dim), init)(x)
            for name in ("query", "key", "value")
        )
        merged = ops.attend(q * head_dim**-0.5, k, v)
        init = nn.initializers.lecun_normal((0, 1), 2)
        return _projection("out", "btnh,nhd->btd", (heads, head_dim, width), init)(merged)


class EncoderBlock(nn.Module):
    """A pre-norm transformer layer."""

    config: SigLIPConfig
    options: ModuleOptions

    @nn.compact
    def __call__(self, x: ImageTokens, _: None) -> tuple[ImageTokens, None]:
        """Return the carry of the scan over layers."""
        y = nn.LayerNorm(dtype=self.options.dtype)(x)
        x = x + MultiHeadDotProductAttention(self.config, self.options)(y)
        y = nn.LayerNorm(dtype=self.options.dtype)(x)
        x = x + MlpBlock(self.config, self.options)(y)
        self.sow("intermediates", "tokens", x)
        return ops.shard_batch(x), None


class Transformer(nn.Module):
    """The layers and the final norm."""

    config: SigLIPConfig
    options: ModuleOptions

    @nn.compact
    def __call__(self, x: ImageTokens) -> ImageTokens:
        """Return the normalized output of the last layer."""
        block = scan_layers(
            EncoderBlock,
            self.config.depth,
            in_axes=nn.broadcast,
            options=self.options,
        )
        x, _ = block(self.config, self.options, name="encoderblock")(x, None)
        return nn.LayerNorm(dtype=self.options.dtype, name="encoder_norm")(x)


class SigLIP(nn.Module):
    """The tower with its output projection to the width of the language model."""

    config: SigLIPConfig
    out_width: int
    options: ModuleOptions

    @nn.compact
    def __call__(self, images: Float[Array, "B height width 3"]) -> ImageTokens:
        """Return the image tokens of images in [-1, 1]."""
        cfg = self.config
        x = PatchEmbed(cfg, self.options, name="embedding")(images)
        positions = self.param("pos_embedding", _init_positions, (1, cfg.tokens, cfg.width))
        x = ops.shard_batch(x + positions.astype(self.options.dtype))
        x = Transformer(cfg, self.options, name="Transformer")(x)
        return dense(cfg.width, self.out_width, self.options, name="head")(x)


class PatchEmbed(nn.Module):
    """The patch embedding: a strided convolution, computed as a matrix product.

    The product is several times faster than a convolution on a CPU.
    """

    config: SigLIPConfig
    options: ModuleOptions

    @nn.compact
    def __call__(self, images: Float[Array, "B height width 3"]) -> ImageTokens:
        """Return one token per patch."""
        width = self.config.width
        patch = self.config.patch
        init = nn.initializers.variance_scaling(
            _PATCH_VARIANCE, "fan_in", "normal", in_axis=(0, 1, 2), out_axis=3
        )
        shape = (patch, patch, 3, width)
        weight = make_weight(self, "kernel", init, shape)
        bias = self.param("bias", nn.initializers.zeros, (width,))
        batch, image_height, image_width, _ = images.shape
        rows = image_height // patch
        columns = image_width // patch
        patches = images.astype(self.options.dtype).reshape(batch, rows, patch, columns, patch, 3)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, patch, patch, 3)
        return weight.einsum("biuvc,uvcd->bid", patches) + bias.astype(self.options.dtype)


def _init_positions(_, shape: Shape) -> Float[Array, "1 I D"]:
    """Return sine-cosine codes of the rows and columns of a square grid (a Flax initializer).

    The learned position table starts with these values. SigLIP itself starts with small random
    values, from which a tower does not learn places unless it is trained on billions of images.
    """
    _, tokens, width = shape
    side = int(tokens**0.5)
    row, column = jnp.divmod(jnp.arange(tokens), side)
    codes = [
        ops.sincos_embedding((index + 0.5) / side, width // 2, 2 / side, 4.0)
        for index in (row, column)
    ]
    return _POSITION_SCALE * jnp.concatenate(codes, axis=-1)[None]


def resize_positions(
    table: Float[np.ndarray, "1 I D"], tokens: int
) -> Float[np.ndarray, "1 tokens D"]:
    """Resize a learned position table to another resolution of a square image, as big_vision does.

    This is `scipy.ndimage.zoom` of order 1: bilinear without antialiasing, and the four corner
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


def to_float(images: UInt8[Array, "*B height width 3"], dtype: jnp.dtype) -> AnyShape:
    """Scale pixels to [-1, 1], the range on which every released SigLIP was trained."""
    return images.astype(dtype) / 127.5 - 1.0
