"""Rendering of HTML pages from the jinja2 templates in `templates/`.

All pages are self-contained: styles, scripts and images are embedded in the one HTML file.
Templates escape every value that is not marked as HTML.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import re
from collections.abc import Mapping
from typing import Any

import jinja2
import numpy as np
from etils import epath
from markupsafe import Markup
from PIL import Image

from etcvla.pages import palette
from etcvla.pages.shapes import OVERLAY_HEIGHT, answer_shapes, question_shapes
from etcvla.results_schema import INTERVENTIONS
from etcvla.stats import Estimate

_ASSETS = epath.resource_path("etcvla") / "pages/assets"
_LOCATION_TOKENS = re.compile(r"((?:<loc\d{4}>)+)")


def render(template: str, context: Mapping[str, Any]) -> str:
    """Render the template of this name, for example "gallery.html.j2"."""
    return _environment().get_template(template).render(context)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("etcvla.pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        asset=_asset,
        palette=palette,
        embed_image=embed_image,
        question_shapes=question_shapes,
        answer_shapes=answer_shapes,
        interventions=INTERVENTIONS,
        verdict_colors=palette.VERDICT_COLORS,
    )
    environment.filters.update(
        words=as_words,
        locations=split_locations,
        percent=percent,
        interval=interval,
        fraction=fraction,
        duration=duration,
    )
    return environment


def _asset(name: str) -> Markup:
    return Markup((_ASSETS / name).read_text())


def as_words(name: str) -> str:
    """Write an identifier as words: "goal_description" -> "goal description"."""
    return name.replace("_", " ")


def split_locations(text: str) -> list[tuple[str, list[str]]]:
    """Split a text at its location tokens, which pages show as numbers.

    Returns:
      (text, []) for plain text and (tokens, groups) for a run of location tokens. A group is the
      digits of a box ("0100 0200 0300 0400") or of a point of a path ("0100 0200").
    """
    pieces = []
    for piece in _LOCATION_TOKENS.split(text):
        if not _LOCATION_TOKENS.fullmatch(piece):
            pieces.append((piece, []))
            continue
        numbers = re.findall(r"\d{4}", piece)
        size = 4 if len(numbers) == 4 else 2
        starts = range(0, len(numbers), size)
        pieces.append((piece, [" ".join(numbers[i : i + size]) for i in starts]))
    return pieces


def percent(share: float) -> str:
    """Write a share as "56%"."""
    return f"{share:.0%}"


def interval(value: Estimate) -> str:
    """Write an estimate's interval as "50–62%"."""
    return f"{value.low * 100:.0f}–{value.high * 100:.0f}%"


def fraction(value: Estimate) -> str:
    """Write a success rate as "3 of 10"."""
    return f"{value.value * value.count:.0f} of {value.count}"


def duration(seconds: float | None) -> str:
    """Write a time in the unit that suits its size."""
    if seconds is None:
        return "time not recorded"
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes:.1f} min"
    return f"{minutes / 60:.1f} h"


@dataclasses.dataclass(frozen=True)
class EmbeddedImage:
    """An image as a data URI, with the size of the overlay that is drawn over it."""

    uri: str
    aspect: float  # width / height

    @property
    def overlay_width(self) -> int:
        """Width of the overlay in its own units; its height is OVERLAY_HEIGHT."""
        return round(OVERLAY_HEIGHT * self.aspect)

    def overlay_points(self, points: np.ndarray) -> list[tuple[int, int]]:
        """Convert float[n, 2] points (y, x) in [0, 1] to (x, y) in overlay units."""
        scaled = np.asarray(points)[:, ::-1] * [OVERLAY_HEIGHT * self.aspect, OVERLAY_HEIGHT]
        return [(round(x), round(y)) for x, y in scaled.tolist()]


def embed_image(image: np.ndarray | bytes) -> EmbeddedImage:
    """Embed an image: uint8[H, W, 3], or the bytes of an image file of any format."""
    if isinstance(image, bytes):
        data = image
    else:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "png")
        data = buffer.getvalue()
    with Image.open(io.BytesIO(data)) as opened:
        mime_type = f"image/{opened.format.lower()}"
        aspect = opened.width / opened.height
    return EmbeddedImage(f"data:{mime_type};base64,{base64.b64encode(data).decode()}", aspect)
