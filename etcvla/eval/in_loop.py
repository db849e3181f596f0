"""Evaluation during training: held-out data, and acting if the config's `eval` names a suite.

Acting uses a short protocol in simulator processes. Meanwhile the data loader fills its queue.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

import jax
from jax.sharding import Mesh

from etcvla.errors import UserError
from etcvla.eval.benchmark import Benchmark, check_fit, score_groups
from etcvla.eval.held_out import HeldOutEvaluation
from etcvla.eval.rollouts import WorkerPool, run_trials
from etcvla.eval.trials import EvalProtocol
from etcvla.models.vla import Params
from etcvla.policy import Policy, PolicyOptions, trained_head
from etcvla.results_schema import setting_of
from etcvla.sims import suites
from etcvla.train.stage import Stage

Evaluation = Callable[[Params], Mapping[str, float]]
REPLAN_STEPS = 5  # of the protocol, or the length of a chunk if that is shorter


class ActingEvaluation:
    """Evaluates parameters on a benchmark, with the same episodes and noise every time.

    The simulators start at the first evaluation and keep running until this process ends.

    Args:
      mesh: devices of the parameters.
      python: the interpreter that has the simulator.

    Raises UserError for a stage that trains no actions, for the suite of another robot, and on
    several hosts.
    """

    def __init__(
        self, stage: Stage, mesh: Mesh, *, benchmark: Benchmark, python: str = sys.executable
    ):
        if jax.process_count() > 1:
            raise UserError(
                f"eval.suite needs a single host, and this run has {jax.process_count()}; evaluate "
                "its checkpoints with launch/evaluate.py instead"
            )
        config = stage.config
        self._benchmark = benchmark
        self._pool = WorkerPool(benchmark.protocol.workers, python)
        options = PolicyOptions(
            head=trained_head(config.loss), max_fast_tokens=config.data.max_targets
        )
        self._policy = Policy(
            stage.model.config, None, stage.assets, config.data.num_cameras, options, mesh
        )
        check_fit(self._policy, benchmark.suite)

    def __call__(self, params: Params) -> dict[str, float]:
        """Evaluate parameters.

        Returns:
          `<prefix>/success`, `<prefix>/progress`, `<prefix>/intention` and
          `<prefix>/<task>/success`. The prefix is `act/<suite>`, followed by the intervention if
          it is not "right", and by the condition and the perturbation if there are any.
        """
        benchmark = self._benchmark
        self._policy.params = params
        self._policy.warm_up(benchmark.protocol.rows, benchmark.instructions())
        results = run_trials(
            self._policy,
            benchmark.grid.trials(),
            benchmark.protocol,
            label=f"acting in {benchmark.suite.name}",
            pool=self._pool,
        )
        self._policy.params = None  # the next training step needs their memory
        metrics = {}
        for group in score_groups(results):
            metrics |= _group_metrics(benchmark.suite.name, group)
        return metrics


def _group_metrics(suite_name: str, group: Mapping) -> dict:
    names = ["act", suite_name]
    if group["intervention"] != "right":
        names.append(group["intervention"])
    prefix = "/".join([*names, *setting_of(group)])
    overall = group["overall"]
    metrics = {
        f"{prefix}/success": overall["success"]["rate"],
        f"{prefix}/progress": overall["progress"],
        f"{prefix}/intention": overall["intention"]["rate"],
    }
    for task, scores in group["tasks"].items():
        metrics[f"{prefix}/{task}/success"] = scores["success"]["rate"]
    return metrics


def make_evaluation(stage: Stage, mesh: Mesh) -> Evaluation:
    """Return the evaluation that a stage's `eval` describes.

    Raises UserError as `HeldOutEvaluation`, `ActingEvaluation` and `suites.find`.
    """
    config = stage.config.eval
    evaluations: list[Evaluation] = [HeldOutEvaluation(stage, mesh)]
    if config.suite:
        python = config.simulator_python or sys.executable
        suite = suites.find(config.suite, python)
        protocol = EvalProtocol(
            max_steps=suite.max_steps,
            replan_steps=min(REPLAN_STEPS, stage.model.config.horizon),
            image_size=suite.image_size,
            workers=config.workers,
            environments=suite.environments,
        )
        benchmark = Benchmark(suite, suite.select_tasks(config.tasks), config.trials, protocol)
        evaluations.append(ActingEvaluation(stage, mesh, benchmark=benchmark, python=python))

    def _evaluate(params: Params) -> dict:
        metrics = {}
        for evaluation in evaluations:
            metrics |= evaluation(params)
        return metrics

    return _evaluate
