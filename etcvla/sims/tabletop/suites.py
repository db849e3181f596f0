"""The tabletop's benchmarks: the study's task in any scene, and all tasks."""

from __future__ import annotations

from etcvla.names import lookup
from etcvla.sims.conditions import CONDITIONS
from etcvla.sims.suites import Suite
from etcvla.sims.tabletop.tasks import TASKS
from etcvla.sims.tabletop.words import ALL_COLORS, ALL_NOUNS, TIERS, parse_scene

# Suite -> its tasks and the limit of control steps. An expert's touch takes about 12, and its
# other tasks about 30.
SUITES = {"tabletop": (("touch",), 40), "tabletop_tasks": (tuple(TASKS), 80)}
# Conditions that keep the objects' names and colors, which the instructions are about.
CONDITION_NAMES = tuple(
    name for name, value in CONDITIONS.items() if not value.colors and not value.swapped
)
PREFIX = "tabletop_"  # "tabletop_C2" is the suite "tabletop" in the scene "C2"


def describe(name: str) -> Suite:
    """Return a suite in the scene "A0", or "touch" in the scene that the name ends with.

    Raises UserError for an unknown scene.
    """
    scene = "A0"
    if name not in SUITES:
        scene = name.removeprefix(PREFIX)
        parse_scene(scene)
    tasks, max_steps = SUITES.get(name, SUITES["tabletop"])
    return Suite(
        name=name,
        simulator="tabletop",
        tasks=tasks,
        scene=scene,
        scenes=tuple(f"{tier}0" for tier in TIERS if f"{tier}0" != scene),
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
    return CONDITION_NAMES


def opposite(task: str) -> str:
    """Return the task that undoes a task; "" for none."""
    return lookup(TASKS, task, "task of the tabletop").opposite
