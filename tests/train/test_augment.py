"""Augmentation keeps answers true: what is where moves together with the words that say where."""

import jax
import numpy as np
import pytest

from etcvla import batch as batch_lib
from etcvla.etc.items import format_loc, parse_loc
from etcvla.train.augment import augment, shift_locations

SIZE, LOC, ROWS = 56, 200, 8
run = jax.jit(augment, static_argnames=("shift", "color"))


def ids(text):
    return [LOC + int(text[i + 4 : i + 8]) for i in range(0, len(text), 9)]


@pytest.fixture
def batch():
    """A white dot in the first camera, and text that says where: words, the dot's centre, words, its box."""
    rng = np.random.default_rng(0)
    made = batch_lib.zeros(B=ROWS, C=2, H=SIZE, W=SIZE, L=12, Q=1, P=1, A=1)
    for row in range(ROWS):
        y, x = rng.integers(8, SIZE - 12, 2)
        made["images"][row, 0, y : y + 4, x : x + 4] = 255
        box = np.array([y, x, y + 4, x + 4]) / SIZE
        made["tokens"][row, :11] = [
            2,
            50,
            *ids(format_loc((box[:2] + box[2:]) / 2)),
            60,
            70,
            *ids(format_loc(box)),
            1,
        ]
    made["images"][:, 1] = rng.integers(0, 256, made["images"][:, 1].shape)
    return made


def centre(image):
    """(y, x) of what is bright, in [0, 1]."""
    return (np.argwhere(np.asarray(image).mean(-1) > 128).mean(0) + 0.5) / SIZE


def test_answers_follow_the_dot(batch):
    moved = run(jax.random.key(0), batch, shift=6, color=0.1, loc_offset=LOC)
    tokens = np.asarray(moved["tokens"])
    went = set()
    for row in range(ROWS):
        here = centre(moved["images"][row, 0])
        went.add(tuple(np.round((here - centre(batch["images"][row, 0])) * SIZE).astype(int)))
        point, box = (
            parse_loc("".join(f"<loc{i - LOC:04d}>" for i in part), n)[0]
            for part, n in ((tokens[row, 2:4], 2), (tokens[row, 6:10], 4))
        )
        np.testing.assert_allclose(point, here, atol=2 / 1024)
        np.testing.assert_allclose(
            box, np.concatenate([here - 2 / SIZE, here + 2 / SIZE]), atol=2 / 1024
        )
    assert (
        len(went) == ROWS and len({tuple(np.sign(w)) for w in went}) > 2
    )  # each row its own way, on both axes
    words = np.ones(12, bool)
    words[[2, 3, 6, 7, 8, 9]] = False
    np.testing.assert_array_equal(tokens[:, words], batch["tokens"][:, words])


def test_action_tokens_that_share_ids_with_locations_stay(batch):
    """Nor do they count when the answers' locations are paired up."""
    asked = {**batch, "segment": np.ones_like(batch["segment"])}
    acting = {name: value.copy() for name, value in asked.items()}
    acting["tokens"] = np.concatenate(
        [np.full((ROWS, 3), LOC + 7, np.int32), batch["tokens"]], axis=1
    )
    acting["segment"] = np.concatenate([np.full((ROWS, 3), 2, np.int32), asked["segment"]], axis=1)
    acting["action_segment"][:] = 2
    moved, expected = (
        run(jax.random.key(0), rows, shift=6, color=0.1, loc_offset=LOC)["tokens"]
        for rows in (acting, asked)
    )
    np.testing.assert_array_equal(moved[:, :3], LOC + 7)
    np.testing.assert_array_equal(moved[:, 3:], expected)
    assert (moved[:, 3:] != batch["tokens"]).any()


def test_cameras_move_on_their_own_and_colours_change(batch):
    batch["images"][:, 1] = batch["images"][:, 0]
    moved = run(jax.random.key(1), batch, shift=6, color=0.1, loc_offset=LOC)
    assert any((centre(first) != centre(second)).any() for first, second in moved["images"])
    colored = np.asarray(
        run(jax.random.key(1), batch, shift=0, color=0.3, loc_offset=LOC)["images"]
    )
    background = colored[:, :, 0, 0, 0]
    assert len(np.unique(background)) > 4 and (colored == colored[..., :1]).all()  # grey stays grey
    np.testing.assert_array_equal(colored[:, :, 0, 0], colored[:, :, -1, -1])


def test_zero_strength_is_identity_and_keys_decide(batch):
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


def test_locations_stop_at_the_border_and_their_neighbours_are_left_alone():
    tokens = np.int32([[LOC, LOC + 1023, LOC - 1, LOC + 1024, LOC + 5, LOC + 5]])
    moved = shift_locations(tokens, np.float32([[-0.25, 0.25]]), LOC)
    np.testing.assert_array_equal(
        moved, [[LOC, LOC + 1023, LOC - 1, LOC + 1024, LOC, LOC + 5 + 256]]
    )
