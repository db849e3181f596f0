"""Tests of weights of eight bits: their size, their error, and the actions of the model."""

import jax
import numpy as np
import pytest

from etcvla.models.decode import sample_actions
from etcvla.models.quantize import quantize_params
from tests.models.small import make_model, random_params, random_rows, write_segment

qwix = pytest.importorskip("qwix")


@pytest.fixture(scope="module")
def both():
    model = make_model()
    params = random_params(model)
    return model, params, quantize_params(params, "int8")


def weights(small):
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(
            small, is_leaf=lambda x: isinstance(x, qwix.QArray)
        )[0]
    }


def test_every_projection_of_tower_and_streams_is_quantized(both):
    _, params, small = both
    quantized = {path for path, leaf in weights(small).items() if isinstance(leaf, qwix.QArray)}
    assert len(quantized) > 15 and all(
        path.startswith(("['img']", "['llm']")) for path in quantized
    )
    for word in ("embedder", "bias", "pos_embedding", "'scale'"):
        assert not any(word in path for path in quantized)
    kept = weights(params)
    for path, leaf in weights(small).items():
        if path in quantized:
            assert leaf.qvalue.dtype == np.int8 and leaf.shape == kept[path].shape
            step = leaf.scale * np.ones(leaf.shape)
            assert (np.abs(qwix.dequantize(leaf) - kept[path]) <= 0.51 * step).all()
        else:
            np.testing.assert_array_equal(leaf, kept[path])


def test_one_scale_per_layer_and_output(both):
    """Each layer and each axis that a product does not sum over has its own scale."""
    _, _, small = both
    shapes = {
        path.split("'")[-4]: leaf.scale.shape
        for path, leaf in weights(small).items()
        if isinstance(leaf, qwix.QArray) and "llm" in path and "_1" not in path
    }
    assert shapes["q_einsum"] == (2, 2, 1, 8) and shapes["kv_einsum"] == (2, 2, 1, 1, 8)
    assert shapes["attn_vec_einsum"] == (2, 1, 1, 24)


def test_quantized_model_acts_almost_alike(both):
    model, params, small = both
    batch = random_rows(np.random.default_rng(0), 2)
    for row in range(2):
        write_segment(batch, row, 0, 1, [2, 11, 12, 3], [])
    batch["action_segment"][:] = 1
    shape = batch["actions"][:, 0].shape
    noise = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    sample = jax.jit(lambda params: sample_actions(model, params, batch, noise, 3))
    exact = sample(params)
    near = sample(small)
    gap = np.abs(exact - near).max()
    assert 0 < gap < 0.05 * np.abs(exact).max()


def test_unknown_type_is_an_error():
    with pytest.raises(
        ValueError, match="unknown type of quantized weights 'int7', did you mean 'int8'"
    ):
        quantize_params({}, "int7")
