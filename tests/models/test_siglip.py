"""Tests of the image tower against the attention of Flax, and of its position table."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from etcvla.models.lora import ModuleOptions
from etcvla.models.siglip import MultiHeadDotProductAttention, SigLIPConfig, resize_positions

CONFIG = SigLIPConfig(width=24, depth=1, num_heads=3, mlp_dim=8, patch=14, image_size=28)


def test_attention_equals_flax_attention():
    x = np.random.default_rng(0).normal(size=(2, 5, CONFIG.width)).astype(np.float32)
    ours = MultiHeadDotProductAttention(CONFIG, ModuleOptions(np.float32))
    flaxs = nn.MultiHeadDotProductAttention(num_heads=CONFIG.num_heads, deterministic=True)
    for impl in ("threefry2x32", "rbg"):
        params, expected = (
            module.init(jax.random.key(0, impl=impl), x) for module in (ours, flaxs)
        )
        jax.tree.map(np.testing.assert_array_equal, params, expected)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    np.testing.assert_allclose(ours.apply(params, x), flaxs.apply(params, x), atol=2e-6)


def test_resizing_positions_keeps_the_corners():
    """Resizing is bilinear: codes that are linear in row and column stay linear."""

    def codes(side):
        y, x = np.divmod(np.arange(side * side), side) / np.float32(side - 1)
        return np.stack([3 * x - y, 2 + y, x * y], axis=-1)[None].astype(np.float32)

    for old, new in ((3, 5), (4, 9), (5, 3), (16, 32)):
        resized = resize_positions(codes(old), new * new)
        assert resized.dtype == np.float32
        np.testing.assert_allclose(resized, codes(new), atol=1e-6)
    # A smoothing filter would mix in the 9. Between corners, three columns become two by dropping
    # the middle one.
    columns = np.float32([0, 9, 1] * 3).reshape(1, 9, 1)
    np.testing.assert_array_equal(resize_positions(columns, 4)[0, :, 0], [0, 1, 0, 1])
    same = codes(4)
    assert resize_positions(same, 16) is same


@pytest.mark.parametrize(("old", "new"), [(15, 16), (16, 20)])
def test_table_that_is_not_square_is_an_error(old, new):
    with pytest.raises(
        ValueError, match=f"pos_embedding: cannot resize a table of {old} tokens to {new}"
    ):
        resize_positions(np.zeros((1, old, 4), np.float32), new)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 30}, "siglip.image_size 30 is not a multiple of patch 14"),
        ({"num_heads": 5}, "siglip.width 24 is not a multiple of num_heads 5"),
        ({"width": 18}, "siglip.width 18 is not a multiple of 4"),
    ],
)
def test_wrong_sizes_are_errors(change, message):
    sizes = {"width": 24, "depth": 1, "num_heads": 3, "mlp_dim": 8, "patch": 14, "image_size": 28}
    with pytest.raises(ValueError, match=message):
        SigLIPConfig(**{**sizes, **change})
