"""Acting at points, with a policy made of rules in the place of the stage's."""

import types

import numpy as np
import pytest

from etcvla.eval import in_loop
from etcvla.eval.benchmark import Benchmark
from etcvla.eval.trials import EvalProtocol
from etcvla.sims.suites import Suite

pytest.importorskip("metaworld")
SUITE = Suite(
    "made", "metaworld", ("drawer-close",), "source", 500, 32, ("Close the drawer.",), None, 4, 4
)
PROTOCOL = EvalProtocol(max_steps=10, replan_steps=5, image_size=32, workers=1)


class Rules:
    """Goes where the parameters say."""

    config = types.SimpleNamespace(horizon=5)

    def __init__(self, config, params, assets, num_cameras, options, mesh):
        self.params = params

    def warm_up(self, batch_size, instructions):
        assert (batch_size, instructions) == (1, ["Close the drawer."])

    def act(self, observations, seeds):
        return np.tile(np.array(self.params, np.float32), (len(observations), 5, 1))


def test_parameters_are_judged_by_what_they_do_in_the_same_processes(monkeypatch):
    monkeypatch.setattr(in_loop, "Policy", Rules)
    monkeypatch.setattr(in_loop, "check_fit", lambda policy, suite: None)
    monkeypatch.setattr(in_loop, "trained_head", lambda loss: "flow")
    stage = types.SimpleNamespace(
        model=types.SimpleNamespace(config=None),
        assets=None,
        config=types.SimpleNamespace(
            loss={}, data=types.SimpleNamespace(num_cameras=2, max_targets=8)
        ),
    )
    acting = in_loop.Acting(
        stage,
        None,
        benchmark=Benchmark(SUITE, SUITE.tasks, 2, PROTOCOL, perturbations=("", "noise:1")),
    )
    found = acting([0, 0, 1, 0])
    process = acting._workers._workers[0]._process.pid
    assert set(found) == {
        f"act/made{p}/{m}"
        for p in ("", "/noise:1")
        for m in ("success", "progress", "intention", "drawer-close/success")
    }
    assert found["act/made/success"] == 0 and acting([0, 0, 1, 0]) == found
    assert acting._workers._workers[0]._process.pid == process
    with acting._workers:
        pass


@pytest.mark.parametrize("suite", ["", "made"])
def test_a_config_says_what_is_asked(monkeypatch, suite):
    asked = types.SimpleNamespace(
        suite=suite, tasks=("0",), trials=3, workers=2, simulator_python=""
    )
    stage = types.SimpleNamespace(
        config=types.SimpleNamespace(eval=asked),
        model=types.SimpleNamespace(config=types.SimpleNamespace(horizon=4)),
    )
    monkeypatch.setattr(in_loop, "HeldOut", lambda stage, mesh: lambda params: {"loss": params})
    monkeypatch.setattr(in_loop.suites, "find", lambda name, python: SUITE)

    def acting(stage, mesh, *, benchmark, python):
        protocol = benchmark.protocol
        assert (benchmark.tasks, benchmark.trials, protocol.replan_steps, protocol.workers) == (
            SUITE.tasks,
            3,
            4,
            2,
        )
        return lambda params: {"act": params + 1}

    monkeypatch.setattr(in_loop, "Acting", acting)
    assert in_loop.make_evaluation(stage, None)(1) == (
        {"loss": 1, "act": 2} if suite else {"loss": 1}
    )
