"""Locations in the texts of image-text datasets, converted to location tokens."""

from __future__ import annotations

import re

from data_builders.common.mm_entry import EntryError
from etcvla.etc.items import NUM_LOC, format_loc

LOCATION_FORMATS = {
    "text": "no conversion",
    "loc": "<locNNNN> tokens, which are checked",
    "xy1000": "integers 0..1000 in brackets, x before y",
    "yx1000": "integers 0..1000 in brackets, y before x",
    "integers": f"integers 0..{NUM_LOC - 1} in brackets, y before x, as the builders here write",
}
_BRACKETS = re.compile(r"[\[(]\s*(\d+(?:\s*,\s*\d+)+)\s*[\])]")
_TOKEN_LIST = re.compile(r"\[\s*((?:<loc\d{4}>)+(?:\s*,?\s*(?:<loc\d{4}>)+)*)\s*\]")
_TOKEN = re.compile(r"<loc[^>]*>")
_VALID_TOKEN = re.compile(r"<loc(\d{4})>")


def convert_locations(text: str, location_format: str, *, is_path: bool = False) -> str:
    """Return `text` with its boxes, points and paths as location tokens, y before x.

    >>> convert_locations("the cup is at [100, 200, 300, 400].", "xy1000")
    'the cup is at <loc0204><loc0102><loc0409><loc0307>.'

    Args:
      location_format: a key of `LOCATION_FORMATS`.
      is_path: two points are a path, not a box.

    Raises EntryError for a number that is too large, an empty box or a malformed token.
    """
    if location_format == "text":
        return text
    if location_format != "loc":
        text = _BRACKETS.sub(lambda match: _convert_brackets(match, location_format, is_path), text)
    for token in _TOKEN.findall(text):
        match = _VALID_TOKEN.fullmatch(token)
        if match is None or int(match[1]) >= NUM_LOC:
            raise EntryError("a malformed location")
    return _TOKEN_LIST.sub(lambda match: re.sub(r"[\s,]", "", match[1]), text)


def _convert_brackets(match: re.Match, location_format: str, is_path: bool) -> str:
    """Return the tokens of integers in brackets; an odd count of integers is no location."""
    numbers = [int(number) for number in match[1].split(",")]
    if len(numbers) % 2:
        return match[0]
    # Integers of our own are bins, so that the centre of the bin is meant.
    is_bin = location_format == "integers"
    maximum = NUM_LOC - 1 if is_bin else 1000
    offset = 0.5 if is_bin else 0.0
    size = NUM_LOC if is_bin else 1000
    if max(numbers) > maximum:
        raise EntryError(f"a location beyond {maximum}")
    points = [numbers[i : i + 2] for i in range(0, len(numbers), 2)]
    if location_format == "xy1000":
        points = [[y, x] for x, y in points]
    if len(points) == 2 and not is_path:
        (top, left), (bottom, right) = points
        if bottom <= top or right <= left:
            raise EntryError("an empty box")
    coordinates = []
    for point in points:
        coordinates += [(number + offset) / size for number in point]
    return format_loc(coordinates)
