"""A page of any ETC dataset on disk, to look at and to judge: frames, labels, and the facts that they were made from.

    python -m data_builders.tools.gallery DIRECTORY --out=FILE.html [--split=train] [--frames=120]

What is rejected on the page and saved, `python -m data_builders.tools.publish --review=FILE.json` leaves out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from etcvla.data.rlds import RLDSDataset
from etcvla.data.rlds_layout import find_version, split_names
from etcvla.etc.annotation import STEP_FIELDS, Annotation
from etcvla.etc.items import ITEM_FIELDS, Item
from etcvla.pages.gallery import GalleryEntry, write_gallery

REVIEW_HELP = (
    "JSON file of a page's verdicts: a second dataset is written beside the unreviewed one, without the "
    "rejected items."
)


def full_name(directory: Path) -> str:
    """ "name/config/version" of a version folder, as its dataset_info.json has it."""
    info = json.loads((directory / "dataset_info.json").read_text())
    return "/".join(filter(None, (info["name"], info.get("configName"), info["version"])))


def dataset_gallery(
    directory: str | Path, path: str | Path, *, split: str = "", frames: int = 120
) -> None:
    """Writes an HTML page of about `frames` frames, spread over the split's tasks and episodes.

    Args:
      split: by default "train", or the first of those there are.

    Raises what `RLDSDataset` does if there is no such dataset, ValueError if it has no ETC items or no images.
    """
    there = split_names(find_version(Path(directory)))
    split = split or ("train" if "train" in there or not there else there[0])
    dataset = RLDSDataset(directory, split)
    name = full_name(dataset.directory)
    write_gallery(
        path,
        [read_entry(dataset, *place) for place in spread(dataset, frames)],
        f"{name}, {split}",
        dataset=name,
        split=split,
    )


def spread(dataset: RLDSDataset, frames: int) -> list[tuple[int, int]]:
    """About `frames` different (episode, step): as many of each task, over its episodes, evenly in time."""
    tasks: dict[str, list[int]] = {}
    for episode in range(dataset.num_episodes):
        tasks.setdefault(dataset.metadata(episode).get("task", ""), []).append(episode)
    share = max(1, frames // len(tasks))
    return list(
        dict.fromkeys(
            (episode, int((i + 0.5) / share * dataset.lengths[episode]))
            for episodes in tasks.values()
            for i, episode in enumerate(np.resize(episodes, share).tolist())
        )
    )


def read_views(dataset: RLDSDataset, frame: int, about: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Images of a frame as ETC speaks of them, by camera, the view of its coordinates first.

    Args:
      about: the episode's metadata; without camera names in it, the first image of the dataset is shown alone.

    Raises ValueError if the dataset has no images.
    """
    images = [
        name
        for name, feature in dataset.features.items()
        if feature.kind == "image" and not feature.ragged
    ]
    if not images:
        raise ValueError(f"{dataset.directory} has no images to show")
    names = [f"observation/{camera}" for camera in about.get("cameras", ())] or images[:1]
    return {
        name.removeprefix("observation/"): upright(image, name, about)
        for name, image in dataset.frame(frame, names).items()
    }


def upright(image: np.ndarray, camera: str, about: Mapping[str, Any]) -> np.ndarray:
    """An image uint8[H, W, 3] of the image feature `camera` as ETC speaks of it: some sets store theirs upside down."""
    return (
        image[::-1, ::-1]
        if camera.removeprefix("observation/") in about.get("turned", ())
        else image
    )


def read_items(dataset: RLDSDataset, frame: int) -> list[Item]:
    """The ETC items of a frame. Raises ValueError if the dataset has none."""
    if "etc/kind" not in dataset.features:
        raise ValueError(
            f"{dataset.directory} has no steps/etc: `python -m data_builders.add_etc` adds it"
        )
    fields = dataset.frame(frame, [f"etc/{field}" for field in ITEM_FIELDS])
    return [Item(*texts) for texts in zip(*fields.values(), strict=True)]


def read_entry(dataset: RLDSDataset, episode: int, step: int) -> GalleryEntry:
    """A frame as the page shows it, with its facts where the dataset has them."""
    about, frame = dataset.metadata(episode), int(dataset.starts[episode]) + step
    name, ((_, image), *others) = (
        str(about.get("episode_id", episode)),
        read_views(dataset, frame, about).items(),
    )
    told = dataset.frame(
        frame, ["language_instruction"] if "language_instruction" in dataset.features else []
    )
    annotated = "annotation/box" in dataset.features
    return GalleryEntry(
        image,
        read_items(dataset, frame),
        told.get("language_instruction", ""),
        f"{name}, step {step}",
        read_annotation(dataset, episode) if annotated else None,
        step,
        name,
        dict(others),
    )


def read_annotation(dataset: RLDSDataset, episode: int) -> Annotation:
    """The annotation of an episode as it was before it was padded to the dataset's object slots."""
    about = dataset.metadata(episode)
    steps = range(int(dataset.starts[episode]), int(dataset.starts[episode + 1]))
    names = [f"annotation/{field}" for field in STEP_FIELDS]
    frames = [dataset.frame(step, names) for step in steps]
    fields = {
        field: np.array([frame[f"annotation/{field}"] for frame in frames]) for field in STEP_FIELDS
    }
    for field, axes in STEP_FIELDS.items():
        if "N" in axes:
            fields[field] = np.take(
                fields[field], range(len(about["objects"])), axis=1 + axes.index("N")
            )
    return Annotation(
        instruction=dataset.frame(steps[0], ["language_instruction"])["language_instruction"],
        rate=about["rate"],
        success=bool(about["success"]),
        target=int(about["target"]),
        **{
            name: tuple(about[name])
            for name in ("cameras", "objects", "colors", "phases", "shapes", "axes")
            if name in about
        },
        **fields,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write a page to look at a dataset's labels and to judge them."
    )
    parser.add_argument("directory", help="version folder of the dataset, or its parent")
    parser.add_argument("--out", required=True, help="HTML file to write")
    parser.add_argument("--split", default="", help="train, or the first that there is")
    parser.add_argument("--frames", type=int, default=120, help="how many, about")
    arguments = parser.parse_args()
    try:
        dataset_gallery(
            arguments.directory, arguments.out, split=arguments.split, frames=arguments.frames
        )
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    print(arguments.out)


if __name__ == "__main__":
    main()
