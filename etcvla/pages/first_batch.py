"""The first batch as a picture: what the model is shown and asked, and what it is to say and do.

Everything is read back from the arrays that the model gets: texts are decoded from tokens, places from their
`<loc>`s, FAST's chunk from its tokens. So what the picture shows is what is trained on.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from etcvla.data import prompts
from etcvla.etc.items import parse_loc
from etcvla.etc.question_types import BOX, PATH, POINT, QUESTION_TYPES, WORDS, parse_question
from etcvla.models.vla import (
    VLAConfig,
    expand_image_mask,
    expert_key_mask,
    prefix_positions_and_mask,
)
from etcvla.pages.palette import KIND_COLORS
from etcvla.train.stage import Stage

MAX_ROWS = 8
SIDE, GAP, TEXT_WIDTH = 224, 12, 620  # pixels: of a panel, between panels, of the column of text
FINE = 2  # shapes are drawn so much larger, then scaled down: Pillow's lines are not smooth
INK, SOFT, FAINT, PAPER = "#1d2329", "#68717a", "#e3e6ea", "#ffffff"
SEGMENT_COLORS = (*KIND_COLORS.values(), "#0b7285", "#a61e4d", "#5c940d")
IMAGE_COLOR, EXPERT_COLOR = "#495057", "#1d2329"
LEGEND = (
    "On the first camera: what a question names is dashed, what is to be answered is drawn through. Matrix: who "
    "(rows) reads whom (columns), images, text, then the expert's rows. Curves: the normalised chunk, -1.5 to "
    "1.5, faint where masked; rings: the same from its FAST tokens. Strip: all tokens of the text, targets in "
    "full colour, prompts pale, padding grey."
)
_PLACES = re.compile(r"(?:<loc\d{4}>)+|\[\d{1,4}(?:, \d{1,4})+\]")
_ACTIONS = re.compile(r"(?:<act\d{4}>)+")


@dataclasses.dataclass(frozen=True)
class SegmentTarget:
    """A segment of a row, read back."""

    number: int  # of its segment, from 1
    prompt: str
    answer: str
    acts: bool  # the expert's segment
    fast: tuple[int, ...]  # tokens of its chunk; () where it has none

    @property
    def color(self) -> str:
        return SEGMENT_COLORS[(self.number - 1) % len(SEGMENT_COLORS)]


def draw_batch(batch: Mapping[str, np.ndarray], stage: Stage, title: str) -> np.ndarray:
    """Rows of a batch, each stream's first before others, as uint8[height, width, 3]."""
    chosen = choose_rows(batch, MAX_ROWS)
    few = {name: np.asarray(value)[chosen] for name, value in batch.items()}
    there, seen, expert = jax.device_get(_attention(stage.model.config, few))
    panels = []
    for i, row in enumerate(chosen):
        one = {name: value[i] for name, value in few.items()}
        targets = read_segment_targets(one, stage)
        heading = _heading(row, one, stage)
        looks = [_camera(one, camera, targets) for camera in range(len(one["images"]))]
        looks.append(_matrix(one, seen[i], expert[i], len(there[i])))
        if few["action_segment"].any():
            looks.append(_chunk(one, targets, stage) if one["action_segment"] else None)
        panels.append(_panel(heading, looks, _strip(one), targets))
    return np.asarray(_page(title, panels))


def choose_rows(batch: Mapping[str, np.ndarray], count: int) -> list[int]:
    """The first row of each stream, then others, at most `count`, in their order."""
    streams = batch["stream"][:, 0].tolist()
    first = sorted({stream: row for row, stream in reversed(list(enumerate(streams)))}.values())
    others = [row for row in range(len(streams)) if row not in first]
    return sorted([*first, *others][:count])


