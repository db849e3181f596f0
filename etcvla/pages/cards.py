"""Cards of the report: example answers to held-out questions, and videos of episodes."""

from __future__ import annotations

import dataclasses
import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from etils import epath
from PIL import Image, ImageSequence

from etcvla.pages.results import RecipeResults, read_json, union
from etcvla.pages.templates import EmbeddedImage, embed_image
from etcvla.results_schema import BASE_DATA, video_stem

# Number of examples of each run, dataset and kind, by whether the answer is correct.
NUM_EXAMPLES = {False: 3, True: 2}
MAX_BYTES = 4_000_000  # size of all embedded images of a section, before base64


@dataclasses.dataclass
class Card:
    """An image or video with a description.

    Attributes:
      path: file of the image or video.
      title: heading of the card, as an identifier.
      outcome: "correct", "wrong", "success" or "failure".
      filters: filter axis -> value, by which the page shows and hides cards.
      details: values for the template.
      image: the embedded image or video, if the page has space for it.
    """

    path: epath.Path
    title: str
    outcome: str
    filters: Mapping[str, str]
    details: Mapping[str, Any]
    image: EmbeddedImage | None = None


def examples(results: RecipeResults) -> dict[str, Any] | None:
    """Held-out questions with the true answer and the prediction, wrong answers first."""
    main_runs = results.main_runs
    controls = [run for run in results.runs if run not in main_runs]
    cards = []
    for run in [*reversed(main_runs), *controls]:
        for row in _select_examples(read_json(run.evaluation / "examples.json", [])):
            outcome = "correct" if row["correct"] else "wrong"
            filters = {
                "stage": run.title,
                "dataset": row["dataset"],
                "kind": row["kind"],
                "answer": outcome,
            }
            path = run.evaluation / row["image"]
            cards.append(Card(path, row["kind"], outcome, filters, row))
    return _embed_cards(cards, epath.Path.read_bytes)


def _select_examples(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Select a few examples of each dataset and kind.

    Wrong answers come first. Among these, the kinds take turns, and robot scenes come before
    base data.
    """
    counts = Counter()
    selected = []
    for row in rows:
        group = (row["correct"], row["dataset"], row["kind"])
        order = (row["correct"], counts[group], row["dataset"] == BASE_DATA)
        if counts[group] < NUM_EXAMPLES[row["correct"]]:
            selected.append((order, row))
        counts[group] += 1
    selected.sort(key=lambda pair: pair[0])
    return [row for _, row in selected]


def videos(results: RecipeResults) -> dict[str, Any] | None:
    """Videos of episodes: failures with the right instruction first."""
    cards = []
    for run in results.runs:
        for benchmark in ["", *run.benchmarks]:
            for row in run.episodes(benchmark):
                path = run.evaluation / benchmark / "videos" / f"{video_stem(row)}.gif"
                outcome = "success" if int(row["success"]) else "failure"
                filters = {
                    "stage": run.title,
                    "benchmark": benchmark or "none",
                    "scene": row["scene"],
                    "intervention": row["intervention"],
                    "condition": row.get("condition") or "none",
                    "perturbation": row["perturbation"] or "none",
                    "outcome": outcome,
                }
                cards.append(Card(path, row["task"], outcome, filters, row))
    cards.sort(key=lambda card: (card.filters["intervention"] != "right", card.outcome))
    return _embed_cards(cards, to_webp)


def to_webp(path: epath.Path) -> bytes:
    """Convert a GIF to an animated WebP, which has a quarter of its size."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(path.read_bytes())) as gif:
        first, *others = [frame.convert("RGB") for frame in ImageSequence.Iterator(gif)]
        options = {"duration": gif.info.get("duration", 60), "loop": 0, "quality": 70}
        first.save(buffer, "webp", save_all=True, append_images=others, method=2, **options)
    return buffer.getvalue()


def _embed_cards(
    cards: Sequence[Card], read: Callable[[epath.Path], bytes]
) -> dict[str, Any] | None:
    """Embed the images that exist, up to MAX_BYTES; return the data of the section."""
    available = [card for card in cards if card.path.exists()]
    shown = []
    num_bytes = 0
    for card in available:
        data = read(card.path)
        num_bytes += len(data)
        if num_bytes > MAX_BYTES:
            break
        card.image = embed_image(data)
        shown.append(card)
    if not shown:
        return None
    axes = {}
    for axis in shown[0].filters:
        values = union([card.filters[axis]] for card in shown)
        if len(values) > 1:  # there is something to filter
            axes[axis] = values
    return {"cards": shown, "num_available": len(available), "axes": axes}
