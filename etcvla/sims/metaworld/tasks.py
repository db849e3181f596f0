"""The Meta-World tasks: their objects, target, subtasks and instructions, from `tasks.toml`."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from etcvla.sims.task import ObjectSpec, Phase, Task

# The subtasks before a task's last one: (text, condition that ends it).
APPROACHES = {
    "reach": [("move to the {}", "near")],
    "touch": [("move to the {}", "touch")],
    "grasp": [("move to the {}", "touch"), ("grasp the {}", "moved")],
}
_TABLE = tomllib.loads(Path(__file__).with_name("tasks.toml").read_text())


def _object(name: str, color: str, **fields: Any) -> ObjectSpec:
    for key in ("parts", "touch"):
        if key in fields:
            fields[key] = tuple(fields[key])
    return ObjectSpec(name, color, **fields)


def _task(fields: dict[str, Any]) -> Task:
    target = fields["target"]
    phases = [Phase(text.format(target), until) for text, until in APPROACHES[fields["approach"]]]
    return Task(
        objects=tuple(_object(**_TABLE["objects"][key]) for key in fields["objects"]),
        target=target,
        phases=(*phases, Phase(fields["last_subtask"])),
        instructions=tuple(fields["instructions"]),
        joints=tuple(fields.get("joints", {}).items()),
        opposite=fields.get("opposite", ""),
    )


TASKS = {name: _task(fields) for name, fields in _TABLE["tasks"].items()}
SHAPES: dict[str, str] = _TABLE["shapes"]  # noun -> shape word, where it is unambiguous

DEMO_TASKS = (
    "reach",
    "door-open",
    "drawer-open",
    "drawer-close",
    "button-press-topdown",
    "window-close",
)
MT10 = (
    "reach",
    "push",
    "pick-place",
    "door-open",
    "drawer-open",
    "drawer-close",
    "button-press-topdown",
    "peg-insert-side",
    "window-open",
    "window-close",
)
NUM_OBJECTS = 4  # object slots that hold any task's scene
