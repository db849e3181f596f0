"""Flags and the main function that the builders' commands share. Imports no TensorFlow at the top.

Every command has --out, --review and --gallery; other flags have the same name and meaning in all
commands that have them.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import app, flags

from etcvla.errors import UserError
from etcvla.etc.items import LOCATIONS

FLAGS = flags.FLAGS
REVIEW_HELP = (
    "JSON file that the gallery page saves. The items it rejects are left out of a second dataset, "
    "which is written beside the unreviewed one."
)


def define_output_flags() -> None:
    """Define --out, --review and --gallery."""
    flags.DEFINE_string("out", None, "Folder of datasets to write to.", required=True)
    flags.DEFINE_string("review", None, REVIEW_HELP)
    flags.DEFINE_string(
        "gallery", None, "HTML file to write: frames with boxes, paths, questions and answers."
    )


def define_beam_flag() -> None:
    """Define --beam, for builders that can run on Apache Beam."""
    flags.DEFINE_list(
        "beam",
        [],
        "Apache Beam options without dashes, e.g. runner=DirectRunner. Beam makes the episodes.",
    )


def define_picture_flags(*, episodes: int, val_episodes: int) -> None:
    """Define the flags of all builders of pictures.

    Args:
      episodes, val_episodes: default values.
    """
    define_output_flags()
    define_beam_flag()
    flags.DEFINE_integer("episodes", episodes, "Training images; an image is one episode.")
    flags.DEFINE_integer("val_episodes", val_episodes, "Validation images.")
    flags.DEFINE_integer("image_size", 96, "Height and width of images in pixels.")
    flags.DEFINE_integer("seed", 0, "Seed of all images.")


def picture_settings() -> dict[str, Any]:
    """Return the config fields that `define_picture_flags` defines, with the flags' values."""
    names = ("episodes", "val_episodes", "image_size", "seed")
    return {name: FLAGS[name].value for name in names}


def define_simulator_flags(*, image_size: int, noise: tuple[str, str]) -> None:
    """Define the flags of all builders that make their episodes in a simulator.

    Args:
      image_size, noise: default values.
    """
    define_output_flags()
    define_beam_flag()
    flags.DEFINE_integer("workers", 0, "Number of worker processes; 0: one per CPU core.")
    flags.DEFINE_float(
        "held_out",
        0.12,
        "Validation episodes per training episode of a task: 0.12 adds 4 to 30. Rounded up.",
    )
    flags.DEFINE_integer("image_size", image_size, "Height and width of images in pixels.")
    flags.DEFINE_enum(
        "locations",
        "loc",
        LOCATIONS,
        "Format of coordinates in questions and answers: <locNNNN> tokens, or integers.",
    )
    flags.DEFINE_list(
        "noise",
        list(noise),
        "LOW,HIGH. Each episode draws the standard deviation of its action noise from this range.",
    )


def simulator_settings() -> dict[str, Any]:
    """Return the config fields that `define_simulator_flags` defines, with the flags' values."""
    try:
        noise = tuple(float(number) for number in FLAGS.noise)
    except ValueError:
        noise = ()
    if len(noise) != 2:
        raise UserError(f"--noise={','.join(FLAGS.noise)}: expected two numbers LOW,HIGH")
    return {
        "held_out": FLAGS.held_out,
        "image_size": FLAGS.image_size,
        "locations": FLAGS.locations,
        "noise": noise,
    }


def build_simulated(builder_class: type, config: Any) -> Path:
    """Build a simulated dataset. Raises UserError if this machine cannot render."""
    from data_builders.common.build import prepare
    from etcvla.sims.headless import check_rendering

    check_rendering()
    if FLAGS.workers:
        builder_class.workers = FLAGS.workers
    return prepare(builder_class, config, FLAGS.out, FLAGS.beam)


def run_builder(argv: list[str], build: Callable[[], Path], *, gallery_frames: int = 120) -> None:
    """Build a dataset, apply --review, write --gallery, and print the dataset's folder.

    Args:
      build: builds the dataset and returns its version folder.
      gallery_frames: number of frames of the page.
    """
    with user_errors():
        check_no_arguments(argv)
        path = build()
        if FLAGS.review:
            from data_builders.tools.review import apply_review

            path = apply_review(path, FLAGS.review)
        if FLAGS.gallery:
            from data_builders.tools.gallery import write_dataset_gallery

            write_dataset_gallery(path, FLAGS.gallery, num_frames=gallery_frames)
        print(path)


def check_no_arguments(argv: list[str]) -> None:
    """Raise a usage error if a command line has arguments that are not flags."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Exit with one line for a UserError; other exceptions are bugs and show their traceback."""
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error}")
