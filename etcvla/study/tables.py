"""Text tables of a study for the terminal: the state of its cells, and their costs."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean

from etcvla.study.costs import TrainingCosts
from etcvla.study.runs import Graph, Run
from etcvla.study.worker import run_state
from etcvla.train.log import format_duration


def state_table(graph: Graph) -> str:
    """Return the state of each cell by seed, and the remaining time."""
    states = {key: run_state(run) for key, run in graph.runs.items()}
    lines = []
    for cell in graph.study.cells.values():
        by_seed = []
        for seed in cell.seeds:
            by_seed.append(f"{seed} {_cell_state(graph.cells[cell.name, seed], states)}")
        lines.append(f"  {cell.name:<28}{', '.join(by_seed)}")
    left = [run for run in graph.runs.values() if states[run.key] != "done"]
    finished = [run for run in graph.runs.values() if states[run.key] == "done"]
    seconds = remaining_seconds(left, finished)
    duration = format_duration(seconds) if finished or not left else "unknown"
    lines.append(f"  {len(left)} of {len(graph.runs)} runs left; one worker needs {duration}")
    return "\n".join(lines)


def _cell_state(chain: list[Run], states: Mapping[str, str]) -> str:
    """Return "done", or the state of the first run that is not done, as "running 2/3"."""
    for number, run in enumerate(chain, 1):
        if states[run.key] != "done":
            return f"{states[run.key]} {number}/{len(chain)}"
    return "done"


def remaining_seconds(left: list[Run], finished: list[Run]) -> float:
    """Estimate the seconds that runs take, by the mean per step of finished runs; 0 without any.

    Finished runs of the same stage count; if there are none, all do.
    """
    rates: dict[str, list[float]] = {}
    for run in finished:
        result = run.result()
        seconds = result["seconds"] + result["evaluation_seconds"]
        for name in (run.config.stage, ""):
            rates.setdefault(name, []).append(seconds / run.config.steps)
    total = 0.0
    for run in left:
        known = rates.get(run.config.stage) or rates.get("") or [0.0]
        total += run.config.steps * mean(known)
    return total


def costs_table(costs: Mapping[str, TrainingCosts]) -> str:
    """Return the costs of each cell."""
    lines = [f"  {'cell':<28}{'TFLOP':>12}{'action rows':>14}{'ETC segments':>14}"]
    for cell, cost in costs.items():
        lines.append(
            f"  {cell:<28}{cost.flops / 1e12:>12,.1f}{cost.action_rows:>14,}"
            f"{cost.etc_segments:>14,}"
        )
    return "\n".join(lines)