def read_segment_targets(row: Mapping[str, np.ndarray], stage: Stage) -> list[SegmentTarget]:
    """The segments of one row (no batch axis), decoded."""
    tokenizer, targets = stage.assets.tokenizer, []
    for number in range(1, int(row["segment"].max()) + 1):
        mine, acts = row["segment"] == number, number == row["action_segment"]
        prompt, answer = (
            row["tokens"][mine & which].tolist() for which in (~row["target"], row["target"])
        )
        fast = (
            prompts.read_action(tokenizer, answer, prompt=stage.config.data.prompt) if acts else []
        )
        text = (
            f"{len(fast)} FAST tokens: {' '.join(map(str, fast))}"
            if fast
            else tokenizer.decode(answer)
        )
        targets.append(
            SegmentTarget(number, tokenizer.decode(prompt).strip(), text, bool(acts), tuple(fast))
        )
    return targets


def places(segment: SegmentTarget) -> Iterator[tuple[str, np.ndarray, bool]]:
    """What a segment points at on the first camera: (POINT, BOX or PATH, coordinates [n, 2 or 4], whether it is asked
    about and not the answer). A registered question says what its answer is; else the number of coordinates does."""
    if segment.acts:
        return
    known = next(
        (
            question_type.answer_type
            for name, question_type in QUESTION_TYPES.items()
            if question_type.answer_type != WORDS
            and parse_question(name, segment.prompt) is not None
        ),
        None,
    )
    for text, asked in ((segment.prompt, True), (segment.answer, False)):
        for found in _PLACES.findall(text):
            points = parse_loc(found, 2)
            if points is None:
                continue
            guess = {1: POINT, 2: BOX}.get(len(points), PATH)
            kind = guess if asked or known is None else known
            yield kind, points.reshape(1, 4) if kind == BOX and len(points) == 2 else points, asked


# ---- panels ---------------------------------------------------------------------------------------------------------


def _attention(config: VLAConfig, batch: Mapping[str, np.ndarray]):
    """bool: image columns that are there [B, I], who reads whom [B, I + L, I + L], what the expert reads [B, I + L]."""

    def masks(batch):
        there = expand_image_mask(config, batch["image_mask"])
        mask = prefix_positions_and_mask(config, there, batch)[1]
        return there, mask[0] if isinstance(mask, tuple) else mask, expert_key_mask(there, batch)

    names = ("image_mask", "segment", "target", "action_segment")
    return jax.jit(masks)({name: batch[name] for name in names})


def _camera(
    row: Mapping[str, np.ndarray], camera: int, targets: Sequence[SegmentTarget]
) -> Image.Image:
    """One image with what is asked and answered on it; a crossed field where the camera is absent."""
    side = SIDE * FINE
    if not row["image_mask"][camera]:
        image = Image.new("RGB", (side, side), FAINT)
        draw = ImageDraw.Draw(image)
        draw.line((0, 0, side, side), SOFT, FINE)
        draw.line((0, side, side, 0), SOFT, FINE)
        return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    image = Image.fromarray(row["images"][camera]).resize((side, side), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for segment in targets if camera == 0 else ():
        for kind, place, asked in places(segment):
            _shape(draw, kind, place * side, segment.color, asked)
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _shape(
    draw: ImageDraw.ImageDraw, kind: str, place: np.ndarray, color: str, asked: bool
) -> None:
    """A box, point or path, in pixels, on a pale edge that sets it off."""
    if kind == BOX:
        ymin, xmin, ymax, xmax = place[0].tolist()
        corners = [(xmin, ymin), (xmax, ymin), (xmax, ymax), (xmin, ymax), (xmin, ymin)]
        for ends in itertools.pairwise(corners):
            _line(draw, ends, color, asked)
        return
    points = [(x, y) for y, x in place.tolist()]
    for ends in itertools.pairwise(points):
        _line(draw, ends, color, asked)
    for i, (x, y) in enumerate(points):
        radius = (5 if kind == POINT or i == len(points) - 1 else 3) * FINE
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), color, PAPER, FINE)


