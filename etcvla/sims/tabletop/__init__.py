"""The tabletop: five objects, of which the instruction alone determines the target."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etcvla.sims.registry import Requirement, Simulator
from etcvla.sims.tabletop.layouts import NUM_OBJECTS
from etcvla.sims.tabletop.suites import (
    SUITES,
    conditions,
    describe,
    instruction,
    opposite,
)

if TYPE_CHECKING:
    from etcvla.sims.tabletop.environment import Tabletop


def _make(task: str, scene: str, image_size: int, condition: str) -> Tabletop:
    from etcvla.sims.tabletop.environment import Tabletop

    return Tabletop(task, scene, image_size, condition)


TABLETOP = Simulator(
    name="tabletop",
    make_environment=_make,
    instruction=instruction,
    suites=tuple(SUITES),
    describe_suite=describe,
    requirement=Requirement("The tabletop", ("mujoco",), "pip install mujoco"),
    packages=("mujoco", "numpy"),
    opposite_task=opposite,
    conditions=conditions,
    trials_per_layout=NUM_OBJECTS,
)
