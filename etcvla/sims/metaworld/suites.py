"""Meta-World's benchmarks."""

from __future__ import annotations

from etcvla.names import lookup
from etcvla.sims.metaworld.tasks import TASKS
from etcvla.sims.suites import Suite

# Suite -> the table of `metaworld.env_dict` that lists its tasks, and the table's key ("" for a
# flat table).
SUITES = {
    "metaworld_mt10": ("MT10_V3", ""),
    "metaworld_mt50": ("MT50_V3", ""),
    "metaworld_ml45_test": ("ML45_V3", "test"),
}
_MAX_STEPS = 500  # Meta-World's own episode limit


def describe(name: str) -> Suite:
    """Return a suite as the installed Meta-World defines it."""
    table_name, split = lookup(SUITES, name, "suite")
    from metaworld import env_dict

    table = getattr(env_dict, table_name)
    environments = table[split] if split else table
    tasks = tuple(environment.removesuffix("-v3") for environment in environments)
    return Suite(
        name=name,
        simulator="metaworld",
        tasks=tasks,
        scene="source",
        scenes=("target",),
        max_steps=_MAX_STEPS,
        image_size=96,
        instructions=tuple(TASKS[task].instructions[0] for task in tasks),
        initial_states=None,
        state_dim=4,
        action_dim=4,
    )
