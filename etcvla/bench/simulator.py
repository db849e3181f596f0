"""CPU time of a simulator: resets, control steps, rendered frames and facts about a frame."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import numpy as np

from etcvla import sims
from etcvla.sims import suites

LABELS = {
    "reset": "reset",
    "step": "control step",
    "expert": "expert's action",
    "frame": "rendered frame of all cameras",
    "facts": "facts for ETC",
}


def measure(suite: str, rounds: int, calls: int) -> dict[str, float]:
    """Return the milliseconds of CPU time of each call in the first task of a suite.

    Each is the minimum over `rounds` means of `calls` calls, because other processes on the machine
    slow calls down. Raises UserError for an unknown suite, and if its simulator is not installed.
    """
    described = suites.describe(suite)
    env = sims.make(described.simulator, described.tasks[0], described.scene, described.image_size)
    seeds = itertools.count()
    actions = {
        "reset": lambda: env.reset(next(seeds)),
        "expert": env.expert_action,
        "frame": env.observe,
        "facts": env.facts,
        "step": lambda: env.step(np.zeros(described.action_dim)),
    }
    milliseconds = {}
    for name, call in actions.items():
        milliseconds[name] = min(_mean_time(call, calls) for _ in range(rounds))
    env.close()
    return milliseconds


def table(milliseconds: dict[str, float]) -> str:
    """Return the measured times as a table in Markdown."""
    lines = ["| | CPU time |", "|---|---|"]
    for name, label in LABELS.items():
        lines.append(f"| {label} | {milliseconds[name]:.2f} ms |")
    return "\n".join(lines)


def _mean_time(call: Callable[[], object], calls: int) -> float:
    call()  # the first call may allocate
    start = time.process_time()
    for _ in range(calls):
        call()
    return 1000 * (time.process_time() - start) / calls
