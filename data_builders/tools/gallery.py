"""Write an HTML page of a dataset's frames, labels and facts, on which items can be rejected.

    python -m data_builders.tools.gallery --data=DIR --out=FILE.html [--split=train] [--frames=120]

The page saves a review. `python -m data_builders.tools.review` leaves out the rejected items.
"""

from __future__ import annotations

from pathlib import Path

from absl import app, flags

from data_builders.common import command
from data_builders.common.read_dataset import (
    frame_number,
    full_name,
    read_annotation,
    read_images,
    read_items,
    sample_frames,
)
from etcvla.data.adapters import INSTRUCTION
from etcvla.data.rlds import RLDSDataset
from etcvla.data.rlds_layout import find_version, split_names
from etcvla.pages.gallery import GalleryEntry, write_gallery


def write_dataset_gallery(
    directory: str | Path, path: str | Path, *, split: str = "", num_frames: int = 120
) -> None:
    """Write a page of about `num_frames` frames, spread over the split's tasks and episodes.

    Args:
      directory: version folder of the dataset, or its parent.
      split: default: "train", or the dataset's first split.

    Raises UserError if there is no such dataset, or if it has no ETC items or no images.
    """
    splits = split_names(find_version(Path(directory)))
    if not split:
        split = "train" if "train" in splits or not splits else splits[0]
    dataset = RLDSDataset(directory, split)
    name = full_name(dataset.directory)
    frames = sample_frames(dataset, num_frames)
    entries = [read_entry(dataset, episode, step) for episode, step in frames]
    write_gallery(path, entries, f"{name}, {split}", dataset=name, split=split)


def read_entry(dataset: RLDSDataset, episode: int, step: int) -> GalleryEntry:
    """Return a frame for the page, with the annotation if the dataset has one."""
    metadata = dataset.metadata(episode)
    frame = frame_number(dataset, episode, step)
    episode_id = str(metadata.get("episode_id", episode))
    images = read_images(dataset, frame, metadata)
    first_camera = next(iter(images))
    first_image = images.pop(first_camera)
    instruction = ""
    if INSTRUCTION in dataset.features:
        instruction = dataset.frame(frame, [INSTRUCTION])[INSTRUCTION]
    annotation = None
    if "annotation/box" in dataset.features:
        annotation = read_annotation(dataset, episode)
    return GalleryEntry(
        image=first_image,
        items=read_items(dataset, frame),
        instruction=instruction,
        caption=f"{episode_id}, step {step}",
        annotation=annotation,
        step=step,
        episode_id=episode_id,
        other_images=images,
    )


def main(argv: list[str]) -> None:
    """Run the command."""
    with command.user_errors():
        command.check_no_arguments(argv)
        write_dataset_gallery(_DATA.value, _OUT.value, split=_SPLIT.value, num_frames=_FRAMES.value)
        print(_OUT.value)


if __name__ == "__main__":
    _DATA = flags.DEFINE_string(
        "data", None, "Version folder of the dataset, or its parent.", required=True
    )
    _OUT = flags.DEFINE_string("out", None, "HTML file to write.", required=True)
    _SPLIT = flags.DEFINE_string("split", "", "Split to show; default: train, or the first.")
    _FRAMES = flags.DEFINE_integer("frames", 120, "Approximate number of frames.")
    app.run(main)
