"""Review: people's verdicts about items, in a JSON file that the gallery page writes.

    {"format": "etcvla-review", "version": 1, "dataset": "metaworld_etc/source/1.0.0", "split":
    "train",
     "items": [{"episode_id": "metaworld/source/door-open/00003", "step": 12,
                "question_type": "grasp_point", "question": "...", "answer": "...",
                "verdict": "reject"}]}

`verdict` is "accept" or "reject"; items without a verdict are not in the file. An item is
identified by its complete text, so that an old verdict does not apply to a rebuilt dataset with
another answer.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from etcvla.errors import UserError

FORMAT = "etcvla-review"
VERSION = 1
VERDICTS = ("accept", "reject")


class ItemKey(NamedTuple):
    """Identifies one item of a split."""

    episode_id: str
    step: int
    question_type: str
    question: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Review:
    """Verdicts about items of one split of one dataset (its full name, "name/config/version")."""

    dataset: str
    split: str
    verdicts: dict[ItemKey, str]

    @classmethod
    def load(cls, path: str | Path) -> Review:
        """Read a review file.

        Raises UserError with the file and the entry if the file does not exist or is not a review.
        """
        document = _load_document(path)
        verdicts = {}
        for number, item in enumerate(document["items"]):
            problem = _problem(item)
            if problem:
                raise UserError(f"{path}, items[{number}]: {problem}")
            key = ItemKey(*(item[field] for field in ItemKey._fields))
            verdicts[key] = item["verdict"]
        return cls(document["dataset"], document["split"], verdicts)

    def rejected(self) -> frozenset[ItemKey]:
        """Return the keys of the rejected items."""
        return frozenset(key for key, verdict in self.verdicts.items() if verdict == "reject")


def _load_document(path: str | Path) -> dict[str, Any]:
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"no review file {path}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    header = None
    if isinstance(document, dict):
        header = (document.get("format"), document.get("version"))
    if header != (FORMAT, VERSION):
        raise UserError(
            f"{path} is not a review: format and version are {header}, expected {FORMAT!r}, "
            f"{VERSION}; write one with `save review` of the gallery page"
        )
    return document


def _problem(item: dict[str, Any]) -> str | None:
    """Return what is wrong with an entry of a review, None if nothing is."""
    missing = [field for field in ItemKey._fields if field not in item]
    if missing:
        return f"{', '.join(missing)} missing"
    verdict = item.get("verdict")
    if verdict not in VERDICTS:
        return f"verdict is {verdict!r}, expected {' or '.join(VERDICTS)}"
    return None


def review_file_name(dataset: str, split: str) -> str:
    """Return the name that the page gives the file.

    >>> review_file_name("metaworld_etc/source/1.0.0", "train")
    'review-metaworld_etc-source-1.0.0-train.json'
    """
    name = re.sub(r"[^A-Za-z0-9._+-]+", "-", f"{dataset}-{split}")
    return f"review-{name}.json"
