"""A page to look at labels and to judge them, and the numbers to know about them.

The page is one HTML file without anything to fetch: images inside, boxes, points and paths drawn over them as SVG,
filters and accept/reject buttons in a few lines of JavaScript. Verdicts are saved as a file that `review` reads.
"""

from __future__ import annotations

import dataclasses
import html
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

import numpy as np
from etils import epath

from etcvla.etc.annotation import Annotation
from etcvla.etc.items import ETC_KINDS, GRADES, Item
from etcvla.etc.review import FORMAT, VERSION, ItemKey, review_file_name
from etcvla.etc.statistics import item_statistics
from etcvla.pages.overlay import (
    HEIGHT,
    STYLE,
    answered,
    asked,
    box,
    dot,
    look,
    picture,
    prose,
    words,
)
from etcvla.pages.palette import KIND_COLORS

_OTHER_COLOR = "#697177"
_ASSETS = epath.resource_path("etcvla") / "pages/assets"


@dataclasses.dataclass(frozen=True)
class GalleryEntry:
    """A frame of the gallery."""

    image: np.ndarray | bytes  # uint8[H, W, 3], or an encoded JPEG or PNG file
    items: Sequence[Item]
    instruction: str = ""
    caption: str = ""  # where it comes from, e.g. "door-open, step 12"
    annotation: Annotation | None = None  # if given, its facts at `step` can be shown on the image
    step: int = 0
    episode_id: str = ""  # by which, with `step`, a review names the frame
    other_images: Mapping[str, np.ndarray | bytes] = dataclasses.field(
        default_factory=dict
    )  # what other cameras see then


