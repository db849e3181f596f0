"""Our client, the real-time controller, and the benchmark of delays."""

import threading
import time

import numpy as np
import pytest

from etcvla.errors import UserError
from etcvla.serve import delay_benchmark
from etcvla.serve.client import Client, RealTimeController
from tests.serve.running_server import running_server
from tests.test_chunks import HORIZON, plan


def test_controller_acts_while_a_chunk_is_computed():
    release = threading.Event()
    queried_again = threading.Event()
    observations = []

    def infer(observation):
        observations.append(observation)
        if len(observations) == 2:
            queried_again.set()
        assert len(observations) == 1 or release.wait(60)
        return {"actions": plan(observation["step"])}

    controller = RealTimeController(infer, execute=4)
    for step in range(8):
        assert controller.act({"step": step}) == step
    assert queried_again.wait(60)
    assert observations[1]["step"] == 4
    assert observations[1]["rtc"]["prefix"].shape == (6, 1)
    release.set()
    while not controller._pending.done():
        time.sleep(0.01)
    assert controller.act({"step": 8}) == 8
    assert len(controller._chunks.remaining) == HORIZON - 5  # of the chunk queried at step 4
    controller.close()


def test_controller_raises_the_exception_of_infer():
    answers = iter([ZeroDivisionError(), {"actions": plan(0)}])

    def infer(observation):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    controller = RealTimeController(infer, execute=1)
    with pytest.raises(ZeroDivisionError):
        controller.act({})
    assert controller.act({}) == 0
    controller.close()


def test_server_of_another_protocol_is_refused():
    with running_server(lambda message: {}) as (port, server):
        server._metadata_message = b"\x81\xa8protocol\x02"
        with pytest.raises(UserError, match="protocol version 2, expected 1"):
            Client(f"ws://127.0.0.1:{port}")


class CountingEnvironment:
    """An environment in which step n needs the action n; it notes the observed steps."""

    def reset(self, seed):
        self.step_number = 0
        self.success = False
        self.observed_steps = []

    def observe(self):
        self.observed_steps.append(self.step_number)
        return {"images": {}, "state": np.array([self.step_number])}

    def step(self, action):
        assert action == self.step_number
        self.step_number += 1
        self.success = self.step_number == 23

    def close(self):
        pass


class CountingPolicy:
    """A policy for `CountingEnvironment`; it notes (delay, prefix length) of observations."""

    class config:
        horizon = HORIZON

    def __init__(self):
        self.prefixes = []

    def act(self, observations, seeds):
        for observation in observations:
            if "prefix" in observation:
                self.prefixes.append((observation["delay"], len(observation["prefix"])))
        return np.stack([plan(observation["state"][0]) for observation in observations])


def test_delay_benchmark_counts_successes_by_delay(monkeypatch):
    envs = [CountingEnvironment(), CountingEnvironment()]
    policy = CountingPolicy()
    unused = iter(envs)
    monkeypatch.setattr(delay_benchmark.sims, "make", lambda *args: next(unused))
    spec = delay_benchmark.DelaySpec(("reach",), trials=2, delays=(0, 3))
    rows = delay_benchmark.evaluate(policy, spec)
    assert [(row["delay"], row["guided"], row["successes"]) for row in rows] == [
        (0, False, 2),
        (0, True, 2),
        (3, False, 2),
        (3, True, 2),
    ]
    assert envs[0].observed_steps == [0, 5, 10, 15, 20]
    assert set(policy.prefixes) == {(0, 5), (3, 5)}
    assert rows[0]["rate"] == 1
    assert rows[0]["low"] < 0.5


def test_delay_benchmark_refuses_delays_longer_than_a_chunk():
    spec = delay_benchmark.DelaySpec(("reach",), trials=1, delays=(6,))
    with pytest.raises(UserError, match="need chunks of 11 steps, but the policy's chunks have 10"):
        delay_benchmark.evaluate(CountingPolicy(), spec)


def test_delay_benchmark_refuses_negative_delays():
    with pytest.raises(UserError, match="delays must be 0 or more"):
        delay_benchmark.DelaySpec(("reach",), trials=1, delays=(-1,))
