"""Run a checkpoint on a benchmark, and compute scores of episodes."""

from __future__ import annotations

import dataclasses
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from etcvla import sims
from etcvla.errors import UserError
from etcvla.eval.language import write_language
from etcvla.eval.results_log import ResultsLog
from etcvla.eval.rollouts import WorkerPool, run_trials
from etcvla.eval.trials import EvalProtocol, TrialGrid, TrialResult
from etcvla.files import write_json
from etcvla.names import lookup
from etcvla.policy import Policy
from etcvla.provenance import python_version, run_versions
from etcvla.results_schema import GROUP_FIELDS, setting_of
from etcvla.sims.perturbations import Perturbation
from etcvla.sims.seeds import eval_seed
from etcvla.sims.suites import Suite
from etcvla.stats import wilson
from etcvla.train.checkpoint import open_checkpoint


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Every trial of tasks of a suite, for each scene, intervention, condition and perturbation.

    Raises UserError for an unknown scene, for a wrong number of trials, and as `TrialGrid`.
    """

    suite: Suite
    tasks: tuple[str, ...]  # of the suite
    trials: int  # of each combination of the others
    protocol: EvalProtocol
    interventions: tuple[str, ...] = ("right",)
    conditions: tuple[str, ...] = ("",)
    perturbations: tuple[str, ...] = ("",)
    scenes: tuple[str, ...] = ()  # () for the suite's
    videos: int = 0  # trials with a video of each combination of the others

    def __post_init__(self):
        limit = self.suite.initial_states
        if self.trials < 1 or (limit is not None and self.trials > limit):
            raise UserError(
                f"{self.trials} trials: {self.suite.name} has {limit or 'any number of'} initial "
                "states per task, and each is used once"
            )
        known = dict.fromkeys([self.suite.scene, *self.suite.scenes])
        for scene in self.scenes:
            lookup(known, scene, f"scene of {self.suite.name}")
        _ = self.grid  # checks its arguments

    @property
    def grid(self) -> TrialGrid:
        """The episodes."""
        return TrialGrid(
            self.suite.simulator,
            scenes=self.scenes or (self.suite.scene,),
            tasks=self.tasks,
            counts=dict.fromkeys(self.interventions, self.trials),
            conditions=self.conditions,
            perturbations=self.perturbations,
            videos=self.videos,
            instruction_tasks=self.suite.tasks,
        )

    def instructions(self) -> list[str]:
        """Return the instructions that the policy gets, sorted.

        Those of a simulator whose layouts determine them are represented by the longest one.
        """
        by_task = dict(zip(self.suite.tasks, self.suite.instructions, strict=True))
        instructions = set()
        for trial in self.grid.trials():
            instruction = by_task[trial.instruction_of or trial.task]
            perturbation = Perturbation.parse(trial.perturbation)
            seed = eval_seed(trial.trial)
            instructions.add(perturbation.rewrite_instruction(instruction, seed))
        return sorted(instructions)


def run_benchmark(
    checkpoint: str,
    benchmark: Benchmark,
    out: epath.PathLike,
    *,
    head: str | None = None,
    python: str = sys.executable,
) -> dict[str, Any]:
    """Run the episodes that are not finished yet, and return the content of scores.json.

    Writes into `out`:
      protocol.json: suite, simulator, tasks, interventions, conditions, perturbations, and the keys
        of `describe_protocol`.
      episodes.csv: see `TrialResult.to_row`.
      scores.json: "suite", and "groups" of `score_groups`.
      language.json: see `language.write_language`.
      videos: see `results_schema.video_stem`.

    Args:
      checkpoint: a workdir, or the folder of one of its checkpoints.
      head: see `PolicyOptions`; None: the head that was trained.
      python: the interpreter that has the simulator.

    Raises UserError for a checkpoint that cannot act in the suite, and as `ResultsLog`.
    """
    policy = Policy.load(checkpoint, head=head)
    protocol = benchmark.protocol
    suite = benchmark.suite
    check_fit(policy, suite)
    description = {
        "suite": suite.name,
        "simulator": suite.simulator,
        "tasks": benchmark.tasks,
        "interventions": benchmark.interventions,
        "conditions": benchmark.conditions,
        "perturbations": benchmark.perturbations,
        **describe_protocol(checkpoint, policy, protocol, benchmark.grid, suite.versions),
    }
    results_log = ResultsLog(out, description)
    policy.warm_up(protocol.rows, benchmark.instructions())
    with WorkerPool(protocol.workers, python) as pool:
        results = run_trials(
            policy,
            benchmark.grid.trials(),
            protocol,
            label=f"{checkpoint}: {suite.name}",
            results_log=results_log,
            pool=pool,
        )
    scores = {"suite": suite.name, "groups": score_groups(results)}
    write_json(epath.Path(out) / "scores.json", scores)
    write_language(out, results)
    return scores


def describe_protocol(
    checkpoint_path: str,
    policy: Policy,
    protocol: EvalProtocol,
    grid: TrialGrid,
    simulator_versions: Mapping[str, str],
) -> dict[str, Any]:
    """Return the part of protocol.json on which results depend, in addition to the episodes.

    Keys:
      trials: trials per task.
      initial_states: {"kind": "initial_state" or "layout_seed", "values": one a trial}.
      max_steps: control steps before an episode counts as failed.
      execution: how chunks are executed, "open loop", "receding horizon" or "temporal ensembling".
      replan_steps: control steps between two queries of the policy.
      action_horizon: P, actions of a chunk.
      seed: of the policy's noise.
      policy_batch_size: rows of the policy's batch.
      cameras: {"names": .., "image_size": pixels, "scenes": ..}.
      policy: {"head": .., "euler_steps": .., "subtask_question": ..}.
      checkpoint: {"step": .., "sha256": of the files that a policy reads}.
      versions: of packages, of Python, and of the simulator's packages.
    """
    execution = "receding horizon" if protocol.replan_steps else "open loop"
    if protocol.ensemble is not None:
        execution = f"temporal ensembling, m = {protocol.ensemble:g}"
    trials = max(grid.counts.values(), default=0)
    initial_states = {"kind": "layout_seed", "values": [eval_seed(i) for i in range(trials)]}
    if sims.get(grid.simulator).fixed_initial_states:
        initial_states = {"kind": "initial_state", "values": list(range(trials))}
    checkpoint = open_checkpoint(checkpoint_path)
    return {
        "trials": trials,
        "initial_states": initial_states,
        "max_steps": protocol.max_steps,
        "execution": execution,
        "replan_steps": protocol.replan_steps or policy.config.horizon,
        "action_horizon": policy.config.horizon,
        "seed": protocol.seed,
        "policy_batch_size": protocol.rows,
        "cameras": {
            "names": policy.cameras,
            "image_size": protocol.image_size,
            "scenes": grid.scenes,
        },
        "policy": {
            "head": policy.head,
            "euler_steps": policy.options.num_steps,
            "subtask_question": policy.options.subtask_question,
        },
        "checkpoint": {"step": checkpoint.step, "sha256": checkpoint.content_hash()},
        "versions": {
            **run_versions(),
            "python": python_version(),
            "simulator": simulator_versions,
        },
    }


def check_fit(policy: Policy, suite: Suite) -> None:
    """Raise UserError if the policy cannot act with the suite's robot and cameras."""
    policy.check_can_act()
    missing = sorted(set(policy.cameras) - set(suite.cameras))
    if missing:
        raise UserError(
            f"the checkpoint needs the cameras {', '.join(policy.cameras)}; {suite.name} has no "
            f"{', '.join(missing)}, only {', '.join(suite.cameras)}"
        )
    spec = policy.assets.action_spec
    for name in ("state_dim", "action_dim"):
        width = getattr(suite, name)
        if spec[name] != width:
            raise UserError(
                f"the checkpoint's {name} is {spec[name]}, but that of {suite.name} is {width}: "
                "it was trained for another robot"
            )


