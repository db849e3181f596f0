"""Benchmarks by name, as the installed simulator defines them.

Each simulator lists its suites in `Simulator.suites`. `python -m etcvla.sims NAME` prints one as
JSON, because the simulator may be installed in another Python than the policy.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from etcvla.errors import UserError
from etcvla.names import lookup
from etcvla.sims import registry


@dataclasses.dataclass(frozen=True)
class Suite:
    """A benchmark of an installed simulator."""

    name: str
    simulator: str  # a registered simulator
    tasks: tuple[str, ...]
    scene: str  # a scene variant of the simulator
    max_steps: int  # control steps before an episode counts as failed
    image_size: int  # pixels
    instructions: tuple[str, ...]  # of the tasks, see `Simulator.instruction`
    initial_states: int | None  # fixed ones per task; None: the trial's seed draws the layout
    state_dim: int
    action_dim: int
    cameras: tuple[str, ...] = ("front", "wrist")
    scenes: tuple[str, ...] = ()  # other scenes in which the suite can be run
    environments: int = 1  # that one process should have; more if they are cheap
    versions: dict[str, str] = dataclasses.field(default_factory=dict)  # of its packages

    def select_tasks(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the tasks with these names or numbers; all tasks if `names` is empty.

        A name may omit everything up to its last "/". Raises UserError with the nearest name, or
        the range of numbers.
        """
        by_name = {}
        for number, task in enumerate(self.tasks):
            short_name = task.rpartition("/")[2]
            by_name |= {short_name: task, str(number): task, task: task}
        selected = []
        for name in names:
            if name.lstrip("-").isdecimal() and name not in by_name:
                last = len(self.tasks) - 1
                raise UserError(f"unknown task {name}: {self.name} has 0 to {last}")
            selected.append(lookup(by_name, name, f"task of {self.name}"))
        return tuple(dict.fromkeys(selected)) or self.tasks


def names() -> list[str]:
    """Return the names of the listed suites of all registered simulators."""
    suites = []
    for simulator in registry.simulators().values():
        suites += simulator.suites
    return suites


def _simulator_of(suite: str) -> registry.Simulator:
    """Return the simulator of a suite. Raises UserError with the nearest name if it is unknown."""
    for simulator in registry.simulators().values():
        is_other = simulator.other_suites and suite.startswith(simulator.other_suites)
        if suite in simulator.suites or is_other:
            return simulator
    return lookup(dict.fromkeys(names()), suite, "suite")


def describe(name: str) -> Suite:
    """Return a suite of a simulator that is installed in this Python.

    Raises UserError with the nearest name for an unknown suite, with the install command if the
    simulator is not installed, and if the simulator lacks files of the suite.
    """
    simulator = _simulator_of(name)
    simulator.requirement.check()
    return dataclasses.replace(simulator.describe_suite(name), versions=simulator.versions())


def find(name: str, python: str = sys.executable) -> Suite:
    """Return `describe(name)` as computed by the Python that has the simulator.

    Also renders a frame there. Raises UserError if the suite is unknown, and if `python` or the
    simulator cannot run.
    """
    _simulator_of(name)  # fails before a process is started
    command = [python, "-m", "etcvla.sims", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment_variables())
    except OSError as error:
        raise UserError(f"--simulator_python {python}: cannot run it ({error})") from error
    if done.returncode:
        raise UserError(f"suite {name}: {_error_message(done.stderr, python)}")
    last_line = done.stdout.splitlines()[-1]
    fields = json.loads(last_line)
    for key, value in fields.items():
        if isinstance(value, list):
            fields[key] = tuple(value)
    return Suite(**fields)


def _error_message(stderr: str, python: str) -> str:
    """Return the user error that the simulator's Python printed, or its last line."""
    user_error = re.search(r"^error: (.*)", stderr, re.MULTILINE | re.DOTALL)
    if user_error:
        return user_error[1].strip()
    lines = stderr.strip().splitlines() or ["no message"]
    return (
        f"{python} cannot run a simulator ({lines[-1]}); "
        "--simulator_python names the Python that has it"
    )


def environment_variables() -> dict[str, str]:
    """Return a simulator process's environment variables: this etcvla, one thread each."""
    root = str(Path(__file__).resolve().parents[2])
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([root, inherited]) if inherited else root
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "1"}
