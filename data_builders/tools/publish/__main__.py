"""Prepare a dataset for publication.

    python -m data_builders.tools.publish --data=DIR [--review=FILE.json] [--check]

Writes README.md (the dataset card), statistics.json, CITATION.bib, preview/<split>.parquet and
croissant.json into the version folder and prints its path. With --review the rejected items are
left out first, in a dataset beside the unreviewed one. Any RLDS dataset can be published, with or
without ETC items and actions. With --check nothing is written: every file of a published dataset is
compared with the SHA-256 in croissant.json.
"""

from __future__ import annotations

import json
from pathlib import Path

from absl import app, flags

from data_builders.common import command
from data_builders.tools.publish import CARD, CITATION, CROISSANT, STATISTICS
from data_builders.tools.publish.card import bibtex, make_card
from data_builders.tools.publish.croissant import describe, find_damage
from data_builders.tools.publish.preview import preview_parquet
from data_builders.tools.publish.summary import DatasetSummary
from etcvla.data.rlds_layout import find_version
from etcvla.errors import UserError
from etcvla.files import write_atomically, write_json


def publish(
    directory: str | Path, *, review: str | Path | None = None, num_frames: int = 64
) -> Path:
    """Write the files that accompany a dataset and return its version folder.

    Args:
      directory: version folder of the dataset, or its parent.
      review: review of the gallery page; its rejected items are left out.
      num_frames: approximate number of frames in the preview of each split.

    Raises UserError if the dataset or the review is invalid.
    """
    if review:
        # Only reviews need TensorFlow.
        from data_builders.tools.review import apply_review

        directory = apply_review(directory, review)
    dataset = DatasetSummary.load(directory)
    statistics = dataset.statistics()
    (dataset.directory / "preview").mkdir(exist_ok=True)
    previews = {}
    for name, split in dataset.splits.items():
        previews[name] = dataset.directory / "preview" / f"{name}.parquet"
        write_atomically(previews[name], preview_parquet(split, num_frames))
    write_json(dataset.directory / STATISTICS, statistics)
    write_atomically(dataset.directory / CITATION, bibtex(dataset))
    write_atomically(dataset.directory / CARD, str(make_card(dataset, statistics, previews)))
    document = json.dumps(describe(dataset, previews), indent=1)
    write_atomically(dataset.directory / CROISSANT, document)
    return dataset.directory


def check(directory: str | Path) -> Path:
    """Compare all files with their checksums and return the version folder.

    Raises UserError for files that are missing or differ, and if the dataset is not published.
    """
    version = find_version(Path(directory))
    problems = find_damage(version)
    if problems:
        raise UserError("; ".join(problems))
    return version


def main(argv: list[str]) -> None:
    """Run the command."""
    with command.user_errors():
        command.check_no_arguments(argv)
        if _CHECK.value:
            print(f"{check(_DATA.value)}: all files match their checksums")
        else:
            print(publish(_DATA.value, review=_REVIEW.value, num_frames=_FRAMES.value))


_DATA = flags.DEFINE_string("data", None, "Version folder of the dataset, or its parent.")
_REVIEW = flags.DEFINE_string("review", None, command.REVIEW_HELP)
_FRAMES = flags.DEFINE_integer(
    "frames", 64, "Approximate number of frames in the preview of each split."
)
_CHECK = flags.DEFINE_bool("check", False, "Write nothing; compare all files with their SHA-256.")

if __name__ == "__main__":
    flags.mark_flag_as_required("data")
    app.run(main)
