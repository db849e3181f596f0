"""Notation of places for the model: two tokens per point, or one.

Stored items write a point as the tokens of its y and its x ("pair", PaliGemma's notation). A small
model learns faster with one token per point ("cell"): a cell of a 32 x 32 grid over the image,
written as `<loc0000>` .. `<loc1023>` row by row.
"""

from __future__ import annotations

import re
from typing import TypeVar

from etcvla.errors import UserError
from etcvla.etc.items import NUM_LOC

PLACES = {
    "pair": "a point is its y and its x, two <loc> tokens",
    "cell": "a point is a cell of a 32 x 32 grid, one <loc> token",
}
GRID = 32  # cells along each axis
CELL_SIZE = NUM_LOC // GRID  # <loc> bins along each side of a cell

Index = TypeVar("Index")  # int or an integer array

LOC_TOKEN = r"<loc(?:0\d{3}|10[01]\d|102[0-3])>"
_LOC_TOKENS = re.compile(f"(?:{LOC_TOKEN})+")


def join_cell(row: Index, column: Index) -> Index:
    """Return the number of the cell at a row and a column."""
    return GRID * row + column


def split_cell(cell: Index) -> tuple[Index, Index]:
    """Return the row and the column of a cell; the inverse of `join_cell`."""
    return cell // GRID, cell % GRID


def pairs_to_cells(text: str) -> str:
    """Replace each pair of `<loc>` tokens (y, x) by the token of its cell.

    Raises UserError for an odd number of `<loc>` tokens in a row.

    >>> pairs_to_cells("is it at <loc0512><loc0100>?")
    'is it at <loc0515>?'
    """

    def _to_cells(match: re.Match) -> str:
        bins = _numbers(match.group())
        if len(bins) % 2:
            raise UserError(
                f"{match.group()} in {text!r} has {len(bins)} coordinates; data.places 'cell' "
                "needs pairs: y and x of each point"
            )
        cells = [
            join_cell(y // CELL_SIZE, x // CELL_SIZE)
            for y, x in zip(bins[::2], bins[1::2], strict=True)
        ]
        return _tokens(cells)

    return _LOC_TOKENS.sub(_to_cells, text)


def cells_to_pairs(text: str) -> str:
    """Replace the token of each cell by the pair (y, x) of its centre.

    >>> cells_to_pairs("<loc0515>")
    '<loc0528><loc0112>'
    """

    def _to_pairs(match: re.Match) -> str:
        bins = []
        for cell in _numbers(match.group()):
            for index in split_cell(cell):
                bins.append(index * CELL_SIZE + CELL_SIZE // 2)
        return _tokens(bins)

    return _LOC_TOKENS.sub(_to_pairs, text)


def _numbers(tokens: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d{4}", tokens)]


def _tokens(numbers: list[int]) -> str:
    return "".join(f"<loc{number:04d}>" for number in numbers)
