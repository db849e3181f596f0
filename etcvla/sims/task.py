"""What a simulator's task consists of: named objects, subtasks and instructions."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class ObjectSpec:
    """A named object of a MuJoCo scene: the visible geoms of a body, or a site.

    The geoms are those of the body alone, of its subtree, or only those of some materials or
    meshes.
    """

    name: str  # noun without article, as questions and answers use it
    color: str  # the color word that fits the rendered object; "" for mixed colors
    body: str = ""
    parts: tuple[str, ...] = ()  # only the geoms of these materials or meshes; () for all
    subtree: bool = False  # include child bodies
    site: str = ""  # a marker instead of a body
    # Grasp point, metres from the centre; None for objects that are not grasped or touched.
    touch: tuple[float, float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Phase:
    """A subtask, written as an imperative. It ends when its condition holds for the target.

    `until` is a key of `etcvla.sims.phases.PHASE_CONDITIONS`.
    """

    text: str
    until: str = "never"


@dataclasses.dataclass(frozen=True)
class Task:
    """The objects, subtasks and instructions of a task."""

    objects: tuple[ObjectSpec, ...]
    target: str  # name of the object that the instruction is about
    phases: tuple[Phase, ...]  # () where the subtasks are unknown
    instructions: tuple[str, ...]  # the canonical instruction, then paraphrases
    joints: tuple[tuple[str, float], ...] = ()  # start positions that replace the simulator's
    opposite: str = ""  # the task that undoes this one in the same scene; "" for none