def write_gallery(
    path: str | Path,
    frames: Sequence[GalleryEntry],
    title: str,
    *,
    dataset: str = "",
    split: str = "train",
) -> None:
    """Writes a self-contained HTML page of `frames` to `path`; makes its directory if need be.

    Args:
      dataset: full name ("metaworld_etc/source/1.0.0") that a review of the page bears; without it nothing is judged.
    """
    items = [item for frame in frames for item in frame.items]
    first = np.cumsum([0, *(len(frame.items) for frame in frames)]).tolist()
    cards = [
        _card(frame, start if dataset else None)
        for frame, start in zip(frames, first, strict=False)
    ]
    page = Template((_ASSETS / "gallery.html").read_text()).substitute(
        title=html.escape(title),
        style=STYLE + (_ASSETS / "gallery.css").read_text(),
        script=(_ASSETS / "gallery.js").read_text(),
        summary=f"{len(frames)} frames, {len(items)} items",
        filters=_filters(items),
        cards="\n".join(cards),
        statistics=_statistics(item_statistics(items)),
        review=_REVIEW if dataset else "",
        reviewed=_embedded(_reviewed(frames, dataset, split)),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _color(kind: str) -> str:
    return KIND_COLORS.get(kind, _OTHER_COLOR)


def _reviewed(frames: Sequence[GalleryEntry], dataset: str, split: str) -> dict:
    """What the page needs to write a review: its head, and the key of every item in order."""
    keys = (
        [
            ItemKey(frame.episode_id, frame.step, item.question_type, item.question, item.answer)
            for frame in frames
            for item in frame.items
        ]
        if dataset
        else []
    )
    return {
        "format": FORMAT,
        "version": VERSION,
        "dataset": dataset,
        "split": split,
        "fields": ItemKey._fields,
        "keys": keys,
        "file": review_file_name(dataset, split),
    }


def _embedded(data: dict) -> str:
    """JSON in which nothing can close the script that holds it."""
    return json.dumps(data).replace("<", r"\u003c")


def _card(frame: GalleryEntry, first_key: int | None) -> str:
    def draw(aspect: float) -> str:
        shapes = [
            f'<g data-item="{i}" data-kind="{item.kind}" style="color:{_color(item.kind)}">'
            f"{asked(item.question, aspect)}{answered(item.question_type, item.answer, aspect)}</g>"
            for i, item in enumerate(frame.items)
        ]
        return (_facts(frame, aspect) if frame.annotation else "") + "".join(shapes)

    caption = f'<span class="caption">{html.escape(frame.caption)}</span>' if frame.caption else ""
    others = "".join(
        f"<figure>{picture(image, name)}<figcaption>{words(name)}</figcaption></figure>"
        for name, image in frame.other_images.items()
    )
    return (
        f"<article>{look(frame.image, frame.caption, draw)}"
        f'<div class="about"><header>{html.escape(frame.instruction)}{caption}</header>{others}</div>'
        f"<ol>{_rows(frame.items, first_key)}</ol></article>"
    )


def _rows(items: Sequence[Item], first_key: int | None) -> str:
    """List entries under a heading for each run of a grade; with buttons to judge them if they are numbered."""
    rows, judge = [], "" if first_key is None else _JUDGE
    for i, item in enumerate(items):
        if i == 0 or item.grade != items[i - 1].grade:
            rows.append(f'<li class="grade" data-grade="{item.grade}">{words(item.grade)}</li>')
        rows.append(
            f'<li data-item="{i}" data-kind="{item.kind}" data-grade="{item.grade}" '
            + ("" if first_key is None else f'data-key="{first_key + i}" data-verdict="open" ')
            + f'style="--c:{_color(item.kind)}"><p class="meta"><span><b>{words(item.kind)}</b> '
            f"{words(item.question_type)}</span><i>{html.escape(item.source)}</i>{judge}</p>"
            f'<p>{prose(item.question)}</p><p class="answer">{prose(item.answer)}</p></li>'
        )
    return "".join(rows)


def _facts(frame: GalleryEntry, aspect: float) -> str:
    """The annotation itself, white and thin: boxes with names, and the gripper."""
    facts, shapes = frame.annotation, []
    for name, place in zip(facts.objects, facts.box[frame.step, 0], strict=True):
        if np.isfinite(place).all():
            shapes.append(
                box(place, aspect) + f'<text x="{place[1] * HEIGHT * aspect + 6:.0f}" '
                f'y="{place[0] * HEIGHT - 8:.0f}">{html.escape(name)}</text>'
            )
    gripper = facts.gripper_pixel[frame.step, 0]
    return f'<g class="facts">{"".join(shapes)}{dot(gripper, aspect) if np.isfinite(gripper).all() else ""}</g>'


def _filters(items: Sequence[Item]) -> str:
    kinds = Counter(item.kind for item in items)
    grades = Counter(item.grade for item in items)

    def buttons(attribute: str, names: Sequence[str], counts: Counter) -> str:
        return "".join(
            f'<button data-{attribute}="{name}" style="--c:{_color(name)}" aria-pressed="true">'
            f"{words(name)} <small>{counts[name]}</small></button>"
            for name in names
        )

    grade_names = sorted(grades, key=lambda name: [*GRADES.values(), name].index(name))
    kind_names = sorted(kinds, key=lambda name: [*ETC_KINDS, name].index(name))
    return (
        f"<div><span>grade</span>{buttons('grade', grade_names, grades)}</div>"
        f"<div><span>kind</span>{buttons('kind', kind_names, kinds)}</div>"
    )


def _statistics(numbers: dict) -> str:
    rows = "".join(
        f"<tr><td>{question_type}<td>{row['count']}<td>{row['answers']}<td>{prose(row['majority_answer'])}"
        f"<td>{row['majority_share']:.0%}"
        for question_type, row in numbers["by_question_type"].items()
    )
    return (
        f"<table><tr><th>question_type<th>items<th>different answers<th>best constant answer<th>right in{rows}</table>"
        f'<script type="application/json" id="report">{_embedded(numbers)}</script>'
    )


_JUDGE = (
    '<span class="judge"><button data-say="accept" title="accept (key a)" aria-pressed="false">✓</button>'
    '<button data-say="reject" title="reject (key r)" aria-pressed="false">✗</button></span>'
)
_REVIEW = (
    "<div><span>verdict</span>"
    + "".join(
        f'<button data-verdict="{name}" style="--c:{color}" aria-pressed="true">{text} <small>0</small></button>'
        for name, text, color in (
            ("open", "open", _OTHER_COLOR),
            ("accept", "accepted", "#12a594"),
            ("reject", "rejected", "#e5484d"),
        )
    )
    + '</div><div id="review"><button id="save">save review</button><button id="load">load review</button>'
    '<input id="file" type="file" accept=".json" hidden></div>'
)
