"""Drawing of the parts of the batch picture (see `first_batch`) with Pillow."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from etcvla.etc.question_types import BOX, POINT
from etcvla.pages import palette
from etcvla.pages.shapes import Shape

SIDE = 224  # side of a picture, pixels
GAP = 12  # distance of pictures
TEXT_WIDTH = 620  # width of the column of text
SCALE = 2  # pictures are drawn larger and then reduced, because Pillow's lines are not smooth
CHUNK_LIMIT = 1.5  # range of the normalised actions that are drawn
TEXT_SIZE = 14
LEGEND_SIZE = 13
LINE_HEIGHT = 19
HEADING_HEIGHT = 26

INK = palette.INK
PAPER = "#ffffff"
BACKGROUND = "#f4f5f7"  # of attention masks and chunks
PADDING_COLOR = "#d5d9dd"
MASKED_COLOR = "#c9ced3"
IMAGE_COLOR = "#495057"  # image tokens
EXPERT_COLOR = palette.INK  # action expert
SEGMENT_COLORS = (*palette.KIND_COLORS.values(), "#0b7285", "#a61e4d", "#5c940d")
LEGEND = (
    "First camera: shapes in prompts are dashed, shapes in answers are solid. Attention mask: "
    "queries are rows, keys are columns, in the order images, text, action expert. Chunk: "
    "normalised actions over the steps, from -1.5 to 1.5, pale where masked; rings are decoded "
    "from FAST tokens. Strip: the text tokens, targets in full colour, prompts pale, padding grey."
)
_ACTION_TOKENS = re.compile(r"(?:<act\d{4}>)+")
_LOCATION_TOKENS = re.compile(r"(?:<loc\d{4}>)+")


def segment_color(number: int) -> str:
    """Return the colour of a segment; number 0 is padding."""
    if number == 0:
        return PADDING_COLOR
    return _cycle_color(int(number) - 1)


def _cycle_color(index: int) -> str:
    return SEGMENT_COLORS[index % len(SEGMENT_COLORS)]


# ---- Pictures of a row ----


def draw_camera(
    image: np.ndarray, present: bool, shapes: Sequence[tuple[Shape, str]]
) -> Image.Image:
    """Draw a camera's image with (shape, colour) pairs over it.

    Args:
      image: uint8[H, W, 3].
      present: False draws a crossed field instead, for a camera that the row lacks.
      shapes: shapes and their colours.
    """
    side = SIDE * SCALE
    if present:
        picture = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(picture)
        for shape, color in shapes:
            _draw_shape(draw, shape, color)
    else:
        picture = Image.new("RGB", (side, side), palette.GRID)
        draw = ImageDraw.Draw(picture)
        draw.line((0, 0, side, side), palette.MUTED, SCALE)
        draw.line((0, side, side, 0), palette.MUTED, SCALE)
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _draw_shape(draw: ImageDraw.ImageDraw, shape: Shape, color: str) -> None:
    """Draw a shape with a white edge, which makes it visible on any background."""
    points = []
    for y, x in (shape.points * (SIDE * SCALE)).tolist():
        points.append((x, y))
    if shape.kind == BOX:
        (left, top), (right, bottom) = points
        corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
        for ends in itertools.pairwise(corners):
            _draw_line(draw, ends, color, shape.dashed)
        return
    for ends in itertools.pairwise(points):
        _draw_line(draw, ends, color, shape.dashed)
    for i, (x, y) in enumerate(points):
        is_end = shape.kind == POINT or i == len(points) - 1
        radius = (5 if is_end else 3) * SCALE
        draw.circle((x, y), radius, color, PAPER, SCALE)


def _draw_line(
    draw: ImageDraw.ImageDraw,
    ends: tuple[tuple[float, float], tuple[float, float]],
    color: str,
    dashed: bool,
) -> None:
    draw.line(ends, PAPER, 4 * SCALE)
    if not dashed:
        draw.line(ends, color, 2 * SCALE)
        return
    start, end = np.array(ends)
    length = float(np.linalg.norm(end - start))
    num_pieces = max(1, int(length / (5 * SCALE)))
    for i in range(0, num_pieces, 2):
        dash_start = start + (end - start) * (i / num_pieces)
        dash_end = start + (end - start) * (min(i + 1, num_pieces) / num_pieces)
        draw.line((*dash_start, *dash_end), color, 2 * SCALE)


def draw_attention(
    row: Mapping[str, np.ndarray],
    prefix_mask: np.ndarray,
    expert_mask: np.ndarray,
    num_image_tokens: int,
) -> Image.Image:
    """Draw the attention mask of a row without the text's padding.

    Args:
      row: arrays of the row.
      prefix_mask: bool[I + L, I + L], keys of each query.
      expert_mask: bool[I + L], keys of the action expert.
      num_image_tokens: I.
    """
    num_keys = num_image_tokens + int((row["segment"] > 0).sum())
    colors = [IMAGE_COLOR] * num_image_tokens
    colors += [segment_color(number) for number in row["segment"]]
    lines = []
    for query in range(num_keys):
        lines.append(_mask_line(prefix_mask[query, :num_keys], colors[query]))
    if row["action_segment"]:
        # The expert has few queries: repeat its line so that it stays visible.
        num_lines = max(len(row["actions"]), num_keys // 12)
        lines += [_mask_line(expert_mask[:num_keys], EXPERT_COLOR)] * num_lines
    picture = Image.fromarray(np.stack(lines))
    return picture.resize((SIDE, SIDE), Image.Resampling.BOX)


def _mask_line(mask: np.ndarray, color: str) -> np.ndarray:
    """Return uint8[S, 3]: one query's line of the attention mask bool[S]."""
    return np.where(mask[:, None], _rgb(color), _rgb(BACKGROUND)).astype(np.uint8)


