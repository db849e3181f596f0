"""LIBERO's benchmarks."""

from __future__ import annotations

from etcvla.names import lookup
from etcvla.sims.libero import files
from etcvla.sims.libero.tasks import ACTION_SIZE, STATE_SIZE
from etcvla.sims.suites import Suite

# Suite -> control steps before an episode counts as failed, as in OpenVLA's and openpi's
# evaluations.
_MAX_STEPS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
# LIBERO-PRO: paraphrased instructions, other object appearances, exchanged positions, other goals.
_PERTURBATIONS = ("lan", "object", "swap", "task")


def _perturbed_suites() -> dict[str, int]:
    """Return the perturbed suites of which the package has all files, with their step limits."""
    suites = {}
    for suite, max_steps in _MAX_STEPS.items():
        if suite != "libero_90":
            suites |= {f"{suite}_{change}": max_steps for change in _PERTURBATIONS}
    return suites


_ALL = {**_MAX_STEPS, **_perturbed_suites()}
SUITES = tuple(_ALL)


def describe(name: str) -> Suite:
    """Return a suite as the installed LIBERO defines it.

    Raises UserError if the package lacks files of the suite.
    """
    max_steps = lookup(_ALL, name, "suite")
    tasks = tuple(files.task_names(name))
    names = [files.resolve(task) for task in tasks]
    return Suite(
        name=name,
        simulator="libero",
        tasks=tasks,
        scene="rlds",
        max_steps=max_steps,
        image_size=224,
        instructions=tuple(files.instruction(*name) for name in names),
        initial_states=min(len(files.init_states(*name)) for name in names),
        state_dim=STATE_SIZE,
        action_dim=ACTION_SIZE,
    )