def score_groups(results: Sequence[TrialResult]) -> list[dict[str, Any]]:
    """Return the scores of each combination of `GROUP_FIELDS`.

    Keys of each group: those fields, and "overall" and "tasks" (task -> scores) with the scores of
    `score_episodes`.
    """
    by_group = defaultdict(list)
    for result in results:
        by_group[tuple(getattr(result.trial, field) for field in GROUP_FIELDS)].append(result)
    groups = []
    for values, episodes in by_group.items():
        by_task = defaultdict(list)
        for result in episodes:
            by_task[result.trial.task].append(result)
        groups.append(
            {
                **dict(zip(GROUP_FIELDS, values, strict=True)),
                "overall": score_episodes(episodes),
                "tasks": {task: score_episodes(group) for task, group in by_task.items()},
            }
        )
    return groups


def score_episodes(results: Sequence[TrialResult]) -> dict[str, Any]:
    """Return the scores of some episodes.

    Keys: "trials"; "success" and "intention", each {"count", "rate", "low", "high"} with the 95 %
    interval of the rate; and "progress", the mean.
    """
    trials = len(results)
    scores: dict[str, Any] = {"trials": trials}
    for name in ("success", "intention"):
        count = sum(getattr(result, name) for result in results)
        low, high = wilson(count, trials)
        scores[name] = {"count": count, "rate": count / trials, "low": low, "high": high}
    scores["progress"] = float(np.mean([result.progress for result in results]))
    return scores


def success_table(groups: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict]]:
    """Return intervention -> scene -> task -> [successes, trials].

    Only groups without a condition and a perturbation count.
    """
    table = defaultdict(dict)
    for group in groups:
        if not setting_of(group):
            table[group["intervention"]][group["scene"]] = {
                task: [scores["success"]["count"], scores["trials"]]
                for task, scores in group["tasks"].items()
            }
    return table


def format_scores(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of a text table of `score_groups`."""
    lines = [f"{'':<44}{'success':>9}  {'95 %':<12}{'progress':>9}{'intention':>10}"]
    for group in groups:
        names = (group["scene"], group["intervention"], *setting_of(group))
        lines.append(_format_line(" ".join(names), group["overall"]))
        for task, scores in group["tasks"].items():
            lines.append(_format_line(f"  {task.rpartition('/')[2]}", scores))
    return lines


def _format_line(name: str, scores: Mapping) -> str:
    success = scores["success"]
    interval = f"{success['low']:.0%}-{success['high']:.0%}"
    return (
        f"{name[:43]:<44}{success['count']:>4}/{scores['trials']:<4}  {interval:<12}"
        f"{scores['progress']:>9.2f}{scores['intention']['rate']:>10.0%}"
    )
