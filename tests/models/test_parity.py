"""Tests of the model against openpi, big_vision and Hugging Face, with the same weights."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from etcvla.models import flow
from etcvla.models.decode import TextOptions, decode_text, sample_actions
from etcvla.models.vla import VLA, init_params
from etcvla.rules import path_str
from tests.golden_dir import ROOT, models
from tests.models.released import load_openpi, load_paligemma, openpi_arrays
from tests.models.small import is_backbone


@pytest.fixture(scope="module", autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


def shapes(tree):
    return {
        path_str(path): leaf.shape for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


# Flow matching: openpi


def name_of(folder):
    return str(folder.relative_to(ROOT))


@pytest.fixture(scope="module", params=models("pi0", "pi05"), ids=name_of)
def openpi(request):
    return load_openpi(request.param)


def test_parameters_equal_those_of_openpi(openpi):
    ours = jax.eval_shape(lambda: init_params(openpi.model))
    assert shapes(ours) == shapes(openpi.params)
    jax.tree.map(np.testing.assert_array_equal, openpi.params, openpi_arrays(openpi.folder))


def test_velocity_loss_and_gradients(openpi):
    model = openpi.model
    inputs = openpi.inputs
    outputs = openpi.outputs
    time = inputs["time"][:, None]

    def loss(params):
        x_t, target = flow.interpolate(openpi.batch["actions"], inputs["noise"][:, None], time)
        _, velocity = model.apply({"params": params}, openpi.batch, None, x_t, time)
        error = jnp.square(velocity - target)[:, 0]
        return error.mean(), (x_t[:, 0], target[:, 0], velocity[:, 0], error)

    grads, actual = jax.jit(jax.grad(loss, has_aux=True))(openpi.params)
    for name, value, tolerance in zip(
        ("x_t", "u_t", "v_t", "loss_per_element"), actual, (1e-6, 1e-6, 5e-4, 2e-3), strict=True
    ):
        np.testing.assert_allclose(value, outputs[name], atol=tolerance, err_msg=name)
    assert_norms(grads, openpi.folder)


def assert_norms(grads, folder):
    expected = {
        name.removeprefix("PaliGemma/"): norm
        for name, norm in json.loads((folder / "grad_l2.json").read_text()).items()
    }
    norms = {
        path_str(path): np.linalg.norm(grad)
        for path, grad in jax.tree_util.tree_flatten_with_path(grads)[0]
    }
    assert norms.keys() == expected.keys()
    for name, norm in norms.items():
        assert norm == pytest.approx(expected[name], rel=2e-3, abs=1e-5), name


def test_sampled_actions(openpi):
    steps = len(openpi.outputs["sample_times"])
    sample = jax.jit(
        lambda params: sample_actions(
            openpi.model, params, openpi.batch, openpi.inputs["noise"], steps
        )
    )
    np.testing.assert_allclose(sample(openpi.params), openpi.outputs["sample_actions"], atol=1e-3)


# Next tokens: PaliGemma


@pytest.fixture(scope="module", params=models("paligemma_bv", "paligemma_hf"), ids=name_of)
def paligemma(request):
    return load_paligemma(request.param)


def test_parameters_equal_those_of_big_vision(paligemma):
    ours = shapes(jax.eval_shape(lambda: init_params(paligemma.model)))
    assert shapes(paligemma.params) == {
        name: shape for name, shape in ours.items() if is_backbone(name)
    }


def test_image_features(paligemma):
    batch = paligemma.batch
    features = jax.jit(
        lambda params: paligemma.model.apply(
            {"params": params}, batch["images"], method=VLA.encode_images
        )
    )(paligemma.params)
    np.testing.assert_allclose(features, paligemma.outputs["image_features"], atol=1e-4)


def test_logits_of_prompt_and_suffix(paligemma):
    batch = paligemma.batch
    columns = jnp.broadcast_to(
        jnp.arange(1, batch["tokens"].shape[1]), batch["tokens"][:, 1:].shape
    )
    logits, _ = jax.jit(
        lambda params: paligemma.model.apply({"params": params}, batch, columns, None, None)
    )(paligemma.params)
    read = (
        batch["segment"][:, :-1] > 0
    )  # column i - 1, which predicts column i, must not be padding
    np.testing.assert_allclose(
        logits[read], paligemma.outputs["text_logits"][:, :-1][read], atol=1e-4
    )
    if "example_loss" in paligemma.outputs:
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["tokens"][:, 1:])
        mean = np.average(loss, axis=1, weights=batch["target"][:, 1:])
        np.testing.assert_allclose(mean, paligemma.outputs["example_loss"], atol=1e-4)


def test_greedy_decoding(paligemma):
    outputs = paligemma.outputs
    expected = outputs["decode_tokens"] if "decode_tokens" in outputs else outputs["generated_ids"]
    decode = jax.jit(
        lambda params: decode_text(
            paligemma.model,
            params,
            paligemma.prompt_batch,
            TextOptions(max_new=expected.shape[1], eos=-1),
        )
    )
    np.testing.assert_array_equal(decode(paligemma.params), expected)


@pytest.fixture(scope="module", params=models("pi0_fast"), ids=name_of)
def fast(request):
    return load_openpi(request.param)


def test_pi0_fast_training(fast):
    """In pi0-FAST, absent cameras take positions."""
    model = VLA(dataclasses.replace(fast.model.config, count_absent_cameras=True))
    batch = fast.batch | {"target": fast.inputs["token_loss_mask"]}
    columns = jnp.broadcast_to(
        jnp.arange(1, batch["tokens"].shape[1]), batch["tokens"][:, 1:].shape
    )

    def loss(params):
        logits, _ = model.apply({"params": params}, batch, columns, None, None)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch["tokens"][:, 1:])
        weight = batch["target"][:, 1:]
        row = (nll * weight).sum(axis=1) / weight.sum(axis=1)
        return row.mean(), (logits, row)

    grads, (logits, row) = jax.jit(jax.grad(loss, has_aux=True))(fast.params)
    read = batch["segment"][:, :-1] > 0
    np.testing.assert_allclose(logits[read], fast.outputs["logits"][read], atol=2e-4)
    np.testing.assert_allclose(row, fast.outputs["loss"], atol=2e-4)
    assert_norms(grads, fast.folder)


def test_pi0_fast_decoding(fast):
    """pi0-FAST with all cameras present and contiguous positions, as elsewhere in this project."""
    prompt = fast.batch["segment"] * (fast.inputs["token_ar_mask"] == 0)
    batch = fast.batch | {
        "segment": prompt,
        "tokens": fast.batch["tokens"] * prompt,
        "image_mask": np.ones_like(fast.batch["image_mask"]),
    }
    expected = fast.outputs["sample_tokens_contiguous_positions"]
    decode = jax.jit(
        lambda params: decode_text(
            fast.model, params, batch, TextOptions(max_new=expected.shape[1], eos=-1)
        )
    )
    np.testing.assert_array_equal(decode(fast.params), expected)
