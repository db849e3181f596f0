"""A checkpoint on a benchmark: which episodes, under which protocol, and the table of scores that comes of them."""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from etcvla import sims
from etcvla.errors import UserError
from etcvla.eval import rollouts
from etcvla.eval.results_log import ResultsLog, write
from etcvla.eval.trials import EvalProtocol, Trial, TrialResult
from etcvla.names import lookup
from etcvla.policy import Policy
from etcvla.provenance import run_versions
from etcvla.results_schema import INTERVENTIONS
from etcvla.sims.perturbations import Perturbation
from etcvla.sims.seeds import EVAL_SEED_BASE, eval_seed
from etcvla.sims.suites import Suite
from etcvla.stats import wilson
from etcvla.train.checkpoint import open_checkpoint


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Episodes of a suite: every trial of every task, under each intervention, with each perturbation."""

    suite: Suite
    tasks: tuple[str, ...]  # of the suite
    trials: int  # a task, intervention and perturbation
    protocol: EvalProtocol
    interventions: tuple[str, ...] = ("right",)
    perturbations: tuple[str, ...] = ("",)
    videos: int = 0  # trials a task, intervention and perturbation to video

    def __post_init__(self):
        for intervention in self.interventions:
            lookup(INTERVENTIONS, intervention, "intervention")
        for perturbation in self.perturbations:
            Perturbation.parse(perturbation)
        most = self.suite.initial_states
        if self.trials < 1 or (most is not None and self.trials > most):
            raise ValueError(
                f"{self.trials} trials: {self.suite.name} has {most or 'any number of'} initial states a "
                "task, each played once"
            )

    def episodes(self) -> list[Trial]:
        """All of them."""
        return [
            Trial(
                self.suite.simulator,
                self.suite.scene,
                task,
                i,
                intervention,
                wrong_instruction(self.suite.simulator, task, self.suite.tasks)
                if intervention == "wrong_instruction"
                else "",
                perturbation,
                video=i < self.videos,
            )
            for perturbation in self.perturbations
            for intervention in self.interventions
            for task in self.tasks
            for i in range(self.trials)
        ]

    def words(self) -> list[str]:
        """What the policy will be told."""
        told = dict(zip(self.suite.tasks, self.suite.instructions, strict=True))
        return sorted(
            {
                Perturbation.parse(trial.perturbation).rewrite_instruction(
                    told[trial.instruction_of or trial.task], eval_seed(trial.trial)
                )
                for trial in self.episodes()
            }
        )


def run_benchmark(
    workdir: str,
    benchmark: Benchmark,
    out: epath.PathLike,
    *,
    head: str | None = None,
    python: str = sys.executable,
) -> dict:
    """Plays what is not played yet with the newest checkpoint of `workdir`, and returns what scores.json holds.

    Writes protocol.json, episodes.csv, scores.json and videos into `out`.

    Args:
      head: as of `Policy.load`. python: the interpreter that has the simulator.

    Raises ValueError for a checkpoint that cannot act there, and as `ResultsLog` and `rollouts.evaluate`.
    """
    policy = Policy.load(workdir, head=head)
    check_fit(policy, benchmark.suite)
    protocol, suite = benchmark.protocol, benchmark.suite
    results_log = ResultsLog(
        out,
        {
            "suite": suite.name,
            "simulator": suite.simulator,
            "tasks": benchmark.tasks,
            "interventions": benchmark.interventions,
            "perturbations": benchmark.perturbations,
            **describe_protocol(
                workdir,
                policy,
                protocol,
                trials=benchmark.trials,
                scenes=(suite.scene,),
                fixed=suite.initial_states is not None,
                simulator=suite.versions,
            ),
        },
    )
    policy.warm_up(protocol.workers, benchmark.words())
    with rollouts.Workers(protocol.workers, python) as workers:
        results = rollouts.evaluate(
            policy,
            benchmark.episodes(),
            protocol,
            what=f"{workdir}: {suite.name}",
            results_log=results_log,
            workers=workers,
        )
    scores = {"suite": suite.name, "groups": score_groups(results)}
    write(epath.Path(out) / "scores.json", json.dumps(scores, indent=2) + "\n")
    return scores


def describe_protocol(
    workdir: str,
    policy: Policy,
    protocol: EvalProtocol,
    *,
    trials: int,
    scenes: Sequence[str],
    fixed: bool,
    simulator: Mapping[str, str],
) -> dict:
    """What protocol.json says beside the names of what is played; docs/evaluation.md explains it."""
    checkpoint = open_checkpoint(workdir)
    how = "open loop" if not protocol.replan_steps else "receding horizon"
    if protocol.ensemble is not None:
        how = f"temporal ensembling, m = {protocol.ensemble:g}"
    return {
        "trials": trials,
        "initial_states": {
            "kind": "initial_state" if fixed else "layout_seed",
            "values": [i if fixed else EVAL_SEED_BASE + i for i in range(trials)],
        },
        "max_steps": protocol.max_steps,
        "execution": how,
        "replan_steps": protocol.replan_steps or policy.config.horizon,
        "action_horizon": policy.config.horizon,
        "seed": protocol.seed,
        "policy_batch_size": protocol.workers,
        "cameras": {"names": policy.cameras, "image_size": protocol.image_size, "scenes": scenes},
        "policy": {
            "head": policy.head,
            "euler_steps": policy.options.num_steps,
            "subtask_question": policy.options.subtask_question,
        },
        "checkpoint": {"step": checkpoint.step, "sha256": checkpoint.content_hash()},
        "versions": {
            **run_versions(),
            "python": platform.python_version(),
            "simulator": dict(simulator),
        },
    }


def check_fit(policy: Policy, suite: Suite) -> None:
    """Raises ValueError for a policy that cannot act, or not with the suite's robot and cameras."""
    policy.check_can_act()
    lacking = sorted(set(policy.cameras) - set(suite.cameras))
    if lacking:
        raise ValueError(
            f"the checkpoint looks through the cameras {', '.join(policy.cameras)}; {suite.name} has no "
            f"{', '.join(lacking)}, only {', '.join(suite.cameras)}"
        )
    spec = policy.assets.action_spec
    for name in ("state_dim", "action_dim"):
        if spec[name] != getattr(suite, name):
            raise ValueError(
                f"the checkpoint's {name} is {spec[name]}, but {suite.name}'s is {getattr(suite, name)}: "
                "it was trained for another robot"
            )


