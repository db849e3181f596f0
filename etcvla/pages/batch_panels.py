"""Drawing of the batch picture (see `first_batch`) on one pair of axes whose unit is a pixel."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from etcvla.pages import palette
from etcvla.pages.shapes import Shape, draw_shape

SIDE = 224  # side of a picture, pixels
GAP = 12  # distance of pictures
TEXT_COLUMNS = 92  # width of the column of text, characters
TEXT_WIDTH = 620  # the same in pixels
SCALE = 2  # cameras are drawn larger and then reduced, because Pillow's lines are not smooth
CHUNK_LIMIT = 1.5  # range of the normalised actions that are drawn
LINE_HEIGHT = 18
HEADING_HEIGHT = 26
TOP = 90  # height of the title and the legend

BACKGROUND = "#f4f5f7"  # of attention masks and chunks
PADDING_COLOR = "#d5d9dd"
IMAGE_COLOR = "#495057"  # image tokens
SEGMENT_COLORS = (*palette.KIND_COLORS.values(), "#0b7285", "#a61e4d", "#5c940d")
LEGEND = (
    "First camera: shapes in prompts are thin, shapes in answers are thick. Attention mask: "
    "queries are rows, keys are columns, in the order images, text, action expert. Chunk: "
    "normalised actions over the steps, from -1.5 to 1.5, without masked values; rings are decoded "
    "from FAST tokens. Strip: the text tokens, targets in full colour, prompts pale, padding grey."
)
_ACTION_TOKENS = re.compile(r"(?:<act\d{4}>)+")


@dataclasses.dataclass(frozen=True)
class Panel:
    """The parts of a row's panel.

    Attributes:
      heading: text above the pictures.
      row: arrays of the row.
      shapes: (shape, colour) of the shapes in the texts, drawn over the first camera's image.
      attention: bool[T, S], the attention mask of images and text.
      expert_attention: bool[K, S], the keys of the action expert for each action chunk.
      fast_chunk: float[P, A] decoded from the first chunk's FAST tokens, if it has any.
      lines: (text, colour) of the lines of text.
    """

    heading: str
    row: Mapping[str, np.ndarray]
    shapes: Sequence[tuple[Shape, str]]
    attention: np.ndarray
    expert_attention: np.ndarray
    fast_chunk: np.ndarray | None
    lines: Sequence[tuple[str, str]]


def segment_color(number: int) -> str:
    """Return the colour of a segment; number 0 is padding."""
    if number == 0:
        return PADDING_COLOR
    return SEGMENT_COLORS[(number - 1) % len(SEGMENT_COLORS)]


def draw_page(title: str, panels: Sequence[Panel]) -> np.ndarray:
    """Draw the title, the legend and the panels below each other: uint8[height, width, 3]."""
    text_left = GAP + (len(panels[0].row["images"]) + 2) * (SIDE + GAP)
    width = text_left + TEXT_WIDTH
    heights = []
    for panel in panels:
        content = max(SIDE + 16, LINE_HEIGHT * len(panel.lines))
        heights.append(HEADING_HEIGHT + content + 2 * GAP)
    height = TOP + sum(heights)
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    axes = figure.add_axes((0, 0, 1, 1))
    _text(axes, GAP, 8, title, size=18)
    for i, line in enumerate(textwrap.wrap(LEGEND, width // 7)):
        _text(axes, GAP, 36 + 18 * i, line, palette.MUTED)
    top = TOP
    for panel, panel_height in zip(panels, heights, strict=True):
        axes.plot([GAP, width - GAP], [top - 6, top - 6], color=palette.GRID)
        draw_panel(axes, panel, top, text_left)
        top += panel_height
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    axes.axis("off")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def draw_panel(axes: Axes, panel: Panel, top: float, text_left: float) -> None:
    """Draw a row: pictures from left to right, the tokens below, the text on the right."""
    row = panel.row
    picture_top = top + HEADING_HEIGHT
    left = GAP
    _text(axes, left, top, panel.heading)
    for camera, image in enumerate(row["images"]):
        if row["image_mask"][camera]:
            shapes = panel.shapes if camera == 0 else []
            _picture(axes, draw_camera(image, shapes), left, picture_top)
        else:
            _picture(axes, np.array([[to_rgb(palette.GRID)]]), left, picture_top)
            _text(axes, left + 70, picture_top + 100, "no image", palette.MUTED)
        left += SIDE + GAP
    colors = np.array([to_rgb(segment_color(number)) for number in row["segment"].tolist()])
    _picture(axes, draw_attention(panel, colors), left, picture_top)
    if row["action_segment"].any():
        left += SIDE + GAP
        draw_chunk(axes, panel, left, picture_top)
    is_prompt = (row["segment"] > 0) & ~row["target"]
    strip = np.where(is_prompt[:, None], 0.35 * colors + 0.65, colors)
    strip_bottom = picture_top + SIDE + 14
    extent = (GAP, text_left - GAP, strip_bottom, strip_bottom - 10)
    axes.imshow(strip[None], extent=extent, interpolation="nearest")
    for i, (text, color) in enumerate(panel.lines):
        _text(axes, text_left, picture_top + LINE_HEIGHT * i, text, color)


def draw_camera(image: np.ndarray, shapes: Sequence[tuple[Shape, str]]) -> np.ndarray:
    """Draw (shape, colour) pairs over an image uint8[H, W, 3], enlarged."""
    size = (SIDE * SCALE, SIDE * SCALE)
    picture = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    for shape, color in shapes:
        draw_shape(picture, shape, color, SCALE if shape.dashed else 2 * SCALE)
    return np.asarray(picture)


def draw_attention(panel: Panel, text_colors: np.ndarray) -> np.ndarray:
    """Draw the attention mask of a row without the text's padding, one pixel for each key.

    Args:
      panel: the row's panel.
      text_colors: float[L, 3] of the text tokens.
    """
    num_image_tokens = panel.expert_attention.shape[1] - len(text_colors)
    num_keys = num_image_tokens + int((panel.row["segment"] > 0).sum())
    image_colors = np.tile(to_rgb(IMAGE_COLOR), (num_image_tokens, 1))
    colors = np.concatenate([image_colors, text_colors])[:num_keys]
    mask = panel.attention[:num_keys, :num_keys]
    is_present = panel.row["action_segment"] > 0
    if is_present.any():
        # The expert has few queries: repeat its line of each chunk so that it stays visible.
        num_lines = max(panel.row["actions"].shape[1], num_keys // 12)
        lines = np.repeat(panel.expert_attention[is_present, :num_keys], num_lines, axis=0)
        mask = np.concatenate([mask, lines])
        colors = np.concatenate([colors, np.tile(to_rgb(palette.INK), (len(lines), 1))])
    return np.where(mask[..., None], colors[:, None], to_rgb(BACKGROUND))


def draw_chunk(axes: Axes, panel: Panel, left: float, top: float) -> None:
    """Draw the first normalised action chunk as curves over its steps, its FAST chunk as rings."""
    _picture(axes, np.array([[to_rgb(BACKGROUND)]]), left, top)
    scale = SIDE / (2 * CHUNK_LIMIT)
    center = top + SIDE / 2
    for value in (-1, 0, 1):
        axes.plot([left, left + SIDE], [center - scale * value] * 2, color=palette.GRID)
    actions = np.where(panel.row["action_mask"][0], panel.row["actions"][0], np.nan)
    heights = center - scale * np.clip(actions, -CHUNK_LIMIT, CHUNK_LIMIT)
    xs = left + (np.arange(len(actions)) + 0.5) / len(actions) * SIDE
    for dim, column in enumerate(heights.T):
        axes.plot(xs, column, ".-", color=segment_color(dim + 1), linewidth=2)
    if panel.fast_chunk is not None:
        heights = center - scale * np.clip(panel.fast_chunk, -CHUNK_LIMIT, CHUNK_LIMIT)
        for dim, column in enumerate(heights.T):
            axes.plot(xs, column, "o", mfc="none", color=segment_color(dim + 1), markersize=7)


def _picture(axes: Axes, picture: np.ndarray, left: float, top: float) -> None:
    axes.imshow(picture, extent=(left, left + SIDE, top + SIDE, top))


def _text(
    axes: Axes, x: float, y: float, text: str, color: str = palette.INK, size: int = 13
) -> None:
    axes.text(x, y, text, va="top", color=color, size=size, parse_math=False)


def shorten(text: str) -> str:
    """Write a text on one line, with locations as numbers and action tokens as their count."""
    text = text.replace("\n", " ¶ ")
    text = _ACTION_TOKENS.sub(lambda match: f"<{len(match[0]) // 9} action tokens>", text)
    text = text.replace("><loc", " ")
    return text.replace("<loc", "<")
