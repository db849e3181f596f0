"""The tabletop's tasks: their wording, their subtasks and when they succeed.

In texts, {x} is the name of the object that the instruction is about and {y} that of the object
beside which, or on which, it is put.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from etcvla.sims.tabletop.layouts import Layout
from etcvla.sims.task import Phase

PUSH_DISTANCE = 0.06  # metres
BESIDE = 0.115  # metres between the centres, at most
_ON = 0.03  # metres between the centres in the plane
_HEIGHT_ERROR = 0.015  # metres
_FLAT = ("cube", "can", "ring", "cross", "star", "arch")  # nouns on which things stay
MIN_TRAVEL = 0.15  # metres from {x} to {y} at the start, where the layout allows it


@dataclasses.dataclass(frozen=True)
class TableTask:
    """A task for any named object of a layout."""

    instructions: tuple[str, ...]  # the canonical instruction, then paraphrases
    held_out: tuple[str, ...]  # paraphrases for evaluation only
    phases: tuple[Phase, ...]
    kind: str  # "touch", "push", "on" or "beside"
    direction: float = 0.0  # of a push along x: -1 or 1
    opposite: str = ""  # the task that undoes this one; "" for none


def _push(side: str, direction: float, opposite: str) -> TableTask:
    return TableTask(
        instructions=(
            f"push the {{x}} to the {side}",
            f"push the {{x}} {side}",
            f"move the {{x}} to the {side}",
        ),
        held_out=(f"slide the {{x}} to the {side}", f"to the {side}, push the {{x}}"),
        phases=(Phase("move to the {x}", "touch"), Phase(f"push the {{x}} to the {side}")),
        kind="push",
        direction=direction,
        opposite=opposite,
    )


def _put(kind: str) -> TableTask:
    return TableTask(
        instructions=(
            f"put the {{x}} {kind} the {{y}}",
            f"place the {{x}} {kind} the {{y}}",
            f"pick up the {{x}} and put it {kind} the {{y}}",
        ),
        held_out=(
            f"move the {{x}} and put it {kind} the {{y}}",
            f"pick the {{x}} and place it {kind} the {{y}}",
        ),
        phases=(
            Phase("move to the {x}", "touch"),
            Phase("pick up the {x}", "moved"),
            Phase(f"put the {{x}} {kind} the {{y}}"),
        ),
        kind=kind,
    )


TASKS = {
    "touch": TableTask(
        instructions=("touch the {x}", "reach the {x}", "go to the {x}", "put the hand on the {x}"),
        held_out=("reach for the {x}", "move the hand to the {x}", "go and touch the {x}"),
        phases=(Phase("move to the {x}", "near"), Phase("touch the {x}")),
        kind="touch",
    ),
    "push-left": _push("left", -1.0, "push-right"),
    "push-right": _push("right", 1.0, "push-left"),
    "pick-on": _put("on"),
    "pick-beside": _put("beside"),
}


def choose_reference(task: TableTask, layout: Layout, target: int) -> int:
    """Return the object {y} for a target {x}: a random one that is not near, and flat for "on".

    Where no object is flat, and where none is far enough away, this condition is dropped. Returns
    the target for tasks without {y}.
    """
    if task.kind not in ("on", "beside"):
        return target
    distances = np.linalg.norm(layout.positions - layout.positions[target], axis=1)
    is_flat = np.array([shown.noun in _FLAT for shown in layout.objects])
    fits = np.arange(len(distances)) != target
    if task.kind == "on" and (fits & is_flat).any():
        fits &= is_flat
    is_far = distances > MIN_TRAVEL
    if not (fits & is_far).any():
        return int(np.where(fits, distances, 0).argmax())
    candidates = np.flatnonzero(fits & is_far)
    return int(np.random.default_rng([layout.number, target]).choice(candidates))


def is_pushed(task: TableTask, start: np.ndarray, now: np.ndarray) -> bool:
    """Return whether an object, float[3], was pushed far enough from its start, float[3]."""
    return bool(task.direction * (now[0] - start[0]) >= PUSH_DISTANCE)


def is_put(task: TableTask, bounds: np.ndarray, support: np.ndarray) -> bool:
    """Return whether a released object is where the task, "on" or "beside", puts it.

    Args:
      task: the task.
      bounds: float[2, 3], corners (low, high) of the object.
      support: those of {y}.
    """
    offset = bounds.mean(0) - support.mean(0)
    distance = np.hypot(offset[0], offset[1])
    if task.kind == "beside":
        return bool(distance < BESIDE and bounds[0, 2] < _HEIGHT_ERROR)
    return bool(distance < _ON and abs(bounds[0, 2] - support[1, 2]) < _HEIGHT_ERROR)
