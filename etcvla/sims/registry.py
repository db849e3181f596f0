"""The registry of simulators. Each is one `Simulator` object.

This module imports no simulator. `make` imports the one that it needs.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from etcvla.errors import UserError
from etcvla.names import lookup
from etcvla.provenance import package_versions, python_version

if TYPE_CHECKING:
    from etcvla.sims.environment import Environment
    from etcvla.sims.suites import Suite


@dataclasses.dataclass(frozen=True)
class Requirement:
    """Python modules that a simulator needs, and the command that installs them."""

    title: str  # of the simulator, such as "Meta-World"
    modules: tuple[str, ...]
    install: str

    def check(self) -> None:
        """Raise UserError with the install command if a module is missing."""
        for module in self.modules:
            if importlib.util.find_spec(module) is None:
                raise UserError(
                    f"{self.title} is not installed in {sys.executable}: {self.install}"
                )


def _no_opposite(task: str) -> str:
    return ""


def _no_conditions(task: str) -> tuple[str, ...]:
    return ()


@dataclasses.dataclass(frozen=True)
class Simulator:
    """A simulator's name, factory, tasks and suites.

    The callables import the simulator's packages when they are called, not before.
    """

    name: str
    # Arguments: task, scene, image_size, condition.
    make_environment: Callable[[str, str, int, str], Environment]
    # Task -> its canonical instruction; the longest one if the layout determines it.
    instruction: Callable[[str], str]
    suites: tuple[str, ...]  # names of its benchmarks
    describe_suite: Callable[[str], Suite]
    requirement: Requirement
    other_suites: str = ""  # prefix of installed suites that `suites` does not list; "" for none
    uses_mujoco: bool = True  # check that MuJoCo can render before an evaluation starts
    packages: tuple[str, ...] = ()  # distributions whose versions are written beside scores
    opposite_task: Callable[[str], str] = _no_opposite  # the task that undoes a task; "" for none
    fixed_initial_states: bool = False  # trial i starts in initial state i, not in a random layout
    # Task -> keys of `conditions.CONDITIONS` in which an environment can be made.
    conditions: Callable[[str], tuple[str, ...]] = _no_conditions
    # Consecutive trials that share a layout and name each of its objects once. If there are
    # several, environments are `PairedEnvironment`.
    trials_per_layout: int = 1

    def versions(self) -> dict[str, str]:
        """Return the versions of this Python and of `packages`."""
        return {"python": python_version(), **package_versions(self.packages)}


_SIMULATORS: dict[str, Simulator] = {}


def register(simulator: Simulator) -> None:
    """Add a simulator. Raises ValueError if its name is taken."""
    if simulator.name in _SIMULATORS:
        raise ValueError(f"simulator {simulator.name!r} is already registered")
    _SIMULATORS[simulator.name] = simulator


def simulators() -> dict[str, Simulator]:
    """Return all registered simulators by name."""
    return dict(_SIMULATORS)


def get(name: str) -> Simulator:
    """Return the simulator of this name.

    Raises UserError with the nearest name if there is none.
    """
    return lookup(_SIMULATORS, name, "simulator")


def make(
    simulator: str, task: str, scene: str, image_size: int, condition: str = ""
) -> Environment:
    """Create an environment.

    Args:
      simulator: a registered name, such as "metaworld".
      task: a task of the simulator.
      scene: a scene variant of the simulator.
      image_size: height and width of every camera, pixels.
      condition: a key of `etcvla.sims.conditions.CONDITIONS`; "" for none.

    Raises UserError if the simulator is not installed (with the install command), if it cannot
    render, and for unknown names.
    """
    registered = get(simulator)
    registered.requirement.check()
    return registered.make_environment(task, scene, image_size, condition)
