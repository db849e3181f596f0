"""Cards of the report: held-out questions with what was answered, and videos of rollouts."""

from __future__ import annotations

import html
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import starmap, zip_longest
from typing import Any

from PIL import Image, ImageSequence

from etcvla.pages import overlay, palette
from etcvla.pages.overlay import prose, words
from etcvla.pages.results import RecipeResults, RunResults, read_json, union
from etcvla.results_schema import INTERVENTIONS
from etcvla.sims.perturbations import AXES

EXAMPLES = {False: 3, True: 2}  # wrong and right ones of each stage, dataset and kind
EXAMPLE_BYTES, FILM_BYTES = 4_000_000, 4_000_000  # pictures embedded at most, before base64
NONE = "none"  # of a video: nothing was changed, or no benchmark
TRUTH, SAID = (
    palette.TRUTH,
    palette.PREDICTION,
)  # the true answer, below and broader, and the prediction
_COLORS = {True: "#2f9e5f", False: "#c2352b"}  # right, wrong
_FILM = re.compile(
    rf"(?P<intervention>{'|'.join(INTERVENTIONS)})_(?P<scene>[^_]+)_(?P<task>.+?)(_(?P<changed>("
    rf"{'|'.join(AXES)})\d))?_(?P<trial>\d+)_(?P<outcome>success|failure)"
)


def answers(recipe: RecipeResults) -> str:
    """Questions with the true answer and the prediction drawn over the image; "" if there are none."""
    newest = [*recipe.road[::-1], *(stage for stage in recipe.stages if stage not in recipe.road)]
    pool = [
        (stage.folder / "evaluation" / row["image"], stage, row)
        for stage in newest
        for row in _pick(read_json(stage.folder / "evaluation/examples.json", []))
    ]
    cards = _within(EXAMPLE_BYTES, pool)
    if not cards:
        return ""
    axes = {
        "stage": [stage.title for stage in recipe.stages],
        "dataset": union([row["dataset"]] for *_, row in cards),
        "kind": union([row["kind"]] for *_, row in cards),
        "answer": ["wrong", "right"],
    }
    return (
        f'<p>Held-out questions with the <b class="truth">● true answer</b> and the <b class="said">● prediction'
        f"</b>, wrong ones first. Places that a question names are dashed.{_note(cards, pool)}</p>"
        + _filters(axes, cards[0][1].title)
        + _grid(starmap(_answer_card, cards))
    )


def rollouts(recipe: RecipeResults) -> str:
    """Films of episodes, failures first; "" if there are none."""
    videos = [
        (
            path,
            stage,
            {**found.groupdict(NONE), "benchmark": NONE if path.parent == own else path.parts[-3]},
        )
        for stage in recipe.stages
        for own in [stage.folder / "evaluation/videos"]
        for path in [*sorted(own.glob("*.gif")), *sorted(own.parent.glob("*/videos/*.gif"))]
        if (found := _FILM.fullmatch(path.stem))
    ]
    videos.sort(
        key=lambda video: (video[2]["intervention"] != "right", video[2]["outcome"] == "success")
    )
    cards = _within(FILM_BYTES, videos)
    if not cards:
        return ""
    axes = {"stage": union([stage.title] for _, stage, _ in cards)}
    axes |= {
        axis: union([video[axis]] for *_, video in cards)
        for axis in ("benchmark", "scene", "intervention", "changed", "outcome")
    }
    return (
        '<p>What the first camera showed, one frame a look, failures first. The <b class="said">line</b> is the '
        f"path that the policy expects of its gripper, asked for at every look.{_note(cards, videos)}</p>"
        + _filters(axes)
        + _grid(starmap(_video_card, cards), "videos")
    )


