"""ETC items: questions and answers about a frame, in a form that can be parsed and verified.

Locations are PaliGemma's tokens `<loc0000>` .. `<loc1023>`: a coordinate in [0, 1] times 1024,
rounded down. A point has two tokens (y, x), a box four (ymin, xmin, ymax, xmax), and a path is a
sequence of points. For models without such tokens, the same numbers are written as integers:
"[512, 300]".
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

import numpy as np

NUM_LOC = 1024
# Kind -> grade. The grades range from facts that any scene shows, over facts that depend on the
# instruction, to facts that are closest to actions.
GRADES: dict[str, str] = {
    "spatial_understanding": "scene_grounding",
    "goal_description": "scene_grounding",
    "affordance": "task_oriented",
    "task_planning": "task_oriented",
    "trajectory": "action_aligned",
}
ETC_KINDS = tuple(GRADES)
GENERAL = "general"  # grade of multimodal (MM) items that are not derived from a trajectory
LOCATIONS = ("loc", "integers")  # notations of locations
_INTEGERS = re.compile(r"\[\d{1,4}(,\d{1,4})*\]")
_LOC_TOKENS = re.compile(r"(<loc\d{4}>)+")


@dataclasses.dataclass(frozen=True)
class Item:
    """One question about one frame, with its answer.

    Attributes:
      kind: the kind of supervision, one of `ETC_KINDS` or a kind of general multimodal data.
      question_type: name of the sub-question inside the kind ("gripper_side", "locate_box"). It
        determines how the answer is parsed, verified and scored.
      question: text of the question.
      answer: text of the canonical answer.
      source: origin of the answer: "oracle", "human", or "model:<name>".
    """

    kind: str
    question_type: str
    question: str
    answer: str
    source: str = "oracle"

    @property
    def grade(self) -> str:
        """The grade of the item's kind, `GENERAL` for kinds that are not in `GRADES`."""
        return GRADES.get(self.kind, GENERAL)


# ("kind", "question_type", "question", "answer", "source"): the order of columns in datasets.
ITEM_FIELDS = tuple(field.name for field in dataclasses.fields(Item))


def format_loc(values: Iterable[float], notation: str = "loc") -> str:
    """Format coordinates in [0, 1] as location tokens; values outside are clipped to the border.

    Args:
      values: finite coordinates; ValueError otherwise.
      notation: one of `LOCATIONS`.

    >>> format_loc([0.5, 1.0])
    '<loc0512><loc1023>'
    >>> format_loc([0.5, 1.0], "integers")
    '[512, 1023]'
    """
    values = np.asarray(list(values), np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"a location must be finite, got {values.tolist()}")
    bins = np.clip(np.floor(values * NUM_LOC), 0, NUM_LOC - 1).astype(int).tolist()
    if notation == "integers":
        return str(bins)
    return "".join(f"<loc{i:04d}>" for i in bins)


def parse_loc(text: str, group: int) -> np.ndarray | None:
    """Parse an answer that `format_loc` wrote, in either notation.

    Args:
      text: for instance "<loc0512><loc1023>" or "[512, 1023]".
      group: number of coordinates per group: 2 for points and paths, 4 for boxes.

    Returns:
      float32[n, group] bin centres, or None if `text` does not consist of n >= 1 complete groups.
    """
    text = text.strip().replace(" ", "")
    if _INTEGERS.fullmatch(text):
        numbers = text[1:-1].split(",")
    elif _LOC_TOKENS.fullmatch(text):
        numbers = re.findall(r"\d{4}", text)
    else:
        return None
    bins = np.array(numbers, int)
    if len(bins) % group or bins.max() >= NUM_LOC:
        return None
    return ((bins.astype(np.float32) + 0.5) / NUM_LOC).reshape(-1, group)


def rename_words(item: Item, words: Mapping[str, str]) -> Item:
    """Return an item with words replaced in its question and answer, all at once.

    Plurals are replaced by plurals.

    >>> item = Item("affordance", "touch", "is the cube red?", "two cubes are")
    >>> rename_words(item, {"cube": "cross", "red": "blue"}).question
    'is the cross blue?'
    """
    pattern = re.compile(rf"\b({'|'.join(words)})(s|es)?\b")

    def _replace(match: re.Match) -> str:
        word = words[match[1]]
        plural = "es" if word.endswith(("s", "x")) else "s"
        return word + plural if match[2] else word

    return dataclasses.replace(
        item,
        question=pattern.sub(_replace, item.question),
        answer=pattern.sub(_replace, item.answer),
    )
