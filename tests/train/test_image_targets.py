"""Targets of the image loss."""

import jax.numpy as jnp
import numpy as np
import pytest

from configs import common, vlm_pretrain
from etcvla.errors import UserError
from etcvla.models.vla import image_index
from etcvla.train.image_targets import find_image_targets
from etcvla.train.step import StepSettings

LOC = 100
END = 1


def _rows() -> dict:
    """Return a row with a question about a place, one about words, and one about two places."""
    segments = [
        ([5, LOC + 33], [11, 12, END]),
        ([5, 6], [LOC + 40, END]),
        ([5, LOC + 1, LOC + 2], [11, END]),
    ]
    tokens = []
    segment = []
    target = []
    for number, (prompt, answer) in enumerate(segments, start=1):
        tokens += prompt + answer
        segment += [number] * len(prompt + answer)
        target += [False] * len(prompt) + [True] * len(answer)
    rows = {"tokens": tokens, "segment": segment, "target": target}
    rows = {name: jnp.asarray(value)[None] for name, value in rows.items()}
    rows["target_positions"] = jnp.asarray(np.flatnonzero(target))[None]
    return rows


def test_words_of_questions_about_one_place_are_targets():
    cells, has_place = find_image_targets(_rows(), LOC)
    assert has_place[0].tolist() == [True, True, False, False, False, False, False]
    assert cells[0, :2].tolist() == [33, 33]


@pytest.mark.parametrize(("cell", "index"), [(0, 0), (31, 7), (32 * 4, 8), (32 * 31 + 31, 63)])
def test_a_cell_is_in_the_patch_of_its_row_and_column(cell, index):
    assert image_index(64, jnp.array([[cell]])).tolist() == [[index]]


def test_pairs_have_no_image_loss():
    config = vlm_pretrain.get_config("tiny")
    common.override(config, {"data.places": "pair", "loss.image": common.constant(1.0)})
    with pytest.raises(UserError, match="loss.image needs data.places 'cell'"):
        StepSettings.from_config(config, 0)
