"""Episodes of an evaluation: what they are, how they are run, and how they ended.

Simulator workers import this module, so it must not import JAX.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from etcvla import sims
from etcvla.errors import UserError
from etcvla.names import lookup
from etcvla.results_schema import EPISODE_COLUMNS, INTERVENTIONS, TRIAL_COLUMNS
from etcvla.sims.perturbations import Perturbation
from etcvla.sims.seeds import eval_seed


@dataclasses.dataclass(frozen=True)
class Trial:
    """One episode to run."""

    simulator: str  # a registered simulator, such as "metaworld"
    scene: str
    task: str  # of the simulator
    trial: int  # determines the noise and the layout, or the initial state if those are fixed
    intervention: str = "right"  # what the policy gets, one of `INTERVENTIONS`
    instruction_of: str = ""  # the task whose instruction the policy gets; "" for its own
    condition: str = ""  # a key of `etcvla.sims.conditions.CONDITIONS`; "" for none
    perturbation: str = ""  # "axis:strength" of `etcvla.sims.perturbations`; "" for none
    video: bool = False  # keep the frames that the policy sees

    @property
    def key(self) -> tuple[str, ...]:
        """The values of TRIAL_COLUMNS, which identify the trial within an evaluation."""
        return tuple(str(getattr(self, column)) for column in TRIAL_COLUMNS)


@dataclasses.dataclass(frozen=True)
class TrialGrid:
    """Every combination of condition, perturbation, intervention, scene, task and trial number.

    Raises UserError for an unknown intervention or perturbation, for a condition in which a task
    cannot be run, and for a number of trials that leaves a layout incomplete.
    """

    simulator: str
    scenes: tuple[str, ...]
    tasks: tuple[str, ...]
    counts: Mapping[str, int]  # intervention -> trials of each other combination
    conditions: tuple[str, ...] = ("",)
    perturbations: tuple[str, ...] = ("",)
    videos: int = 0  # trials with a video of each other combination
    instruction_tasks: tuple[str, ...] = ()  # tasks that wrong instructions are of; () for `tasks`

    def __post_init__(self):
        for intervention in self.counts:
            lookup(INTERVENTIONS, intervention, "intervention")
        for perturbation in self.perturbations:
            Perturbation.parse(perturbation)
        for task in self.tasks if any(self.conditions) else ():
            known = dict.fromkeys(["", *sims.get(self.simulator).conditions(task)])
            for condition in self.conditions:
                lookup(known, condition, f"condition of {task} in {self.simulator}")
        self._check_counts()

    def _check_counts(self) -> None:
        trials_per_layout = sims.get(self.simulator).trials_per_layout
        for intervention, count in self.counts.items():
            if count % trials_per_layout:
                raise UserError(
                    f"{count} trials with {intervention}: a layout of {self.simulator} has "
                    f"{trials_per_layout} trials, which name its objects in turn; choose a "
                    "multiple"
                )

    def trials(self) -> list[Trial]:
        """Return all trials."""
        trials = []
        for condition, perturbation, intervention, scene, task in itertools.product(
            self.conditions, self.perturbations, self.counts, self.scenes, self.tasks
        ):
            instruction_of = self._instruction_of(intervention, task)
            for number in range(self.counts[intervention]):
                trial = Trial(
                    self.simulator,
                    scene,
                    task,
                    number,
                    intervention=intervention,
                    instruction_of=instruction_of,
                    condition=condition,
                    perturbation=perturbation,
                    video=number < self.videos,
                )
                trials.append(trial)
        return trials

    def _instruction_of(self, intervention: str, task: str) -> str:
        """Return `Trial.instruction_of`; a worker finds it if trials share a layout."""
        if intervention != "wrong_instruction":
            return ""
        if sims.get(self.simulator).trials_per_layout > 1:
            return ""
        return wrong_instruction(self.simulator, task, self.instruction_tasks or self.tasks)


def wrong_instruction(simulator: str, task: str, tasks: Sequence[str]) -> str:
    """Return the task whose instruction replaces that of `task`.

    This is the opposite task (which shares the scene) if `tasks` has it, else the next of `tasks`.

    Raises UserError if there is no other task.
    """
    opposite = sims.get(simulator).opposite_task(task)
    if opposite in tasks:
        return opposite
    if len(tasks) < 2:
        raise UserError(f"there is no wrong instruction for {task}: it is the only task")
    return tasks[(tasks.index(task) + 1) % len(tasks)]


@dataclasses.dataclass(frozen=True)
class EvalProtocol:
    """How episodes are run. The results include it."""

    max_steps: int = 250  # control steps before an episode counts as failed
    replan_steps: int = 5  # control steps between two queries; 0 executes every chunk to its end
    image_size: int = 96  # pixels
    workers: int = 4  # simulator processes
    environments: int = 1  # of each process
    ensemble: float | None = None  # temporal ensembling, see `etcvla.chunks.ActionChunks`
    seed: int = 0  # of the policy's noise

    def __post_init__(self):
        positive = (self.max_steps, self.workers, self.environments, self.image_size)
        if min(positive) < 1 or self.replan_steps < 0 or (self.ensemble or 0) < 0:
            raise UserError(
                "protocol: max_steps, image_size, workers and environments must be positive, "
                f"replan_steps and ensemble must not be negative; got {self}"
            )

    @property
    def rows(self) -> int:
        """Rows of the policy's batch: one for each environment."""
        return self.workers * self.environments


