"""A gallery page of any robot dataset of ours on disk: frames, labels, and the facts that they were made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from etcvla.data.rlds import RLDSDataset
from etcvla.etc.annotation import STEP_FIELDS, Annotation
from etcvla.etc.gallery import Entry, write_gallery
from etcvla.etc.items import Item

_ITEM_FIELDS = ("kind", "form", "question", "answer", "source")


def dataset_gallery(directory: str | Path, path: str | Path, *, split: str = "train", frames: int = 120) -> None:
    """Writes an HTML page of about `frames` frames, spread over the split's tasks and episodes.

    Raises what `RLDSDataset` does if there is no such dataset.
    """
    dataset = RLDSDataset(directory, split)
    tasks: dict[str, list[int]] = {}
    for episode in range(dataset.num_episodes):
        tasks.setdefault(dataset.metadata(episode)["task"], []).append(episode)
    share = max(1, frames // len(tasks))
    entries = [_entry(dataset, episode, share, i) for episodes in tasks.values()
               for i, episode in enumerate(np.resize(episodes, share).tolist())]
    write_gallery(path, entries, f"{dataset.directory.parent.parent.name} {dataset.directory.parent.name}, {split}")


def _entry(dataset: RLDSDataset, episode: int, share: int, i: int) -> Entry:
    """Of an episode the i-th of `share` frames evenly spaced in time."""
    about = dataset.metadata(episode)
    step = int((i + 0.5) / share * dataset.lengths[episode])
    camera = f"observation/{about['cameras'][0]}"
    names = [camera, "language_instruction", *(f"etc/{field}" for field in _ITEM_FIELDS)]
    frame = dataset.frame(int(dataset.starts[episode]) + step, names)
    items = [Item(*texts) for texts in zip(*(frame[f"etc/{field}"] for field in _ITEM_FIELDS), strict=True)]
    return Entry(frame[camera], items, frame["language_instruction"], f"{about['episode_id']}, step {step}",
                 read_annotation(dataset, episode), step)


def read_annotation(dataset: RLDSDataset, episode: int) -> Annotation:
    """The annotation of an episode as it was before it was padded to the dataset's object slots."""
    about = dataset.metadata(episode)
    steps = range(int(dataset.starts[episode]), int(dataset.starts[episode + 1]))
    names = [f"annotation/{field}" for field in STEP_FIELDS]
    frames = [dataset.frame(step, names) for step in steps]
    fields = {field: np.array([frame[f"annotation/{field}"] for frame in frames]) for field in STEP_FIELDS}
    for field, axes in STEP_FIELDS.items():
        if "N" in axes:
            fields[field] = np.take(fields[field], range(len(about["objects"])), axis=1 + axes.index("N"))
    return Annotation(
        instruction=dataset.frame(steps[0], ["language_instruction"])["language_instruction"], rate=about["rate"],
        success=bool(about["success"]), target=int(about["target"]),
        **{name: tuple(about[name]) for name in ("cameras", "objects", "colors", "phases", "shapes", "axes")
           if name in about}, **fields)
