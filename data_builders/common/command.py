"""What builders' commands share: where the dataset goes, who has judged it, and a page to look at it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags

from data_builders.common.build import prepare
from data_builders.common.simulated_builder import SimulatedBuilder
from data_builders.tools.gallery import REVIEW_HELP, dataset_gallery
from data_builders.tools.review import apply_review
from etcvla.etc.items import LOCATIONS
from etcvla.sims.headless import check_rendering

FLAGS = flags.FLAGS


def output_flags() -> None:
    """Defines --out, --review and --gallery."""
    flags.DEFINE_string("out", None, "Directory of datasets.", required=True)
    flags.DEFINE_string("review", None, REVIEW_HELP)
    flags.DEFINE_string(
        "gallery", None, "HTML file to write: frames with boxes, paths, questions and answers."
    )


def beam_flag() -> None:
    """Defines --beam, for builders that Apache Beam may run."""
    flags.DEFINE_list(
        "beam",
        [],
        "Apache Beam's options without dashes, e.g. runner=DirectRunner: let it make the episodes.",
    )


def simulator_flags(*, image_size: int, noise: tuple[str, str]) -> Callable[[], dict[str, Any]]:
    """Defines what builders of a simulator's episodes share, and returns what gives the values by config field."""
    output_flags()
    beam_flag()
    flags.DEFINE_integer("workers", 0, "Processes; 0: one a core.")
    fields = {
        "held_out": flags.DEFINE_float(
            "held_out", 0.12, "Validation episodes for each training episode, rounded up."
        ),
        "image_size": flags.DEFINE_integer("image_size", image_size, "Height and width in pixels."),
        "locations": flags.DEFINE_enum(
            "locations", "loc", LOCATIONS, "Coordinates as tokens, or as integers."
        ),
    }
    spread = flags.DEFINE_list(
        "noise", list(noise), "Range of an episode's action noise, standard deviation."
    )
    return lambda: (
        {name: flag.value for name, flag in fields.items()}
        | {"noise": tuple(map(float, spread.value))}
    )


def simulate(builder: type[SimulatedBuilder], config: Any) -> Path:
    """Builds what the config says where things can be drawn. Raises RuntimeError where they cannot."""
    check_rendering()
    builder.workers = FLAGS.workers or builder.workers
    return prepare(builder, config, FLAGS.out, FLAGS.beam)


def run(argv: list[str], build: Callable[[], Path], **page: Any) -> None:
    """Builds, leaves out what a review rejects, writes the gallery and prints the path; or exits with a message.

    Args:
      build: makes the dataset, and returns its folder.
      page: keywords of `dataset_gallery`.
    """
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    try:
        path = build()
        if FLAGS.review:
            path = apply_review(path, FLAGS.review)
        if FLAGS.gallery:
            dataset_gallery(path, FLAGS.gallery, **page)
        print(path)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
