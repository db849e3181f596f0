"""Boxes, points and paths that questions and answers contain, to draw over an image."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
from PIL import Image, ImageDraw

from etcvla.etc.items import parse_loc
from etcvla.etc.question_types import BOX, PATH, POINT, WORDS, answer_type
from etcvla.etc.score import parse_answer

OVERLAY_HEIGHT = 1000  # height of an overlay in its own units
_LOCATIONS = re.compile(r"(?:<loc\d{4}>)+|\[\d{1,4}(?:, \d{1,4})+\]")


@dataclasses.dataclass(frozen=True)
class Shape:
    """A box, point or path on an image.

    Attributes:
      kind: BOX, POINT or PATH.
      points: float[n, 2], (y, x) in [0, 1]: the top left and bottom right corner of a box, one
        point, or the keypoints of a path.
      dashed: the shape is part of a question, not of an answer.
    """

    kind: str
    points: np.ndarray
    dashed: bool = False


def draw_shape(image: Image.Image, shape: Shape, color: str, width: int) -> None:
    """Draw a shape with a white edge, which makes it visible on any background.

    Args:
      image: changed in place.
      shape: points and the end of a path are drawn as dots.
      color: name or "#rrggbb".
      width: width of the lines in pixels.
    """
    draw = ImageDraw.Draw(image)
    points = [tuple(point) for point in (shape.points[:, ::-1] * image.size).tolist()]
    for line_color, edge in (("white", 2), (color, 0)):
        if shape.kind == BOX:
            corners = np.sort(points, axis=0).ravel().tolist()
            draw.rectangle(corners, outline=line_color, width=width + edge)
            continue
        if len(points) > 1:
            draw.line(points, line_color, width + edge, joint="curve")
        draw.circle(points[-1], 2 * width + edge / 2, fill=line_color)


def question_shapes(question: str) -> list[Shape]:
    """Return the shapes that a question names, dashed."""
    return shapes_in_text(question, dashed=True)


def answer_shapes(question_type: str, answer: str) -> list[Shape]:
    """Return the shape that an answer is; none if it is words or cannot be parsed."""
    kind = answer_type(question_type)
    coordinates = None if kind == WORDS else parse_answer(kind, answer)
    if coordinates is None:
        return []
    return [Shape(kind, coordinates.reshape(-1, 2))]


def shapes_in_text(text: str, *, are_paths: bool = False, dashed: bool = False) -> list[Shape]:
    """Return all shapes in a text, written as location tokens or as integers in brackets.

    Args:
      text: any text.
      are_paths: all shapes are paths. Otherwise, one point is a point, two points are a box, and
        more points are a path.
      dashed: see `Shape`.
    """
    shapes = []
    for location in _LOCATIONS.findall(text):
        points = parse_loc(location, 2)
        if points is None:
            continue
        kind = PATH if are_paths else {1: POINT, 2: BOX}.get(len(points), PATH)
        shapes.append(Shape(kind, points, dashed))
    return shapes
