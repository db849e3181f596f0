"""Tests of augmentation: locations in the text move together with the image."""

import jax
import numpy as np
import pytest

from etcvla import batch as batch_lib
from etcvla.etc.items import format_loc, parse_loc
from etcvla.etc.places import cells_to_pairs, pairs_to_cells
from etcvla.train.augment import augment, shift_cells, shift_locations

SIZE = 56
LOC = 200
ROWS = 8
run = jax.jit(augment, static_argnames=("shift", "color", "places"))


def ids(text):
    return [LOC + int(text[i + 4 : i + 8]) for i in range(0, len(text), 9)]


@pytest.fixture
def batch():
    """Return rows with a white dot in the first camera.

    The text has words, the centre of the dot, words, and its box.
    """
    rng = np.random.default_rng(0)
    batch = batch_lib.zeros(B=ROWS, C=2, H=SIZE, W=SIZE, L=12, Q=1, P=1, A=1)
    for row in range(ROWS):
        y, x = rng.integers(8, SIZE - 12, 2)
        batch["images"][row, 0, y : y + 4, x : x + 4] = 255
        box = np.array([y, x, y + 4, x + 4]) / SIZE
        batch["tokens"][row, :11] = [
            2,
            50,
            *ids(format_loc((box[:2] + box[2:]) / 2)),
            60,
            70,
            *ids(format_loc(box)),
            1,
        ]
    batch["images"][:, 1] = rng.integers(0, 256, batch["images"][:, 1].shape)
    return batch


def centre(image):
    """Return (y, x) of the bright pixels, in [0, 1]."""
    return (np.argwhere(np.asarray(image).mean(-1) > 128).mean(0) + 0.5) / SIZE


def loc_text(tokens):
    """Return the text of location tokens."""
    return "".join(f"<loc{token - LOC:04d}>" for token in tokens)


def test_locations_move_with_the_image(batch):
    moved = run(jax.random.key(0), batch, shift=6, color=0.1, loc_offset=LOC)
    tokens = np.asarray(moved["tokens"])
    shifts = set()
    for row in range(ROWS):
        position = centre(moved["images"][row, 0])
        shifts.add(tuple(np.round((position - centre(batch["images"][row, 0])) * SIZE).astype(int)))
        point = parse_loc(loc_text(tokens[row, 2:4]), 2)[0]
        box = parse_loc(loc_text(tokens[row, 6:10]), 4)[0]
        np.testing.assert_allclose(point, position, atol=2 / 1024)
        np.testing.assert_allclose(
            box, np.concatenate([position - 2 / SIZE, position + 2 / SIZE]), atol=2 / 1024
        )
    assert (
        len(shifts) == ROWS and len({tuple(np.sign(w)) for w in shifts}) > 2
    )  # rows differ, on both axes
    words = np.ones(12, bool)
    words[[2, 3, 6, 7, 8, 9]] = False
    np.testing.assert_array_equal(tokens[:, words], batch["tokens"][:, words])


def test_action_tokens_with_ids_of_locations_do_not_move(batch):
    """Action tokens do not count either when locations are paired."""
    question = {**batch, "segment": np.ones_like(batch["segment"])}
    acting = {name: value.copy() for name, value in question.items()}
    acting["tokens"] = np.concatenate(
        [np.full((ROWS, 3), LOC + 7, np.int32), batch["tokens"]], axis=1
    )
    acting["segment"] = np.concatenate(
        [np.full((ROWS, 3), 2, np.int32), question["segment"]], axis=1
    )
    acting["action_segment"][:] = 2
    moved, expected = (
        run(jax.random.key(0), rows, shift=6, color=0.1, loc_offset=LOC)["tokens"]
        for rows in (acting, question)
    )
    np.testing.assert_array_equal(moved[:, :3], LOC + 7)
    np.testing.assert_array_equal(moved[:, 3:], expected)
    assert (moved[:, 3:] != batch["tokens"]).any()


def test_cameras_move_independently_and_colors_change(batch):
    batch["images"][:, 1] = batch["images"][:, 0]
    moved = run(jax.random.key(1), batch, shift=6, color=0.1, loc_offset=LOC)
    assert any((centre(first) != centre(second)).any() for first, second in moved["images"])
    colored = np.asarray(
        run(jax.random.key(1), batch, shift=0, color=0.3, loc_offset=LOC)["images"]
    )
    background = colored[:, :, 0, 0, 0]
    assert len(np.unique(background)) > 4 and (colored == colored[..., :1]).all()  # gray stays gray
    np.testing.assert_array_equal(colored[:, :, 0, 0], colored[:, :, -1, -1])


def test_zero_strength_is_identity_and_key_determines_the_result(batch):
    same = run(jax.random.key(3), batch, shift=0, color=0.0, loc_offset=LOC)
    assert same.keys() == batch.keys()
    for name, value in batch.items():
        np.testing.assert_array_equal(same[name], value)
        assert same[name].dtype == value.dtype
    first, again, other = (
        run(jax.random.key(key), batch, shift=6, color=0.1, loc_offset=LOC) for key in (3, 3, 4)
    )
    np.testing.assert_array_equal(first["images"], again["images"])
    assert (first["images"] != other["images"]).any() and (first["tokens"] != other["tokens"]).any()


def test_locations_are_clipped_and_other_tokens_do_not_change():
    tokens = np.int32([[LOC, LOC + 1023, LOC - 1, LOC + 1024, LOC + 5, LOC + 5]])
    moved = shift_locations(tokens, np.float32([[-0.25, 0.25]]), LOC)
    np.testing.assert_array_equal(
        moved, [[LOC, LOC + 1023, LOC - 1, LOC + 1024, LOC, LOC + 5 + 256]]
    )


def test_cells_move_with_the_image(batch):
    tokens = np.full_like(batch["tokens"], 50)
    for row in range(ROWS):
        tokens[row, 2] = ids(pairs_to_cells(loc_text(batch["tokens"][row, 2:4])))[0]
    batch["tokens"] = tokens
    moved = run(jax.random.key(0), batch, shift=6, color=0.1, loc_offset=LOC, places="cell")
    for row in range(ROWS):
        position = centre(moved["images"][row, 0])
        point = parse_loc(cells_to_pairs(loc_text(moved["tokens"][row, 2:3])), 2)[0]
        np.testing.assert_allclose(point, position, atol=1 / 32 + 1 / 1024)
    assert (moved["tokens"][:, 2] != tokens[:, 2]).any()
    np.testing.assert_array_equal(np.delete(moved["tokens"], 2, 1), 50)


def test_cells_are_clipped_and_other_tokens_do_not_change():
    tokens = np.int32([[LOC, LOC + 1023, LOC - 1, LOC + 1024, LOC + 10 * 32 + 30]])
    moved = shift_cells(tokens, np.float32([[-0.25, 0.25]]), LOC)
    np.testing.assert_array_equal(
        moved, [[LOC + 8, LOC + 23 * 32 + 31, LOC - 1, LOC + 1024, LOC + 2 * 32 + 31]]
    )
