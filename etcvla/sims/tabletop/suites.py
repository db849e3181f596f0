"""The tabletop's benchmarks: one for each tier, in rotation 0."""

from __future__ import annotations

from etcvla.names import lookup
from etcvla.sims.suites import Suite
from etcvla.sims.tabletop.tasks import TASKS
from etcvla.sims.tabletop.words import TIERS

SUITES = {"tabletop": "A0"} | {f"tabletop_{tier.lower()}": f"{tier}0" for tier in TIERS}
MAX_STEPS = 40  # an expert's touch takes about 12


def describe(name: str) -> Suite:
    """Return a suite: the task "touch" in a tier's scene."""
    scene = lookup(SUITES, name, "suite")
    return Suite(
        name=name,
        simulator="tabletop",
        tasks=("touch",),
        scene=scene,
        max_steps=MAX_STEPS,
        image_size=96,
        instructions=(instruction("touch"),),
        initial_states=None,
        state_dim=4,
        action_dim=4,
        cameras=("front",),
    )


def instruction(task: str) -> str:
    """Return a task's canonical instruction for no particular object."""
    return lookup(TASKS, task, "task of the tabletop").instructions[0].format(x="object")
