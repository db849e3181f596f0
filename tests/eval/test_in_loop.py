"""Acting during training, with a scripted policy in place of the stage's."""

import types

import numpy as np
import pytest

from etcvla.eval import in_loop
from etcvla.eval.benchmark import Benchmark
from etcvla.eval.trials import EvalProtocol
from etcvla.sims.suites import Suite

pytest.importorskip("metaworld")
SUITE = Suite(
    "made",
    simulator="metaworld",
    tasks=("drawer-close",),
    scene="source",
    max_steps=500,
    image_size=32,
    instructions=("Close the drawer.",),
    initial_states=None,
    state_dim=4,
    action_dim=4,
)
PROTOCOL = EvalProtocol(max_steps=10, replan_steps=5, image_size=32, workers=1)


class ParamsPolicy:
    """A policy whose parameters are its action."""

    config = types.SimpleNamespace(horizon=5)

    def __init__(self, config, params, assets, num_cameras, options, mesh):
        self.params = params

    def warm_up(self, batch_size, instructions):
        assert batch_size == 1
        assert instructions == ["Close the drawer."]

    def act(self, observations, seeds):
        return np.tile(np.array(self.params, np.float32), (len(observations), 5, 1))


def test_acting_evaluation_reuses_its_simulators(monkeypatch):
    monkeypatch.setattr(in_loop, "Policy", ParamsPolicy)
    monkeypatch.setattr(in_loop, "check_fit", lambda policy, suite: None)
    monkeypatch.setattr(in_loop, "trained_head", lambda loss: "flow")
    data = types.SimpleNamespace(num_cameras=2, max_targets=8)
    stage = types.SimpleNamespace(
        model=types.SimpleNamespace(config=None),
        assets=None,
        config=types.SimpleNamespace(loss={}, data=data),
    )
    benchmark = Benchmark(SUITE, SUITE.tasks, 2, PROTOCOL, perturbations=("", "noise:1"))
    evaluation = in_loop.ActingEvaluation(stage, None, benchmark=benchmark)
    metrics = evaluation([0, 0, 1, 0])
    process = evaluation._pool.workers[0]._process.pid
    names = set()
    for prefix in ("act/made", "act/made/noise:1"):
        for score in ("success", "progress", "intention", "drawer-close/success"):
            names.add(f"{prefix}/{score}")
    assert set(metrics) == names
    assert metrics["act/made/success"] == 0
    assert evaluation([0, 0, 1, 0]) == metrics
    assert evaluation._pool.workers[0]._process.pid == process
    with evaluation._pool:
        pass


@pytest.mark.parametrize("suite", ["", "made"])
def test_config_selects_the_evaluations(monkeypatch, suite):
    config = types.SimpleNamespace(
        suite=suite, tasks=("0",), trials=3, workers=2, simulator_python=""
    )
    stage = types.SimpleNamespace(
        config=types.SimpleNamespace(eval=config),
        model=types.SimpleNamespace(config=types.SimpleNamespace(horizon=4)),
    )
    benchmarks = []

    def make_acting(stage, mesh, *, benchmark, python):
        benchmarks.append(benchmark)
        return lambda params: {"act": params + 1}

    monkeypatch.setattr(
        in_loop, "HeldOutEvaluation", lambda stage, mesh: lambda params: {"loss": params}
    )
    monkeypatch.setattr(in_loop.suites, "find", lambda name, python: SUITE)
    monkeypatch.setattr(in_loop, "ActingEvaluation", make_acting)
    metrics = in_loop.make_evaluation(stage, None)(1)
    if not suite:
        assert metrics == {"loss": 1}
        return
    assert metrics == {"loss": 1, "act": 2}
    (benchmark,) = benchmarks
    assert benchmark.tasks == SUITE.tasks
    assert benchmark.trials == 3
    assert benchmark.protocol.replan_steps == 4
    assert benchmark.protocol.workers == 2
