"""What people said of items: a JSON file that the gallery page writes and that builders obey.

    {"format": "etcvla-review", "version": 1, "dataset": "metaworld_etc/source/1.0.0", "split": "train",
     "items": [{"episode_id": "metaworld/source/door-open/00003", "step": 12, "question_type": "grasp_point",
                "question": "...", "answer": "...", "verdict": "reject"}]}

`verdict` is "accept" or "reject"; an item that nobody judged is not in the file. An item is known by all of its words:
where a dataset was made anew and says something else, an old verdict does not apply by accident.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import NamedTuple

FORMAT, VERSION = "etcvla-review", 1
VERDICTS = ("accept", "reject")


class ItemKey(NamedTuple):
    """One item of a split."""

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
        """Raises OSError where there is no such file, ValueError that names file and entry where it is not a review."""
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        found = (
            (document.get("format"), document.get("version"))
            if isinstance(document, dict)
            else None
        )
        if found != (FORMAT, VERSION):
            raise ValueError(
                f"{path} is not a review: format and version are {found}, expected {FORMAT!r}, {VERSION}; "
                "write one with the gallery page's `save review`"
            )
        verdicts = {}
        for number, item in enumerate(document["items"]):
            wrong = [field for field in ItemKey._fields if field not in item]
            if wrong or item.get("verdict") not in VERDICTS:
                raise ValueError(
                    f"{path}, items[{number}]: "
                    + (
                        f"{', '.join(wrong)} missing"
                        if wrong
                        else f"verdict is {item.get('verdict')!r}, expected {' or '.join(VERDICTS)}"
                    )
                )
            verdicts[ItemKey(*(item[field] for field in ItemKey._fields))] = item["verdict"]
        return cls(document["dataset"], document["split"], verdicts)

    def rejected(self) -> frozenset[ItemKey]:
        return frozenset(key for key, verdict in self.verdicts.items() if verdict == "reject")


def review_file_name(dataset: str, split: str) -> str:
    """What the page calls the file: "review-metaworld_etc-source-1.0.0-train.json"."""
    return f"review-{re.sub(r'[^A-Za-z0-9._+-]+', '-', f'{dataset}-{split}')}.json"
