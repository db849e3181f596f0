"""Meta-World (https://arxiv.org/abs/1910.10897): 50 manipulation tasks of a Sawyer arm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etcvla.names import lookup
from etcvla.sims.conditions import conditions_for
from etcvla.sims.metaworld.suites import SUITES, describe
from etcvla.sims.metaworld.tasks import TASKS
from etcvla.sims.registry import Requirement, Simulator

if TYPE_CHECKING:
    from etcvla.sims.metaworld.environment import MetaWorld


def _make(task: str, scene: str, image_size: int, condition: str) -> MetaWorld:
    from etcvla.sims.metaworld.environment import MetaWorld

    return MetaWorld(task, scene, image_size, condition)


def _instruction(task: str) -> str:
    return lookup(TASKS, task, "task").instructions[0]


def _conditions(task: str) -> tuple[str, ...]:
    return conditions_for([spec.name for spec in lookup(TASKS, task, "task").objects])


def _opposite(task: str) -> str:
    return lookup(TASKS, task, "task").opposite


METAWORLD = Simulator(
    name="metaworld",
    make_environment=_make,
    instruction=_instruction,
    suites=tuple(SUITES),
    describe_suite=describe,
    requirement=Requirement("Meta-World", ("metaworld",), "pip install metaworld==3.1.1 packaging"),
    packages=("metaworld", "mujoco", "numpy"),
    opposite_task=_opposite,
    conditions=_conditions,
)
