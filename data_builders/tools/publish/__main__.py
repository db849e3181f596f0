"""Makes a dataset ready to be given away: `python -m data_builders.tools.publish DIRECTORY [--review=FILE.json] [--check]`.

Writes README.md (the card), statistics.json, CITATION.bib, preview/<split>.parquet and croissant.json into the version
folder and prints its path. With --review the rejected items are left out first: that is a dataset of its own, beside
the unreviewed one. Works for any RLDS dataset, with or without ETC and actions. With --check nothing is written: every
file of a published dataset is compared with the SHA-256 that croissant.json has of it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from data_builders.tools.gallery import REVIEW_HELP
from data_builders.tools.publish import CARD, CITATION, CROISSANT, STATISTICS, croissant
from data_builders.tools.publish.card import card, citation
from data_builders.tools.publish.preview import write_preview
from data_builders.tools.publish.summary import DatasetFacts
from etcvla.data.rlds_layout import find_version


def publish(directory: str | Path, *, review: str | Path | None = None, frames: int = 64) -> Path:
    """Writes what goes with a dataset and returns the version folder that it stands in.

    Args:
      review: verdicts of the gallery page; rejected items are left out, in another folder.
      frames: how many the preview has of each split, about.

    Raises what `RLDSDataset`, `apply_review` and `compute_norm_stats` do.
    """
    if review:
        from data_builders.tools.review import (
            apply_review,
        )  # which needs TensorFlow; nothing else here does

        directory = apply_review(directory, review)
    facts = DatasetFacts.gather(directory)
    statistics = facts.statistics()
    previews = {split: facts.directory / "preview" / f"{split}.parquet" for split in facts.splits}
    for split, file in previews.items():
        with _whole_file(file) as made:
            write_preview(made, facts.splits[split], frames)
    texts = {
        STATISTICS: lambda: json.dumps(statistics, indent=1),
        CITATION: lambda: citation(facts),
        CARD: lambda: card(facts, statistics, previews),
        CROISSANT: lambda: json.dumps(croissant.describe(facts, previews), indent=1),
    }
    for name, text in texts.items():
        with _whole_file(facts.directory / name) as made:
            made.write_text(text(), encoding="utf-8")
    return facts.directory


@contextlib.contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """A file to write that becomes `path` at the end, or vanishes if something goes wrong."""
    path.parent.mkdir(exist_ok=True)
    made = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield made
        made.replace(path)
    finally:
        made.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a dataset ready to be given away.")
    parser.add_argument("directory", help="version folder of the dataset, or its parent")
    parser.add_argument("--review", help=REVIEW_HELP)
    parser.add_argument(
        "--frames", type=int, default=64, help="frames of each split in the preview, about"
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; compare every file with its SHA-256"
    )
    arguments = parser.parse_args()
    try:
        if arguments.check:
            directory = find_version(Path(arguments.directory))
            if wrong := croissant.damaged(directory):
                raise ValueError("; ".join(wrong))
            print(f"{directory}: every file is as it was published")
        else:
            print(publish(arguments.directory, review=arguments.review, frames=arguments.frames))
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