def draw_chunk(row: Mapping[str, np.ndarray], fast_chunks: Sequence[np.ndarray]) -> Image.Image:
    """Draw the normalised action chunk as curves over its steps.

    Args:
      row: arrays of the row.
      fast_chunks: float[P, A] chunks decoded from FAST tokens, drawn as rings.
    """
    side = SIDE * SCALE
    picture = Image.new("RGB", (side, side), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for value, color in ((-1, palette.GRID), (0, "#b9c0c7"), (1, palette.GRID)):
        y = _chunk_y(value)
        draw.line((0, y, side, y), color, SCALE)
    horizon = len(row["actions"])
    xs = (np.arange(horizon) + 0.5) / horizon * side
    for dim in np.flatnonzero(row["action_mask"].any(axis=0)):
        valid = row["action_mask"][:, dim]
        points = [(x, _chunk_y(value)) for x, value in zip(xs, row["actions"][:, dim], strict=True)]
        for step in range(1, horizon):
            both_valid = valid[step - 1] and valid[step]
            color = _cycle_color(dim) if both_valid else MASKED_COLOR
            draw.line(points[step - 1 : step + 1], color, 2 * SCALE)
    for chunk in fast_chunks:
        for (step, dim), value in np.ndenumerate(chunk):
            center = (xs[step], _chunk_y(value))
            draw.circle(center, 4 * SCALE, None, _cycle_color(dim), SCALE)
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _chunk_y(value: float) -> float:
    """Return the height of a normalised action in the picture of a chunk."""
    clipped = np.clip(value, -CHUNK_LIMIT, CHUNK_LIMIT)
    return (0.5 - clipped / (2 * CHUNK_LIMIT)) * SIDE * SCALE


def draw_tokens(row: Mapping[str, np.ndarray]) -> Image.Image:
    """Draw a row's text tokens as a strip, one pixel for each token.

    Colours are those of the segments: pale for prompts, dark for targets with zero weight.
    """
    colors = np.stack([_rgb(segment_color(number)) for number in row["segment"]])
    colors = colors.astype(np.float32)
    is_prompt = (row["segment"] > 0) & ~row["target"]
    colors[is_prompt] = 0.35 * colors[is_prompt] + 0.65 * 255
    colors[row["target"] & (row["weight"] == 0)] /= 3
    return Image.fromarray(colors.astype(np.uint8)[None])


# ---- Layout ----


def draw_panel(
    heading: str,
    pictures: Sequence[Image.Image],
    num_slots: int,
    tokens: Image.Image,
    lines: Sequence[tuple[str, str]],
) -> Image.Image:
    """Draw a row's panel: pictures from left to right, the tokens below, the text on the right.

    Args:
      heading: text above the pictures.
      pictures: pictures of SIDE x SIDE pixels, at most `num_slots`.
      num_slots: number of pictures for which the panel has space.
      tokens: strip of the text tokens.
      lines: (text, colour) of the lines of text.
    """
    text_left = num_slots * (SIDE + GAP)
    height = HEADING_HEIGHT + max(SIDE + 16, LINE_HEIGHT * len(lines)) + GAP
    panel = Image.new("RGB", (text_left + TEXT_WIDTH, height), PAPER)
    draw = ImageDraw.Draw(panel)
    draw.text((0, 2), heading, INK, _font(TEXT_SIZE))
    for i, picture in enumerate(pictures):
        panel.paste(picture, (i * (SIDE + GAP), HEADING_HEIGHT))
    strip = tokens.resize((text_left - GAP, 10), Image.Resampling.NEAREST)
    panel.paste(strip, (0, HEADING_HEIGHT + SIDE + 4))
    for i, (text, color) in enumerate(lines):
        position = (text_left, HEADING_HEIGHT + LINE_HEIGHT * i)
        draw.text(position, text, color, _font(TEXT_SIZE))
    return panel


def draw_page(title: str, panels: Sequence[Image.Image]) -> Image.Image:
    """Draw the title, the legend and the panels below each other."""
    width = max(panel.width for panel in panels) + 2 * GAP
    legend = wrap(LEGEND, width=width - 2 * GAP, size=LEGEND_SIZE)
    top = 34 + 18 * len(legend) + GAP
    height = top + sum(panel.height + GAP for panel in panels)
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((GAP, 8), title, INK, _font(18))
    for i, line in enumerate(legend):
        draw.text((GAP, 36 + 18 * i), line, palette.MUTED, _font(LEGEND_SIZE))
    for panel in panels:
        draw.line((GAP, top - 6, width - GAP, top - 6), palette.GRID)
        page.paste(panel, (GAP, top))
        top += panel.height + GAP
    return page


def shorten(text: str) -> str:
    """Write a text on one line, with locations as numbers and action tokens as their count."""
    text = text.replace("\n", " ¶ ")
    text = _ACTION_TOKENS.sub(lambda match: f"<{len(match[0]) // 9} action tokens>", text)
    return _LOCATION_TOKENS.sub(
        lambda match: f"<{' '.join(re.findall(r'[0-9]{4}', match[0]))}>", text
    )


def wrap(
    text: str, *, indent: str = "", width: int = TEXT_WIDTH - GAP, size: int = TEXT_SIZE
) -> list[str]:
    """Break a text into lines of at most `width` pixels; all lines but the first are indented."""
    lines = [""]
    for word in re.findall(r"\s*\S+", text):
        if lines[-1] and _font(size).getlength(lines[-1] + word) > width:
            lines.append(indent + word.lstrip())
        else:
            lines[-1] += word
    return lines


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _rgb(color: str) -> np.ndarray:
    """Convert "#rrggbb" to uint8[3]."""
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)], np.uint8)
