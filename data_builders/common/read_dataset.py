"""Frames, images, items and annotations of a dataset on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from etcvla.data.adapters import INSTRUCTION
from etcvla.data.rlds import RLDSDataset
from etcvla.errors import UserError
from etcvla.etc.annotation import STEP_FIELDS, Annotation
from etcvla.etc.items import ITEM_FIELDS, Item

_OBSERVATION = "observation/"
_NAME_LISTS = ("cameras", "objects", "colors", "phases", "shapes", "axes")


def read_info(directory: Path) -> dict[str, Any]:
    """Return dataset_info.json. Raises UserError if it is missing or names no split."""
    path = directory / "dataset_info.json"
    if not path.is_file():
        raise UserError(
            f"{path} is missing: give the version folder of a complete TFDS dataset "
            "(<dataset>/<config>/<version>)"
        )
    info = json.loads(path.read_text())
    if not info.get("splits"):
        raise UserError(f"{path} names no split")
    return info


def read_metadata(directory: Path) -> dict[str, Any]:
    """Return metadata.json; {} if the builder wrote none."""
    path = directory / "metadata.json"
    return json.loads(path.read_text()) if path.exists() else {}


def full_name(directory: Path) -> str:
    """Return "name/config/version" of a version folder."""
    info = read_info(directory)
    names = [info["name"], info.get("configName"), info["version"]]
    return "/".join(name for name in names if name)


def sample_frames(dataset: RLDSDataset, num_frames: int) -> list[tuple[int, int]]:
    """Return about `num_frames` different (episode, step).

    Every task has the same number of them, spread over its episodes and evenly over time.
    """
    episodes_of_task: dict[str, list[int]] = {}
    for episode in range(dataset.num_episodes):
        task = dataset.metadata(episode).get("task", "")
        episodes_of_task.setdefault(task, []).append(episode)
    per_task = max(1, num_frames // len(episodes_of_task))
    frames = []
    for episodes in episodes_of_task.values():
        for number, episode in enumerate(np.resize(episodes, per_task).tolist()):
            step = int((number + 0.5) / per_task * dataset.lengths[episode])
            frames.append((episode, step))
    return list(dict.fromkeys(frames))


def frame_number(dataset: RLDSDataset, episode: int, step: int) -> int:
    """Return the number of a frame in its split."""
    return int(dataset.starts[episode]) + step


def read_images(
    dataset: RLDSDataset, frame: int, metadata: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Return the upright images of a frame by camera; questions are about the first.

    Args:
      metadata: the episode's metadata. Without camera names in it, the dataset's first image
        feature is read alone.

    Raises UserError if the dataset has no images.
    """
    names = [f"{_OBSERVATION}{camera}" for camera in metadata.get("cameras", ())]
    if not names:
        names = _image_features(dataset)[:1]
    if not names:
        raise UserError(f"{dataset.directory} has no images to show")
    images = {}
    for name, image in dataset.frame(frame, names).items():
        camera = name.removeprefix(_OBSERVATION)
        images[camera] = to_upright(image, camera, metadata)
    return images


def _image_features(dataset: RLDSDataset) -> list[str]:
    return [
        name
        for name, feature in dataset.features.items()
        if feature.kind == "image" and not feature.ragged
    ]


def to_upright(image: np.ndarray, camera: str, metadata: Mapping[str, Any]) -> np.ndarray:
    """Return an image uint8[H, W, 3] upright; some datasets store images upside down."""
    if camera in metadata.get("turned", ()):
        return image[::-1, ::-1]
    return image


def has_items(dataset: RLDSDataset) -> bool:
    """Return whether the dataset has ETC items."""
    return "etc/kind" in dataset.features


def read_items(dataset: RLDSDataset, frame: int) -> list[Item]:
    """Return the ETC items of a frame. Raises UserError if the dataset has none."""
    if not has_items(dataset):
        raise UserError(
            f"{dataset.directory} has no steps/etc: `python -m data_builders.add_etc` adds it"
        )
    columns = dataset.frame(frame, [f"etc/{field}" for field in ITEM_FIELDS])
    return [Item(*texts) for texts in zip(*columns.values(), strict=True)]


def iterate_items(dataset: RLDSDataset) -> Iterator[list[Item]]:
    """Yield the ETC items of every frame, without reading images."""
    columns = [dataset.column(f"etc/{field}") for field in ITEM_FIELDS]
    for frame_columns in zip(*columns, strict=True):
        yield [Item(*texts) for texts in zip(*frame_columns, strict=True)]


def read_annotation(dataset: RLDSDataset, episode: int) -> Annotation:
    """Return the annotation of an episode without unused object slots."""
    metadata = dataset.metadata(episode)
    frames = range(int(dataset.starts[episode]), int(dataset.starts[episode + 1]))
    names = [f"annotation/{field}" for field in STEP_FIELDS]
    steps = [dataset.frame(frame, names) for frame in frames]
    num_objects = len(metadata["objects"])
    fields = {}
    for field, axes in STEP_FIELDS.items():
        values = np.array([step[f"annotation/{field}"] for step in steps])
        if "N" in axes:
            values = np.take(values, range(num_objects), axis=1 + axes.index("N"))
        fields[field] = values
    for name in _NAME_LISTS:
        if name in metadata:
            fields[name] = tuple(metadata[name])
    return Annotation(
        instruction=dataset.frame(frames[0], [INSTRUCTION])[INSTRUCTION],
        rate=metadata["rate"],
        success=bool(metadata["success"]),
        target=int(metadata["target"]),
        **fields,
    )
