"""Page of frames with their ETC items, on which people inspect labels and review them.

The page is one HTML file: images are embedded, boxes, points and paths are drawn over them as
SVG, and a short script filters items and records verdicts. `etcvla.etc.review` reads the file of
verdicts that the page saves.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from etcvla.etc.annotation import Annotation
from etcvla.etc.items import ETC_KINDS, GRADES, Item
from etcvla.etc.question_types import BOX, POINT
from etcvla.etc.review import FORMAT, VERSION, ItemKey, review_file_name
from etcvla.etc.statistics import item_statistics
from etcvla.pages.shapes import Shape
from etcvla.pages.templates import render


@dataclasses.dataclass(frozen=True)
class GalleryEntry:
    """A frame of the gallery.

    Attributes:
      image: uint8[H, W, 3], or an encoded JPEG or PNG file.
      items: the ETC items of the frame.
      instruction: the episode's instruction.
      caption: the origin of the frame, for example "door-open, step 12".
      annotation: if given, the page can show its boxes and gripper position at `step`.
      step: the frame's step in its episode.
      episode_id: identifies the frame in a review, together with `step`.
      other_images: images of other cameras at the same step, by camera.
    """

    image: np.ndarray | bytes
    items: Sequence[Item]
    instruction: str = ""
    caption: str = ""
    annotation: Annotation | None = None
    step: int = 0
    episode_id: str = ""
    other_images: Mapping[str, np.ndarray | bytes] = dataclasses.field(default_factory=dict)


def write_gallery(
    path: str | Path,
    entries: Sequence[GalleryEntry],
    title: str,
    *,
    dataset: str = "",
    split: str = "train",
) -> None:
    """Write a self-contained HTML page of `entries` to `path` and create its directory.

    Args:
      path: the HTML file.
      entries: frames in the order of the page.
      title: title of the page.
      dataset: full name ("metaworld_etc/source/1.0.0") that a review of the page contains. If
        empty, the page has no buttons to review items.
      split: the dataset's split, for the review.
    """
    items = []
    review_keys = []
    for entry in entries:
        items += entry.items
        review_keys += [_review_key(entry, item) for item in entry.items]
    page = render(
        "gallery.html.j2",
        {
            "title": title,
            "entries": entries,
            "annotation_shapes": _annotation_shapes,
            "num_items": len(items),
            "filters": {
                "grade": _counts([item.grade for item in items], [*GRADES.values()]),
                "kind": _counts([item.kind for item in items], ETC_KINDS),
            },
            "statistics": item_statistics(items),
            "review": {
                "format": FORMAT,
                "version": VERSION,
                "dataset": dataset,
                "split": split,
                "fields": ItemKey._fields,
                "keys": review_keys if dataset else [],
                "file": review_file_name(dataset, split),
            },
        },
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _review_key(entry: GalleryEntry, item: Item) -> ItemKey:
    return ItemKey(entry.episode_id, entry.step, item.question_type, item.question, item.answer)


def _annotation_shapes(entry: GalleryEntry) -> list[tuple[str, Shape]]:
    """Return (label, shape) of the visible objects and the gripper in the entry's annotation."""
    annotation = entry.annotation
    if annotation is None:
        return []
    shapes = []
    for name, box in zip(annotation.objects, annotation.box[entry.step, 0], strict=True):
        if np.isfinite(box).all():
            shapes.append((name, Shape(BOX, box.reshape(2, 2))))
    gripper = annotation.gripper_pixel[entry.step, 0]
    if np.isfinite(gripper).all():
        shapes.append(("", Shape(POINT, gripper[None])))
    return shapes


def _counts(names: Sequence[str], order: Sequence[str]) -> dict[str, int]:
    """Count names; those in `order` come first, in that order."""
    counts = Counter(names)
    known = [name for name in dict.fromkeys(order) if name in counts]
    return {name: counts[name] for name in [*known, *counts]}
