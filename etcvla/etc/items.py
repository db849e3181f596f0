"""ETC items: questions and answers about a frame that can be parsed back and checked.

Locations are PaliGemma's `<loc0000>`..`<loc1023>` tokens: a coordinate in [0, 1] times 1024, rounded down. A point is
two of them (y, x), a box four (ymin, xmin, ymax, xmax), a path a run of points.
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
SOURCES = ("oracle", "model", "human")


@dataclasses.dataclass(frozen=True)
class Item:
    """One question and its answer about one frame.

    `form` names the sub-question inside the kind ("gripper_side", "locate_box"): it fixes how the answer is parsed,
    checked and scored. `source` says who stands behind the answer: "oracle", "human", or "model:<name>".
    """

    kind: str
    form: str
    question: str
    answer: str
    source: str = "oracle"

    @property
    def grade(self) -> str:
        return GRADES.get(self.kind, GENERAL)


def format_loc(values: Iterable[float]) -> str:
    """Coordinates in [0, 1] as location tokens; values outside are clipped to the image's border.

    >>> format_loc([0.5, 1.0])
    '<loc0512><loc1023>'
    """
    values = np.asarray(list(values), np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"a location must be finite, got {values.tolist()}")
    return "".join(f"<loc{i:04d}>" for i in np.clip(np.floor(values * NUM_LOC), 0, NUM_LOC - 1).astype(int))


def parse_loc(text: str, group: int) -> np.ndarray | None:
    """The inverse of `format_loc`: float32[n, group] bin centres, or None if `text` is not n >= 1 whole groups.

    Args:
      text: an answer, for instance "<loc0512><loc1023>".
      group: coordinates in a group: 2 for points and paths, 4 for boxes.
    """
    text = text.strip().replace(" ", "")
    found = re.findall(r"<loc(\d{4})>", text)
    if not found or len(text) != 9 * len(found) or len(found) % group or max(map(int, found)) >= NUM_LOC:
        return None
    return ((np.array(found, np.float32) + 0.5) / NUM_LOC).reshape(-1, group)
