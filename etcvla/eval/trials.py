"""What an episode of an evaluation is, how it is run, and how it ended. Imports no JAX, for simulators' workers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from etcvla import sims
from etcvla.results_schema import EPISODE_COLUMNS, TRIAL_COLUMNS
from etcvla.sims.seeds import EVAL_SEED_BASE


@dataclasses.dataclass(frozen=True)
class Trial:
    """One episode to run."""

    simulator: str  # a registered simulator, such as "metaworld"
    scene: str
    task: str  # of the simulator
    trial: int  # fixes the layout, or the initial state where the simulator has fixed ones, and the noise
    intervention: str = "right"  # what the policy is shown: see INTERVENTIONS
    instruction_of: str = ""  # the task whose instruction is given; "" for its own
    perturbation: str = ""  # "axis:strength" of `etcvla.sims.perturbations`; "" none
    video: bool = False  # keep the frames that the policy saw

    @property
    def key(self) -> tuple[str, ...]:
        """What tells it from others of an evaluation."""
        return tuple(str(getattr(self, column)) for column in TRIAL_COLUMNS)


@dataclasses.dataclass(frozen=True)
class EvalProtocol:
    """How episodes are run; it is written beside every score."""

    max_steps: int = 250  # control steps before an episode counts as failed
    replan_steps: int = 5  # control steps between looks; 0 is every chunk to its end (open loop)
    image_size: int = 96  # pixels
    workers: int = 4  # simulators, and the size of the policy's batch
    ensemble: float | None = None  # averages chunks: see `etcvla.chunks.ActionChunks`
    seed: int = 0  # of the policy's noise

    def __post_init__(self):
        if self.replan_steps < 0 or self.max_steps < 1 or self.workers < 1 or self.image_size < 1:
            raise ValueError(
                f"protocol: max_steps, image_size and workers must be positive, replan_steps 0 or more, got "
                f"{self}"
            )


@dataclasses.dataclass(frozen=True)
class TrialResult:
    """How one trial ended."""

    trial: Trial
    success: bool
    steps: int
    progress: float  # [0, 1], the share of the subtasks that were reached
    intention: bool  # the first thing that the gripper touched was the right one
    instruction: str  # as the policy was told
    seconds: float  # that it took, waiting for the policy included
    frames: np.ndarray | None = None  # uint8[n, H, W, 3] only where it was recorded

    def row(self) -> dict[str, str]:
        """Its line of episodes.csv; see docs/evaluation.md."""
        t = self.trial
        fixed = sims.get(t.simulator).fixed_initial_states
        values = (
            t.simulator,
            t.scene,
            t.task,
            t.trial,
            t.intervention,
            t.instruction_of or t.task,
            t.perturbation,
            "" if fixed else EVAL_SEED_BASE + t.trial,
            t.trial if fixed else "",
            self.instruction,
            int(self.success),
            self.steps,
            f"{self.progress:.4f}",
            int(self.intention),
            f"{self.seconds:.2f}",
        )
        return dict(zip(EPISODE_COLUMNS, map(str, values), strict=True))

    @classmethod
    def of_row(cls, trial: Trial, row: Mapping[str, str]) -> TrialResult:
        """What `row` wrote of this trial."""
        return cls(
            trial,
            row["success"] == "1",
            int(row["steps"]),
            float(row["progress"]),
            row["intention"] == "1",
            row["instruction"],
            float(row["seconds"]),
        )
