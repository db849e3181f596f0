"""LIBERO's benchmarks."""

from __future__ import annotations

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
_PERTURBED = ("libero_spatial", "libero_object", "libero_goal", "libero_10")


def _suite_names() -> tuple[str, ...]:
    """Return LIBERO's suites, and LIBERO-PRO's suites of which the package has all files."""
    suites = list(_MAX_STEPS)
    for suite in _PERTURBED:
        suites += [f"{suite}_{change}" for change in _PERTURBATIONS]
    return tuple(suites)


SUITES = _suite_names()


def _max_steps(name: str) -> int:
    """Return the step limit of the suite that `name` perturbs; that of libero_90 for others."""
    bases = [suite for suite in _MAX_STEPS if name.startswith(suite)]
    return _MAX_STEPS[max(bases, key=len, default="libero_90")]


def describe(name: str) -> Suite:
    """Return a suite as the installed LIBERO defines it.

    Raises UserError if the package lacks files of the suite.
    """
    tasks = files.task_names(name)
    resolved = [files.resolve(task) for task in tasks]
    return Suite(
        name=name,
        simulator="libero",
        tasks=tuple(tasks),
        scene="rlds",
        scenes=("upright",),
        max_steps=_max_steps(name),
        image_size=224,
        instructions=tuple(files.instruction(*task) for task in resolved),
        initial_states=min(len(files.init_states(*task)) for task in resolved),
        state_dim=STATE_SIZE,
        action_dim=ACTION_SIZE,
    )
