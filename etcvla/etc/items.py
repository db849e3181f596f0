"""ETC items: questions and answers about a frame that can be parsed back and checked.

Locations are PaliGemma's `<loc0000>`..`<loc1023>` tokens: a coordinate in [0, 1] times 1024, rounded down. A point is
two of them (y, x), a box four (ymin, xmin, ymax, xmax), a path a run of points. By name the same numbers stand as
integers, "[512, 300]", for models without such tokens.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

import numpy as np

NUM_LOC = 1024
# kind -> grade: from what any scene shows, through what the instruction asks, to what is closest to actions.
GRADES: dict[str, str] = {
    "spatial_understanding": "scene_grounding",
    "goal_description": "scene_grounding",
    "affordance": "task_oriented",
    "task_planning": "task_oriented",
    "trajectory": "action_aligned",
}
ETC_KINDS = tuple(GRADES)
GENERAL = "general"  # the grade of multimodal items that no trajectory stands behind (MM data)
LOCATIONS = ("loc", "integers")  # ways to write a location


@dataclasses.dataclass(frozen=True)
class Item:
    """One question and its answer about one frame.

    `question_type` names the sub-question inside the kind ("gripper_side", "locate_box"): it fixes how the answer is parsed,
    checked and scored. `source` says who stands behind the answer: "oracle", "human", or "model:<name>".
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


def format_loc(values: Iterable[float], how: str = "loc") -> str:
    """Coordinates in [0, 1] as location tokens; values outside are clipped to the image's border.

    Args:
      how: a name of `LOCATIONS`.

    >>> format_loc([0.5, 1.0])
    '<loc0512><loc1023>'
    >>> format_loc([0.5, 1.0], "integers")
    '[512, 1023]'
    """
    values = np.asarray(list(values), np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"a location must be finite, got {values.tolist()}")
    bins = np.clip(np.floor(values * NUM_LOC), 0, NUM_LOC - 1).astype(int).tolist()
    return f"{bins}" if how == "integers" else "".join(f"<loc{i:04d}>" for i in bins)


def parse_loc(text: str, group: int) -> np.ndarray | None:
    """The inverse of `format_loc`: float32[n, group] bin centres, or None if `text` is not n >= 1 whole groups.

    Args:
      text: an answer, for instance "<loc0512><loc1023>" or "[512, 1023]".
      group: coordinates in a group: 2 for points and paths, 4 for boxes.
    """
    text = text.strip().replace(" ", "")
    if re.fullmatch(r"\[\d{1,4}(,\d{1,4})*\]", text):
        found = text[1:-1].split(",")
    elif re.fullmatch(r"(<loc\d{4}>)+", text):
        found = re.findall(r"\d{4}", text)
    else:
        return None
    bins = list(map(int, found))
    if len(bins) % group or max(bins) >= NUM_LOC:
        return None
    return ((np.array(bins, np.float32) + 0.5) / NUM_LOC).reshape(-1, group)
