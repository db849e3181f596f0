"""Acting at a stage's knots: a short protocol in simulator processes, while the loader goes on filling its queue.

    evaluation = functools.partial(Acting, benchmark=Benchmark(suite, suite.tasks, trials=2, protocol=Protocol()))

is what the trainer calls with (stage, mesh); `together(HeldOut, evaluation)` asks questions as well.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from etcvla.eval import rollouts
from etcvla.eval.benchmark import Benchmark, cells, check_fit
from etcvla.policy import Policy, trained_head
from etcvla.train.stage import Stage

Evaluation = Callable[[Any], Mapping[str, float]]


class Acting:
    """A stage's evaluation of parameters on a benchmark, the same episodes with the same noise at every knot.

    Its simulators start at the first knot, wait between knots, and end with this process.

    Args:
      mesh: where the parameters lie. python: the interpreter that has the simulator.

    Raises ValueError for a stage that does not learn to act, or for another robot, and with several hosts.
    """

    def __init__(self, stage: Stage, mesh: Mesh, *, benchmark: Benchmark, python: str = sys.executable):
        if jax.process_count() > 1:
            raise ValueError(f"acting at knots is for one host, and this run has {jax.process_count()}; evaluate its "
                             "checkpoints by launch/evaluate.py instead")
        self._benchmark = benchmark
        self._workers = rollouts.Workers(benchmark.protocol.workers, python)
        self._policy = Policy(stage.model.config, None, stage.assets, stage.config.data.num_cameras,
                              head=trained_head(stage.config.loss), max_fast=stage.config.data.max_targets)
        check_fit(self._policy, benchmark.suite)

    def __call__(self, params: Any) -> dict[str, float]:
        """`act/<suite>/success`, `.../progress` and `.../intention`, and `act/<suite>/<task>/success`.

        Under another condition than "right", and with a perturbation, these names stand behind the suite's.
        """
        self._policy.params, name = params, self._benchmark.suite.name
        self._policy.warm_up(self._benchmark.protocol.workers, self._benchmark.words())
        found = rollouts.evaluate(self._policy, self._benchmark.episodes(), self._benchmark.protocol,
                                  what=f"acting in {name}", workers=self._workers)
        self._policy.params = None  # the trainer's next step takes their memory back
        out = {}
        for cell in cells(found):
            marks = [cell["condition"]] * (cell["condition"] != "right") + [cell["perturbation"]]
            key = "/".join(filter(None, ("act", name, *marks)))
            overall = cell["overall"]
            out |= {f"{key}/success": overall["success"]["rate"], f"{key}/progress": overall["progress"],
                    f"{key}/intention": overall["intention"]["rate"]}
            out |= {f"{key}/{task}/success": score["success"]["rate"] for task, score in cell["tasks"].items()}
        return out


def together(*makers: Callable[[Stage, Mesh], Evaluation]) -> Callable[[Stage, Mesh], Evaluation]:
    """One evaluation that asks all of these, in order."""
    def make(stage: Stage, mesh: Mesh) -> Evaluation:
        parts = [maker(stage, mesh) for maker in makers]
        return lambda params: {name: value for part in parts for name, value in part(params).items()}

    return make
