"""The tabletop's benchmarks: the study's task in any scene, and all tasks."""

from __future__ import annotations

from etcvla.names import lookup
from etcvla.sims.suites import Suite
from etcvla.sims.tabletop.tasks import TASKS
from etcvla.sims.tabletop.words import parse_scene

# Suite -> its tasks and the limit of control steps. An expert's touch takes about 12, and its
# other tasks about 30.
SUITES = {"tabletop": (("touch",), 40), "tabletop_tasks": (tuple(TASKS), 80)}
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
        max_steps=max_steps,
        image_size=96,
        instructions=tuple(instruction(task) for task in tasks),
        initial_states=None,
        state_dim=4,
        action_dim=4,
        cameras=("front",),
    )


def instruction(task: str) -> str:
    """Return a task's canonical instruction for no particular object."""
    text = lookup(TASKS, task, "task of the tabletop").instructions[0]
    return text.format(x="object", y="other object")


def opposite(task: str) -> str:
    """Return the task that undoes a task; "" for none."""
    return lookup(TASKS, task, "task of the tabletop").opposite
