"""A side in a process of its own."""

import os
import sys

import pytest

from etcvla.bench.worker import Worker

SIDE = f"{__name__}:Side"


class Side:
    """Adds, prints where it should not, and dies on request."""

    def __init__(self, start):
        self.total = start

    def add(self, number):
        print("a library's chatter")
        self.total += number
        return self.total

    def work(self):
        return sum(range(3_000_000))

    def die(self):
        sys.exit("no more")

    def pid(self):
        return os.getpid()


def test_jobs_keep_their_state_and_are_timed():
    with Worker(SIDE, start=1) as worker:
        assert worker("add", number=2).result == 3
        assert worker("add", number=4).result == 7
        run = worker("work")
        assert run.wall > 0 and run.cpu > 0 and run.peak_gib > 0
        pid = worker("pid").result
    assert pid != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_side_that_dies_is_named():
    with (
        Worker(SIDE, start=1) as worker,
        pytest.raises(RuntimeError, match=r"test_worker:Side ended with code 1"),
    ):
        worker("die")
