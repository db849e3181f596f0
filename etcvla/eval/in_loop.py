"""What the trainer asks at a stage's points: held-out questions, and where the config's `eval` names a suite, acting.

Acting is a short protocol in simulator processes, while the loader goes on filling its queue.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from etcvla.eval import rollouts
from etcvla.eval.benchmark import Benchmark, check_fit, score_groups
from etcvla.eval.held_out import HeldOut
from etcvla.eval.trials import EvalProtocol
from etcvla.policy import Policy, PolicyOptions, trained_head
from etcvla.sims import suites
from etcvla.train.stage import Stage

Evaluation = Callable[[Any], Mapping[str, float]]


class Acting:
    """A stage's evaluation of parameters on a benchmark, the same episodes with the same noise at every knot.

    Its simulators start at the first knot, wait between points, and end with this process.

    Args:
      mesh: where the parameters lie. python: the interpreter that has the simulator.

    Raises ValueError for a stage that does not learn to act, or for another robot, and with several hosts.
    """

    def __init__(
        self, stage: Stage, mesh: Mesh, *, benchmark: Benchmark, python: str = sys.executable
    ):
        if jax.process_count() > 1:
            raise ValueError(
                f"acting at points is for one host, and this run has {jax.process_count()}; evaluate its "
                "checkpoints by launch/evaluate.py instead"
            )
        self._benchmark = benchmark
        self._workers = rollouts.Workers(benchmark.protocol.workers, python)
        self._policy = Policy(
            stage.model.config,
            None,
            stage.assets,
            stage.config.data.num_cameras,
            PolicyOptions(
                head=trained_head(stage.config.loss),
                max_fast_tokens=stage.config.data.max_targets,
            ),
            mesh,
        )
        check_fit(self._policy, benchmark.suite)

    def __call__(self, params: Any) -> dict[str, float]:
        """`act/<suite>/success`, `.../progress` and `.../intention`, and `act/<suite>/<task>/success`.

        Under another intervention than "right", and with a perturbation, these names stand behind the suite's.
        """
        self._policy.params, name = params, self._benchmark.suite.name
        self._policy.warm_up(self._benchmark.protocol.workers, self._benchmark.words())
        found = rollouts.evaluate(
            self._policy,
            self._benchmark.episodes(),
            self._benchmark.protocol,
            what=f"acting in {name}",
            workers=self._workers,
        )
        self._policy.params = None  # the trainer's next step takes their memory back
        out = {}
        for cell in score_groups(found):
            marks = [cell["intervention"]] * (cell["intervention"] != "right") + [
                cell["perturbation"]
            ]
            key = "/".join(filter(None, ("act", name, *marks)))
            overall = cell["overall"]
            out |= {
                f"{key}/success": overall["success"]["rate"],
                f"{key}/progress": overall["progress"],
                f"{key}/intention": overall["intention"]["rate"],
            }
            out |= {
                f"{key}/{task}/success": score["success"]["rate"]
                for task, score in cell["tasks"].items()
            }
        return out


def make_evaluation(stage: Stage, mesh: Mesh) -> Evaluation:
    """All that a stage's `eval` asks for. Raises ValueError as `HeldOut`, `Acting` and `suites.find`."""
    asked, parts = stage.config.eval, [HeldOut(stage, mesh)]
    if asked.suite:
        python = asked.simulator_python or sys.executable
        suite = suites.find(asked.suite, python)
        protocol = EvalProtocol(
            suite.max_steps, min(5, stage.model.config.horizon), suite.image_size, asked.workers
        )
        parts.append(
            Acting(
                stage,
                mesh,
                python=python,
                benchmark=Benchmark(suite, suite.select_tasks(asked.tasks), asked.trials, protocol),
            )
        )
    return lambda params: {name: value for part in parts for name, value in part(params).items()}
