"""Tests of the errors for batches and options that do not fit the model."""

import dataclasses

import jax
import numpy as np
import pytest

from etcvla.models.vla import VLA, init_params
from tests.models.small import CONFIG, make_model, random_rows


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("images", lambda x: x[:, :, :14], r"batch\['images'\]: axis H has size 14, expected 28"),
        (
            "images",
            lambda x: x.astype(np.float32),
            r"batch\['images'\] is float32\[2, 2, 28, 28, 3\], expected uint8",
        ),
        (
            "images",
            lambda x: x[..., 0],
            r"batch\['images'\] is uint8\[2, 2, 28, 28\], expected uint8\[B, C, H, W, 3\]",
        ),
        ("tokens", lambda x: x + 64, r"batch\['tokens'\] holds id 64, the model has ids 0 to 63"),
        ("tokens", lambda x: x - 1, r"batch\['tokens'\] holds id -1, the model has ids 0 to 63"),
        (
            "actions",
            lambda x: np.pad(x, ((0, 0), (0, 0), (0, 0), (0, 2))),
            r"batch\['actions'\]: axis A has size 7, expected 5",
        ),
        ("state", lambda x: x[:, :2], r"batch\['state'\]: axis Q has size 2, expected 3"),
        ("actions", lambda x: x[:, :, :1], r"batch\['actions'\]: axis P has size 1, expected 4"),
    ],
)
def test_batch_that_does_not_fit_is_an_error(field, change, message):
    batch = random_rows(np.random.default_rng(0), 2)
    CONFIG.check_batch(batch)
    with pytest.raises(ValueError, match=message):
        CONFIG.check_batch(batch | {field: change(batch[field])})


@pytest.mark.parametrize(
    "images", [np.zeros((1, 1, 56, 56, 3), np.uint8), np.zeros((1, 1, 28, 28, 3), np.float32)]
)
def test_encode_images_checks_shape_and_dtype(images):
    params = jax.eval_shape(lambda: init_params(make_model()))
    with pytest.raises(
        ValueError, match=r"images are .*, the model reads uint8\[B, C, 28, 28, 3\]"
    ):
        jax.eval_shape(
            lambda params: make_model().apply({"params": params}, images, method=VLA.encode_images),
            params,
        )


@pytest.mark.parametrize(("places", "neighbour"), [("pair", 1), ("cell", 1), ("cell", 32)])
def test_location_rows_start_as_codes_of_their_place(places, neighbour):
    offset = 100
    model = make_model(vocab_size=offset + 1024)
    params = jax.jit(lambda: init_params(model, 0, (offset, 1024), places))()
    codes = np.asarray(params["llm"]["embedder"]["input_embedding"])[offset:]
    np.testing.assert_allclose(np.linalg.norm(codes, axis=1), 1, atol=1e-5)
    similarity = codes @ codes[500]
    assert similarity[500 + neighbour] > 0.7
    assert similarity[500 + 12 * neighbour] < similarity[500 + neighbour] - 0.1
    assert (np.delete(similarity, 500) < 0.9999).all()


def test_unknown_option_is_an_error():
    with pytest.raises(ValueError, match='model.state is \'txt\', expected "token" or "text"'):
        dataclasses.replace(CONFIG, state="txt")
    with pytest.raises(ValueError, match="unknown model.remat 'ful', did you mean 'full'"):
        jax.eval_shape(lambda: init_params(make_model(remat="ful")))
