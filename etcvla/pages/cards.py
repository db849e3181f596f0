"""Cards of the report: example answers to held-out questions, and videos of episodes."""

from __future__ import annotations

import dataclasses
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from PIL import Image, ImageSequence

from etcvla.pages.results import SHAPES, RecipeResults, RunResults, read_json, union
from etcvla.pages.templates import EmbeddedImage, as_words, embed_image
from etcvla.results_schema import INTERVENTIONS, VideoName

WRONG_EXAMPLES = 3  # examples of each run, dataset and kind
CORRECT_EXAMPLES = 2
MAX_EXAMPLE_BYTES = 4_000_000  # size of all embedded images, before base64
MAX_VIDEO_BYTES = 4_000_000
NONE = "none"  # filter value of a video without a perturbation or benchmark


@dataclasses.dataclass(frozen=True)
class Card:
    """An image or video with a description.

    Attributes:
      filters: filter axis -> value, by which the page shows and hides cards.
      title: heading of the card.
      outcome: "correct", "wrong", "success" or "failure".
      good: the outcome is good.
      image: the image or video.
      details: values for the template.
    """

    filters: Mapping[str, str]
    title: str
    outcome: str
    good: bool
    image: EmbeddedImage
    details: Mapping[str, Any]


# ---- Example answers ----


def examples(results: RecipeResults) -> dict[str, Any] | None:
    """Held-out questions with the true answer and the prediction, wrong answers first."""
    main_runs = results.main_runs
    controls = [run for run in results.runs if run not in main_runs]
    newest_first = [*reversed(main_runs), *controls]
    pool = []
    for run in newest_first:
        for row in _select_examples(read_json(run.evaluation / "examples.json", [])):
            path = run.evaluation / row["image"]
            if path.exists():
                pool.append((path, run, row))
    cards = []
    budget = MAX_EXAMPLE_BYTES
    for path, run, row in pool:
        data = path.read_bytes()
        budget -= len(data)
        if budget < 0:
            break
        cards.append(_example_card(embed_image(data), run, row))
    if not cards:
        return None
    return {
        "cards": cards,
        "num_available": len(pool),
        "axes": _filter_axes(cards, ("stage", "dataset", "kind", "answer")),
        "selected_stage": cards[0].filters["stage"],
    }


def _select_examples(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Select a few examples of each dataset and kind.

    Wrong answers come first, and robot scenes come before shapes. The kinds take turns.
    """
    groups = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row["correct"], row["dataset"] == SHAPES)):
        groups[row["correct"], row["dataset"], row["kind"]].append(row)
    selected = []
    for correct, count in ((False, WRONG_EXAMPLES), (True, CORRECT_EXAMPLES)):
        for turn in range(count):
            for (group_correct, _, _), group in groups.items():
                if group_correct == correct and turn < len(group):
                    selected.append(group[turn])
    return selected


def _example_card(image: EmbeddedImage, run: RunResults, row: Mapping[str, Any]) -> Card:
    outcome = "correct" if row["correct"] else "wrong"
    return Card(
        filters={
            "stage": run.title,
            "dataset": row["dataset"],
            "kind": row["kind"],
            "answer": outcome,
        },
        title=as_words(row["kind"]),
        outcome=outcome,
        good=row["correct"],
        image=image,
        details=row,
    )


# ---- Videos ----


def videos(results: RecipeResults) -> dict[str, Any] | None:
    """Videos of episodes: failures with the right instruction first."""
    pool = []
    for run in results.runs:
        for path in sorted(run.evaluation.glob("videos/*.gif")):
            pool.append((path, run, NONE))
        for path in sorted(run.evaluation.glob("*/videos/*.gif")):
            pool.append((path, run, path.parent.parent.name))
    named = []
    for path, run, benchmark in pool:
        name = VideoName.parse(path.stem)
        if name is not None:
            named.append((path, run, benchmark, name))
    named.sort(key=lambda video: (video[3].intervention != "right", video[3].success))
    cards = []
    budget = MAX_VIDEO_BYTES
    for path, run, benchmark, name in named:
        data = _webp(path)
        budget -= len(data)
        if budget < 0:
            break
        cards.append(_video_card(embed_image(data), run, benchmark, name))
    if not cards:
        return None
    axes = ("stage", "benchmark", "scene", "intervention", "perturbation", "outcome")
    return {
        "cards": cards,
        "num_available": len(named),
        "axes": _filter_axes(cards, axes),
        "selected_stage": "",
    }


def _webp(path: epath.Path) -> bytes:
    """Convert a GIF to an animated WebP, which has a quarter of its size."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(path.read_bytes())) as gif:
        first, *others = [frame.convert("RGB") for frame in ImageSequence.Iterator(gif)]
        first.save(
            buffer,
            "webp",
            save_all=True,
            append_images=others,
            duration=gif.info.get("duration", 60),
            loop=0,
            quality=70,
            method=2,
        )
    return buffer.getvalue()


def _video_card(image: EmbeddedImage, run: RunResults, benchmark: str, name: VideoName) -> Card:
    outcome = "success" if name.success else "failure"
    episode = _find_episode(run, "" if benchmark == NONE else benchmark, name)
    return Card(
        filters={
            "stage": run.title,
            "benchmark": benchmark,
            "scene": name.scene,
            "intervention": name.intervention,
            "perturbation": name.perturbation or NONE,
            "outcome": outcome,
            "task": name.task,
        },
        title=as_words(name.task),
        outcome=outcome,
        good=name.success,
        image=image,
        details={
            "trial": name.trial,
            "steps": episode.get("steps"),
            "intervention": INTERVENTIONS[name.intervention],
            "instruction_of": episode.get("instruction_of", name.task),
        },
    )


def _find_episode(run: RunResults, benchmark: str, name: VideoName) -> Mapping[str, str]:
    """Return the line of episodes.csv about the episode of a video; empty if there is none."""
    for row in run.episodes(benchmark):
        row_name = VideoName(
            intervention=row["intervention"],
            scene=row["scene"],
            task=row["task"].replace("/", "_"),
            trial=int(row["trial"]),
            success=name.success,
            perturbation=row.get("perturbation", ""),
        )
        if row_name == name:
            return row
    return {}


def _filter_axes(cards: Sequence[Card], axes: Sequence[str]) -> dict[str, list[str]]:
    """Return the values of each filter axis, without axes that have only one value."""
    values_by_axis = {}
    for axis in axes:
        values = union([card.filters[axis]] for card in cards)
        if len(values) > 1:
            values_by_axis[axis] = values
    return values_by_axis