def wrong_instruction(simulator: str, task: str, tasks: Sequence[str]) -> str:
    """Return the task whose instruction is given instead of that of `task`.

    This is the opposite task (which shares the scene) if `tasks` has it, else the next one in `tasks`.

    Raises UserError if there is no other task.
    """
    opposite = sims.get(simulator).opposite_task(task)
    if opposite in tasks:
        return opposite
    if len(tasks) < 2:
        raise UserError(f"there is no wrong instruction for {task}: it is the only task")
    return tasks[(tasks.index(task) + 1) % len(tasks)]


def score_groups(results: Sequence[TrialResult]) -> list[dict]:
    """For each scene, intervention and perturbation: `score_episodes` by task, and over all its episodes."""
    by_cell: dict = {}
    for result in results:
        t = result.trial
        by_cell.setdefault((t.scene, t.intervention, t.perturbation), {}).setdefault(
            t.task, []
        ).append(result)
    return [
        {
            "scene": scene,
            "intervention": intervention,
            "perturbation": perturbation,
            "overall": score_episodes([result for part in tasks.values() for result in part]),
            "tasks": {task: score_episodes(part) for task, part in tasks.items()},
        }
        for (scene, intervention, perturbation), tasks in by_cell.items()
    ]


def score_episodes(results: Sequence[TrialResult]) -> dict:
    """Shares of episodes with Wilson's 95 % intervals, and the mean progress."""
    out: dict = {"trials": len(results)}
    for name, count in {
        "success": sum(r.success for r in results),
        "intention": sum(r.intention for r in results),
    }.items():
        low, high = wilson(count, len(results))
        out[name] = {"count": count, "rate": count / len(results), "low": low, "high": high}
    return out | {"progress": float(np.mean([r.progress for r in results]))}


def format_scores(found: Sequence[dict]) -> list[str]:
    """The cells as a table for people."""
    out = [f"{'':<44}{'success':>9}  {'95 %':<12}{'progress':>9}{'intention':>10}"]
    for cell in found:
        name = " ".join(filter(None, (cell["scene"], cell["intervention"], cell["perturbation"])))
        by_task = {f"  {task.rpartition('/')[2]}": s for task, s in cell["tasks"].items()}
        for task, s in {name: cell["overall"], **by_task}.items():
            won = s["success"]
            interval = f"{won['low']:.0%}-{won['high']:.0%}"
            out.append(
                f"{task[:43]:<44}{won['count']:>4}/{s['trials']:<4}  {interval:<12}{s['progress']:>9.2f}"
                f"{s['intention']['rate']:>10.0%}"
            )
    return out