def _line(
    draw: ImageDraw.ImageDraw, ends: Sequence[tuple[float, float]], color: str, dashed: bool
) -> None:
    (x0, y0), (x1, y1) = ends
    draw.line(ends, PAPER, 4 * FINE)
    if not dashed:
        draw.line(ends, color, 2 * FINE)
        return
    pieces = max(1, int(np.hypot(x1 - x0, y1 - y0) / (5 * FINE)))
    for i in range(0, pieces, 2):
        at = [
            (x0 + (x1 - x0) * t, y0 + (y1 - y0) * t)
            for t in (i / pieces, min(i + 1, pieces) / pieces)
        ]
        draw.line(at, color, 2 * FINE)


def _matrix(
    row: Mapping[str, np.ndarray], seen: np.ndarray, expert: np.ndarray, num_images: int
) -> Image.Image:
    """Who reads whom, each query in its segment's colour; the text's padding is left out."""
    used = num_images + int((row["segment"] > 0).sum())
    queries = [IMAGE_COLOR] * num_images + [_segment_color(number) for number in row["segment"]]
    rows = [(queries[i], seen[i, :used]) for i in range(used)]
    if row["action_segment"]:
        rows += [(EXPERT_COLOR, expert[:used])] * max(len(row["actions"]), used // 12)
    pixels = np.stack(
        [np.where(mask[:, None], _rgb(color), _rgb("#f4f5f7")) for color, mask in rows]
    )
    return Image.fromarray(pixels.astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BOX)


def _chunk(
    row: Mapping[str, np.ndarray], targets: Sequence[SegmentTarget], stage: Stage
) -> Image.Image:
    """The chunk's curves over its steps, with FAST's values as rings."""
    side, limit = SIDE * FINE, 1.5
    image = Image.new("RGB", (side, side), "#f4f5f7")
    draw, steps = ImageDraw.Draw(image), len(row["actions"])

    def at(step, value):
        return (step + 0.5) / steps * side, (
            0.5 - np.clip(value, -limit, limit) / (2 * limit)
        ) * side

    for value, color in ((-1, FAINT), (0, "#b9c0c7"), (1, FAINT)):
        draw.line((*at(-0.5, value), *at(steps, value)), color, FINE)
    widths = np.flatnonzero(row["action_mask"].any(axis=0))
    for dim in widths:
        color, values = SEGMENT_COLORS[dim % len(SEGMENT_COLORS)], row["actions"][:, dim]
        for step in range(1, steps):
            there = row["action_mask"][step - 1 : step + 1, dim].all()
            ends = *at(step - 1, values[step - 1]), *at(step, values[step])
            draw.line(ends, color if there else "#c9ced3", 2 * FINE)
    for step, dim, value in _fast_values(targets, stage):
        x, y = at(step, value)
        draw.ellipse(
            (x - 4 * FINE, y - 4 * FINE, x + 4 * FINE, y + 4 * FINE),
            None,
            SEGMENT_COLORS[dim % len(SEGMENT_COLORS)],
            FINE,
        )
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _fast_values(
    targets: Sequence[SegmentTarget], stage: Stage
) -> Iterator[tuple[int, int, float]]:
    for segment in targets:
        if segment.fast:
            for (step, dim), value in np.ndenumerate(
                stage.assets.fast.decode_batch([list(segment.fast)])[0][0]
            ):
                yield step, dim, value


def _strip(row: Mapping[str, np.ndarray]) -> Image.Image:
    """The text's tokens from left to right: colour by segment, pale where they are prompts, dark where a target has no
    weight."""
    colors = np.stack([_rgb(_segment_color(number)) for number in row["segment"]]).astype(
        np.float32
    )
    prompt = (row["segment"] > 0) & ~row["target"]
    colors[prompt] = 0.35 * colors[prompt] + 0.65 * 255
    colors[row["target"] & (row["weight"] == 0)] /= 3
    return Image.fromarray(colors.astype(np.uint8)[None])


def _heading(index: int, row: Mapping[str, np.ndarray], stage: Stage) -> str:
    stream = stage.plan.streams[int(row["stream"][0])].name
    text = (
        f"row {index}  ·  {stream}  ·  {int((row['segment'] > 0).sum())} of {len(row['tokens'])} tokens, "
        f"{int(row['target'].sum())} of {stage.config.data.max_targets} targets"
    )
    if row["action_segment"]:
        text += (
            f"  ·  actions {int(row['action_mask'].any(1).sum())} of {len(row['actions'])} steps x "
            f"{int(row['action_mask'].any(0).sum())} of {row['actions'].shape[1]}  ·  state "
            + " ".join(f"{value:.2f}" for value in row["state"])
        )
    return text


# ---- the page -------------------------------------------------------------------------------------------------------


def _panel(
    heading: str,
    looks: Sequence[Image.Image | None],
    strip: Image.Image,
    targets: Sequence[SegmentTarget],
) -> Image.Image:
    left = len(looks) * (SIDE + GAP)
    lines = _lesson_lines(targets)
    height = 26 + max(SIDE + 16, 19 * len(lines)) + GAP
    panel = Image.new("RGB", (left + TEXT_WIDTH, height), PAPER)
    draw = ImageDraw.Draw(panel)
    draw.text((0, 2), heading, INK, _font(14))
    for i, look in enumerate(filter(None, looks)):
        panel.paste(look, (i * (SIDE + GAP), 26))
    panel.paste(strip.resize((left - GAP, 10), Image.Resampling.NEAREST), (0, 26 + SIDE + 4))
    for i, (text, color) in enumerate(lines):
        draw.text((left, 26 + 19 * i), text, color, _font(14))
    return panel


def _lesson_lines(targets: Sequence[SegmentTarget]) -> list[tuple[str, str]]:
    """(text, colour) of the lines that tell the targets: the prompt, then what is to be said."""
    lines = []
    for segment in targets:
        prompt = f"{segment.number}  " + ("[act] " if segment.acts else "") + _short(segment.prompt)
        lines += [(line, INK) for line in _wrap(prompt, "    ")]
        answer = _short(segment.answer) or ("(nothing to write)" if segment.acts else "(no answer)")
        lines += [(line, segment.color) for line in _wrap(f"  » {answer}", "      ")]
    return lines


def _short(text: str) -> str:
    """On one line, with runs of locations as their numbers and runs of actions as their count."""
    text = _ACTIONS.sub(
        lambda run: f"<{len(run[0]) // 9} action tokens>", text.replace("\n", " ¶ ")
    )
    return re.sub(
        r"(?:<loc\d{4}>)+", lambda run: f"<{' '.join(re.findall(r'[0-9]{4}', run[0]))}>", text
    )


def _wrap(text: str, indent: str) -> list[str]:
    lines = [""]
    for word in re.findall(r"\s*\S+", text):
        if lines[-1] and _font(14).getlength(lines[-1] + word) > TEXT_WIDTH - GAP:
            lines.append(indent + word.lstrip())
        else:
            lines[-1] += word
    return lines


def _page(title: str, panels: Sequence[Image.Image]) -> Image.Image:
    width = max(panel.width for panel in panels) + 2 * GAP
    legend = _wrap_wide(LEGEND, width - 2 * GAP)
    top = 34 + 18 * len(legend) + GAP
    page = Image.new("RGB", (width, top + sum(panel.height + GAP for panel in panels)), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((GAP, 8), title, INK, _font(18))
    for i, line in enumerate(legend):
        draw.text((GAP, 36 + 18 * i), line, SOFT, _font(13))
    for panel in panels:
        draw.line((GAP, top - 6, width - GAP, top - 6), FAINT)
        page.paste(panel, (GAP, top))
        top += panel.height + GAP
    return page


def _wrap_wide(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if _font(13).getlength(joined) > width:
            lines.append(word)
        else:
            lines[-1] = joined
    return lines


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _segment_color(number: int) -> str:
    return SEGMENT_COLORS[(int(number) - 1) % len(SEGMENT_COLORS)] if number else "#d5d9dd"


def _rgb(color: str) -> np.ndarray:
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)], np.uint8)