def _pick(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A few of each dataset and kind in turn, wrong ones and those of robot scenes first."""
    piles = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row["correct"], row["dataset"] == "shapes")):
        piles[row["correct"], row["dataset"], row["kind"]].append(row)
    return [
        row
        for correct in (False, True)
        for turn in zip_longest(
            *(pile[: EXAMPLES[correct]] for key, pile in piles.items() if key[0] == correct)
        )
        for row in turn
        if row
    ]


def _within(budget: int, files: Iterable[tuple]) -> list[tuple]:
    """(path, ...) as (bytes, ...) of the files that exist, as many as the budget holds."""
    kept = []
    for path, *rest in files:
        if path.exists():
            data = _webp(path.read_bytes()) if path.suffix == ".gif" else path.read_bytes()
            budget -= len(data)
            if budget < 0:
                break
            kept.append((data, *rest))
    return kept


def _webp(video: bytes) -> bytes:
    """A GIF as an animated WebP: a quarter of its size."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(video)) as gif:
        first, *rest = [frame.convert("RGB") for frame in ImageSequence.Iterator(gif)]
        first.save(
            buffer,
            "webp",
            save_all=True,
            append_images=rest,
            duration=gif.info.get("duration", 60),
            loop=0,
            quality=70,
            method=2,
        )
    return buffer.getvalue()


def _answer_card(image: bytes, stage: RunResults, row: Mapping[str, Any]) -> str:
    def draw(aspect: float) -> str:
        return (
            f'<g style="color:#fff">{overlay.asked(row["question"], aspect)}</g>'
            f'<g class="broad" style="color:{TRUTH}">{overlay.answered(row["question_type"], row["answer"], aspect)}</g>'
            f'<g style="color:{SAID}">{overlay.answered(row["question_type"], row["prediction"], aspect)}</g>'
        )

    verdict = "right" if row["correct"] else "wrong"
    data = {"stage": stage.title, "dataset": row["dataset"], "kind": row["kind"], "answer": verdict}
    instruction = (
        f'<p class="meta">“{html.escape(row["instruction"])}”</p>' if row["instruction"] else ""
    )
    return _card(
        data,
        overlay.look(image, row["question"], draw),
        row["kind"],
        verdict,
        row["correct"],
        f'{instruction}<p class="qa">{prose(row["question"])}</p><p class="truth">{prose(row["answer"])}</p>'
        f'<p class="said">{prose(row["prediction"]) or "<i>nothing</i>"}</p>',
    )


def _video_card(image: bytes, stage: RunResults, video: Mapping[str, str]) -> str:
    key = video["scene"], video["task"], video["trial"], video["intervention"], video["changed"]
    episode = next(
        (
            row
            for row in stage.episodes(video["benchmark"] if video["benchmark"] != NONE else "")
            if (
                row["scene"],
                row["task"].replace("/", "_"),
                row["trial"],
                row["intervention"],
                row.get("perturbation", "").replace(":", "") or NONE,
            )
            == key
        ),
        {},
    )
    steps = f", {episode['steps']} steps" if episode else ""
    marks = "".join(
        f", {words(video[axis])}" for axis in ("changed", "benchmark") if video[axis] != NONE
    )
    other = episode.get("instruction_of", video["task"])
    told = f" (of {html.escape(other)})" if other != video["task"] else ""
    picture = (
        f'<img src="{overlay.data_uri(image, "image/webp")}" alt="{html.escape(" ".join(key))}">'
    )
    return _card(
        {"stage": stage.title, **video},
        picture,
        video["task"],
        video["outcome"],
        video["outcome"] == "success",
        f'<p class="meta">{html.escape(video["scene"])} scene, trial {video["trial"]}{steps}<br>'
        f"{words(INTERVENTIONS.get(video['intervention'], video['intervention']))}{told}{marks}<br>"
        f"after {html.escape(stage.title)}</p>",
    )


def _card(
    data: Mapping[str, str], picture: str, title: str, mark: str, good: bool, body: str
) -> str:
    attributes = " ".join(f'data-{axis}="{html.escape(value)}"' for axis, value in data.items())
    return (
        f'<article {attributes} style="--c:{_COLORS[good]}">{picture}<div><span class="mark">{mark}</span>'
        f"<p><b>{words(title)}</b></p>{body}</div></article>"
    )


def _grid(cards: Iterable[str], name: str = "") -> str:
    return f'<div class="cards {name}">{"".join(cards)}</div>'


def _note(cards: Sequence, pool: Sequence) -> str:
    return f" {len(cards)} of {len(pool)} fit into the page." if len(cards) < len(pool) else ""


def _filters(axes: Mapping[str, Sequence[str]], stage: str = "") -> str:
    """Buttons, a row an axis; that of `stage` is pressed."""

    def button(axis: str, value: str) -> str:
        return (
            f'<button data-axis="{axis}" data-value="{html.escape(value)}" '
            f'aria-pressed="{str(axis == "stage" and value == stage).lower()}">{words(value)}</button>'
        )

    rows = [
        f"<div>{axis} {''.join(button(axis, value) for value in values)}</div>"
        for axis, values in axes.items()
        if len(values) > 1
    ]
    return f'<div class="filters">{"".join(rows)}</div>'
