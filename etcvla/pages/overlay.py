"""What a question or an answer points at, drawn as SVG over its image; shared by all pages that show labels.

Shapes take the colour of the group that they stand in (`currentColor`). A page includes `STYLE` once.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Callable

import numpy as np
from PIL import Image

from etcvla.etc.items import parse_loc
from etcvla.etc.question_types import BOX, PATH, WORDS, answer_type
from etcvla.etc.score import parse_answer

HEIGHT = 1000  # of an overlay, in its own units
_BOX_IN_TEXT = re.compile(r"(?:<loc\d{4}>){4}|\[\d{1,4}(?:, \d{1,4}){3}\]")

STYLE = """
.look { position: relative; margin: 0; }
.look img { display: block; width: 100%; }
.look svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.look rect, .look polyline, .look .end { fill: none; stroke: currentColor; stroke-width: 7; stroke-linejoin: round; }
.look g { filter: drop-shadow(0 0 1px #fff) drop-shadow(0 0 6px #000); }
.look .asked { stroke-dasharray: 18 12; }
.look circle { fill: currentColor; stroke: #fff; stroke-width: 4; }
.look text { fill: #fff; font-size: 38px; filter: drop-shadow(0 0 4px #000); }
"""


def look(image: np.ndarray | bytes, alt: str, draw: Callable[[float], str]) -> str:
    """An HTML figure: the image, embedded, under the shapes that `draw` makes for its aspect (width / height).

    Args:
      image: uint8[H, W, 3], or an encoded JPEG or PNG file.
    """
    data = _encoded(image)
    with Image.open(io.BytesIO(data)) as opened:
        aspect = opened.width / opened.height
    return (
        f'<figure class="look">{picture(data, alt)}'
        f'<svg viewBox="0 0 {HEIGHT * aspect:.0f} {HEIGHT}">{draw(aspect)}</svg></figure>'
    )


def picture(image: np.ndarray | bytes, alt: str) -> str:
    """An HTML image, embedded; `image` as of `look`."""
    data = _encoded(image)
    with Image.open(io.BytesIO(data)) as opened:
        mime = f"image/{opened.format.lower()}"
    return f'<img src="{data_uri(data, mime)}" alt="{html.escape(alt)}">'


def _encoded(image: np.ndarray | bytes) -> bytes:
    if isinstance(image, bytes):
        return image
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


def data_uri(data: bytes, mime: str) -> str:
    """A file as an address that holds it."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def words(name: str) -> str:
    """An identifier as escaped words."""
    return html.escape(name.replace("_", " "))


def prose(text: str) -> str:
    """Escaped text with location tokens as tags that read as numbers: one a box, one a point of a path."""
    return re.sub(r"(?:&lt;loc\d{4}&gt;)+", lambda run: _places(run[0]), html.escape(text))


def _places(tokens: str) -> str:
    found = re.findall(r"[0-9]{4}", tokens)
    step = 4 if len(found) == 4 else 2
    return (
        f'<span title="{tokens}">'
        + " ".join(
            f"<code>{' '.join(found[i : i + step])}</code>" for i in range(0, len(found), step)
        )
        + "</span>"
    )


def asked(question: str, aspect: float) -> str:
    """The boxes that a question names, dashed."""
    return "".join(
        box(parse_loc(found, 4)[0], aspect, "asked") for found in _BOX_IN_TEXT.findall(question)
    )


def answered(question_type: str, answer: str, aspect: float) -> str:
    """The box, point or path of an answer; "" where it is words, or cannot be read."""
    kind = answer_type(question_type)
    place = parse_answer(kind, answer) if kind != WORDS else None
    if place is None:
        return ""
    if kind == PATH:
        return path(place, aspect)
    return box(place[0], aspect) if kind == BOX else dot(place[0], aspect)


def box(place: np.ndarray, aspect: float, name: str = "") -> str:
    """A box (ymin, xmin, ymax, xmax) in [0, 1]."""
    ymin, xmin, ymax, xmax = (value * HEIGHT for value in place.tolist())
    return (
        f'<rect class="{name}" x="{xmin * aspect:.0f}" y="{ymin:.0f}" width="{(xmax - xmin) * aspect:.0f}" '
        f'height="{ymax - ymin:.0f}" rx="4"/>'
    )


def dot(point: np.ndarray, aspect: float) -> str:
    """A point (y, x) in [0, 1]."""
    return f'<circle cx="{point[1] * HEIGHT * aspect:.0f}" cy="{point[0] * HEIGHT:.0f}" r="13"/>'


def path(points: np.ndarray, aspect: float) -> str:
    """A line through points (y, x) with small dots at the keypoints and a ring around the end."""
    line = " ".join(f"{x * HEIGHT * aspect:.0f},{y * HEIGHT:.0f}" for y, x in points)
    dots = "".join(dot(point, aspect).replace('r="13"', 'r="9"') for point in points[:-1])
    end = (
        dot(points[-1], aspect)
        .replace("<circle", '<circle class="end"')
        .replace('r="13"', 'r="20"')
    )
    return f'<polyline points="{line}"/>{dots}{end}'
