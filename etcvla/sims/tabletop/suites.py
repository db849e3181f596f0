"""The tabletop's benchmarks: the study's task in any scene, and all tasks."""

from __future__ import annotations

import itertools

from etcvla.names import lookup
from etcvla.sims.conditions import CONTEXT_CONDITIONS
from etcvla.sims.suites import Suite
from etcvla.sims.tabletop.tasks import TASKS
from etcvla.sims.tabletop.words import ALL_COLORS, ALL_NOUNS, NUM_ROTATIONS, TIERS

SCENES = tuple(
    f"{tier}{rotation}" for rotation, tier in itertools.product(range(NUM_ROTATIONS), TIERS)
)
# Suite -> its tasks and the limit of control steps. An expert's touch takes about 12, and its
# other tasks about 30.
SUITES = {"tabletop": (("touch",), 40), "tabletop_tasks": (tuple(TASKS), 80)}


def describe(name: str) -> Suite:
    """Return a suite. It can be run in every scene."""
    tasks, max_steps = lookup(SUITES, name, "suite")
    return Suite(
        name=name,
        simulator="tabletop",
        tasks=tasks,
        scene="A0",
        scenes=SCENES,
        max_steps=max_steps,
        image_size=96,
        instructions=tuple(instruction(task) for task in tasks),
        initial_states=None,
        state_dim=4,
        action_dim=4,
        cameras=("front",),
        environments=8,
    )


def instruction(task: str) -> str:
    """Return the longest instruction of a task, because the layout determines the words."""
    rules = lookup(TASKS, task, "task of the tabletop")
    text = max(rules.instructions + rules.held_out, key=len)
    name = f"{max(ALL_COLORS, key=len)} {max(ALL_NOUNS, key=len)}"
    return text.format(x=name, y=name)


def conditions(task: str) -> tuple[str, ...]:
    """Return the conditions in which a task's environment can be made."""
    lookup(TASKS, task, "task of the tabletop")
    return CONTEXT_CONDITIONS


def opposite(task: str) -> str:
    """Return the task that undoes a task; "" for none."""
    return lookup(TASKS, task, "task of the tabletop").opposite
