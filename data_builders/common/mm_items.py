"""Conversion of image-text entries: each turn becomes an item, each image an RGB JPEG."""

from __future__ import annotations

import io
import re

from PIL import Image, UnidentifiedImageError

from data_builders.common.mm_entry import EntryError
from data_builders.common.mm_locations import convert_locations
from etcvla.etc.items import ETC_KINDS, Item, parse_loc

DEFAULT_KIND = "vqa"  # of the grade "general", because no trajectory is known for the items


def normalize_kind(name: str) -> str:
    """Return the ETC kind that `name` contains in any spelling, else `name`, or "vqa" for "".

    >>> normalize_kind("Task Planning"), normalize_kind("ocr"), normalize_kind("")
    ('task_planning', 'ocr', 'vqa')
    """
    normalized = re.sub(r"[^a-z]+", "_", name.lower())
    matches = [kind for kind in ETC_KINDS if kind in normalized]
    if len(matches) == 1:
        return matches[0]
    return name or DEFAULT_KIND


def make_item(question: str, answer: str, *, kind: str, locations: str, source: str) -> Item:
    """Return the item of one turn.

    Args:
      locations: format of boxes and points, a key of `LOCATION_FORMATS`.

    Raises EntryError if a text is empty or a location is invalid.
    """
    is_path = kind == "trajectory"
    question = convert_locations(" ".join(question.split()), locations, is_path=is_path)
    answer = convert_locations(" ".join(answer.split()), locations, is_path=is_path)
    if not question or not answer:
        raise EntryError("empty question or answer")
    return Item(kind, _question_type(answer, kind), question, answer, source)


def _question_type(answer: str, kind: str) -> str:
    """Return the question type, which fixes how the answer is parsed and scored."""
    points = parse_loc(answer, 2)
    if points is None:
        return "vqa"
    if kind == "trajectory" and len(points) > 1:
        return "trace"
    # Two corners are a box. No question type scores a list of more points.
    return {1: "locate_point", 2: "locate_box"}.get(len(points), "vqa")


def to_jpeg(data: bytes, max_side: int) -> bytes:
    """Return an image file as an RGB JPEG of bounded size; such a JPEG is returned unchanged.

    Args:
      max_side: pixels of the longer side; 0: no limit.

    Raises EntryError if the image does not decode.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            fits = not max_side or max(image.size) <= max_side
            image.load()
            if image.format == "JPEG" and image.mode == "RGB" and fits:
                return data
            image = image.convert("RGB")
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as error:
        raise EntryError("the image does not decode") from error
    if not fits:
        image.thumbnail((max_side, max_side))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    return file.getvalue()
