"""Acting in real time: whatever the delay, the robot does at every step what the newest chunk has for that step."""

import threading
import time

import numpy as np
import pytest

from etcvla.serve import delay_benchmark as delays
from etcvla.serve.client import Client, RealTime, RealTimeChunks
from tests.serve.running import running

HORIZON = 10


def plan(step):
    """A chunk whose actions are the steps that they are for."""
    return np.arange(step, step + HORIZON, dtype=np.float32)[:, None]


@pytest.mark.parametrize("delay", [0, 1, 3, 5])
@pytest.mark.parametrize("guided", [True, False])
def test_every_action_is_the_one_for_its_step(delay, guided):
    chunks, looked, asked = RealTimeChunks(execute=5, guided=guided), None, []

    def take(step):
        nonlocal looked
        if looked is not None and (step == looked + delay or chunks.empty):
            chunks.arrive(plan(looked))
            looked = None

    for step in range(40):
        take(step)
        extra = chunks.look()
        if extra is not None:
            looked = step
            asked.append(step)
            if step and guided:
                np.testing.assert_array_equal(extra["rtc"]["prefix"], plan(step)[: HORIZON - 5])
                assert extra["rtc"]["delay"] == (0 if len(asked) == 2 else delay)
            else:
                assert extra == {}
        take(step)
        assert chunks.next() == step
    assert asked == list(range(0, 40, 5))


def test_the_delay_that_is_told_is_the_longest_of_late():
    chunks = RealTimeChunks(execute=1, memory=2)
    told = []
    for delay in (2, 3, 1, 1, 1):
        told.append(chunks.look().get("rtc", {}).get("delay"))
        if chunks.empty:
            chunks.arrive(plan(0))
            chunks.next()
            chunks.look()
        for _ in range(delay):
            chunks.next()
        chunks.arrive(plan(0))
        chunks.next()
    assert told == [None, 2, 3, 3, 1]


def test_acting_goes_on_while_a_chunk_is_made():
    release, looked, asked = threading.Event(), threading.Event(), []

    def infer(observation):
        asked.append(observation)
        if len(asked) == 2:
            looked.set()
        assert len(asked) == 1 or release.wait(60)
        return {"actions": plan(observation["step"])}

    robot = RealTime(infer, execute=4)
    for step in range(8):
        assert robot.act({"step": step}) == step
    assert looked.wait(60)
    assert asked[1]["step"] == 4 and asked[1]["rtc"]["prefix"].shape == (6, 1)
    release.set()
    while not robot._pending.done():
        time.sleep(0.01)
    assert (
        robot.act({"step": 8}) == 8 and robot.chunks._at == 5
    )  # of the chunk that was looked for at 4
    robot.close()


def test_a_robot_hears_what_went_wrong():
    answers = iter([ZeroDivisionError(), {"actions": plan(0)}])

    def infer(observation):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    robot = RealTime(infer, execute=1)
    with pytest.raises(ZeroDivisionError):
        robot.act({})
    assert robot.act({}) == 0
    robot.close()


@pytest.mark.parametrize(("execute", "delay"), [(0, 0), (1, -1)])
def test_steps_are_counted_from_one(execute, delay):
    with pytest.raises(ValueError, match="must be 1 or more"):
        RealTimeChunks(execute, delay=delay)


def test_a_server_of_another_protocol_is_refused():
    with running(lambda message: {}) as (port, server):
        server._hello = b"\x81\xa8protocol\x02"
        with pytest.raises(ValueError, match="speaks protocol 2, this client 1"):
            Client(f"ws://127.0.0.1:{port}")


class Walk:
    """An environment in which step n wants the action n, and that counts the looks."""

    def __init__(self):
        self.looks = []

    def reset(self, seed):
        self.at, self.success, self.looks = 0, False, []

    def observe(self):
        self.looks.append(self.at)
        return {"images": {}, "state": np.array([self.at])}

    def step(self, action):
        assert action == self.at
        self.at += 1
        self.success = self.at == 23

    def close(self):
        pass


class Planner:
    """A policy that plans for `Walk`, and keeps what it was asked to go on from."""

    class config:
        horizon = HORIZON

    def __init__(self):
        self.prefixes = []

    def act(self, observations, seeds):
        self.prefixes += [(o["delay"], len(o["prefix"])) for o in observations if "prefix" in o]
        return np.stack([plan(o["state"][0]) for o in observations])


def test_success_by_delay(monkeypatch):
    walks, planner = [Walk(), Walk()], Planner()
    monkeypatch.setattr(delays, "_environments", lambda task, spec: walks)
    spec = delays.DelaySpec(("reach",), trials=2, delays=(0, 3))
    rows = delays.evaluate(planner, spec)
    assert [(row["delay"], row["guided"], row["successes"]) for row in rows] == [
        (0, False, 2),
        (0, True, 2),
        (3, False, 2),
        (3, True, 2),
    ]
    assert walks[0].looks == [0, 5, 10, 15, 20] and set(planner.prefixes) == {(0, 5), (3, 5)}
    assert rows[0]["rate"] == 1 and rows[0]["low"] < 0.5
    with pytest.raises(
        ValueError, match="a delay of 6 and 5 steps between looks are 11, more than the 10 steps"
    ):
        delays.evaluate(planner, delays.DelaySpec(("reach",), trials=1, delays=(6,)))
    with pytest.raises(ValueError, match="delays must be 0 or more"):
        delays.DelaySpec(("reach",), trials=1, delays=(-1,))