@dataclasses.dataclass(frozen=True)
class TrialResult:
    """How one trial ended."""

    trial: Trial
    success: bool
    steps: int
    progress: float  # [0, 1], the reached share of the subtasks
    intention: bool  # whether the gripper first touched an object that the task is about
    instruction: str  # the policy's
    seconds: float  # wall time, including the time in which the policy computes
    instruction_of: str = ""  # the task or object that `instruction` is about; "" without one
    named: str = ""  # the object that the task's own instruction is about
    novelty: str = ""  # of its name, see `PairedEnvironment`
    touched: str = ""  # the object that was touched first; "" for none
    frames: np.ndarray | None = None  # uint8[n, H, W, 3] of the video, if one is kept

    def to_row(self) -> dict[str, str]:
        """Return the line of episodes.csv, by column.

        Columns:
          simulator, scene, task, trial, intervention, condition, perturbation: see `Trial`.
          instruction_of: the task whose instruction the policy got or, if trials share a layout,
            the object that it names; "" if the policy got none.
          seed: of the episode; "" if initial states are fixed.
          initial_state: number of the initial state; "" if the seed determines the layout.
          layout: number of the layout, which consecutive trials may share.
          named, novelty, touched: see `TrialResult`.
          instruction: the policy's.
          success, intention: 1 or 0.
          steps: control steps.
          progress: reached share of the subtasks.
          seconds: wall time.
        """
        trial = self.trial
        simulator = sims.get(trial.simulator)
        fixed = simulator.fixed_initial_states
        values = {
            **dict(zip(TRIAL_COLUMNS, trial.key, strict=True)),
            "instruction_of": self.instruction_of,
            "seed": "" if fixed else str(eval_seed(trial.trial)),
            "initial_state": str(trial.trial) if fixed else "",
            "layout": str(trial.trial // simulator.trials_per_layout),
            "named": self.named,
            "novelty": self.novelty,
            "instruction": self.instruction,
            "success": str(int(self.success)),
            "steps": str(self.steps),
            "progress": f"{self.progress:.4f}",
            "intention": str(int(self.intention)),
            "touched": self.touched,
            "seconds": f"{self.seconds:.2f}",
        }
        return {column: values[column] for column in EPISODE_COLUMNS}

    @classmethod
    def from_row(cls, trial: Trial, row: Mapping[str, str]) -> TrialResult:
        """Return the result of a trial from its line of episodes.csv, without frames."""
        return cls(
            trial,
            success=row["success"] == "1",
            steps=int(row["steps"]),
            progress=float(row["progress"]),
            intention=row["intention"] == "1",
            instruction=row["instruction"],
            instruction_of=row["instruction_of"],
            seconds=float(row["seconds"]),
            named=row["named"],
            novelty=row["novelty"],
            touched=row["touched"],
        )
