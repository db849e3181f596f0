"""Places: pairs of coordinates to cells of a grid and back."""

import numpy as np
import pytest

from etcvla.errors import UserError
from etcvla.etc.items import format_loc, parse_loc
from etcvla.etc.places import CELL_SIZE, GRID, cells_to_pairs, pairs_to_cells

BOX = [0.1, 0.2, 0.8, 0.9]


def test_every_cell_round_trips():
    cells = "".join(f"<loc{cell:04d}>" for cell in range(GRID * GRID))
    assert pairs_to_cells(cells_to_pairs(cells)) == cells


def test_a_point_is_one_token_and_a_box_two():
    assert pairs_to_cells("<loc0000><loc1023>") == "<loc0031>"
    assert pairs_to_cells("from <loc0032><loc0000> to <loc0000><loc0031>.") == (
        "from <loc0032> to <loc0000>."
    )
    assert pairs_to_cells(format_loc(BOX)).count("<loc") == 2


def test_decoded_places_are_within_half_a_cell():
    decoded = parse_loc(cells_to_pairs(pairs_to_cells(format_loc(BOX))), 4)[0]
    np.testing.assert_allclose(decoded, BOX, atol=0.5 / GRID + 1 / 1024)
    assert cells_to_pairs("<loc0033>") == f"<loc{CELL_SIZE * 3 // 2:04d}>" * 2


@pytest.mark.parametrize("text", ["no places", "[512, 300]", "<loc1024><loc12>"])
def test_other_text_does_not_change(text):
    assert pairs_to_cells(text) == cells_to_pairs(text) == text


@pytest.mark.parametrize("text", ["<loc0001>", "a <loc0001> <loc0002> b", "<loc0001>" * 3])
def test_an_odd_number_of_coordinates_is_an_error(text):
    with pytest.raises(UserError, match="coordinates; data.places 'cell' needs pairs"):
        pairs_to_cells(text)
