"""One side of a comparison as a process that waits: it computes when it is asked, and else leaves the cores alone.

A side is a class; a job is one of its methods. Requests and answers are lines of JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any, NamedTuple


class Run(NamedTuple):
    """One job, timed."""

    result: Any
    wall: float  # seconds
    cpu: float  # seconds over all threads
    peak_gib: float  # the most memory that the process has held so far


class Worker:
    """The parent's end.

    Args:
      side: "module:class".
      arguments: of the class, as JSON can hold them.
    """

    def __init__(self, side: str, **arguments: Any):
        self.side = side
        self.process = subprocess.Popen(
            [sys.executable, "-m", "etcvla.bench.worker", side, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()  # it stands ready

    def __call__(self, job: str, **arguments: Any) -> Run:
        """Does one job and waits for it."""
        print(json.dumps([job, arguments]), file=self.process.stdin, flush=True)
        return Run(**self._answer())

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"the benchmark's process of {self.side} stopped with code {self.process.wait()}; why "
                "stands above"
            )
        return json.loads(line)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_) -> None:
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()


def main(side: str, arguments: str) -> None:
    """The child's end: answers until its input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print must not mix with the answers
    module, name = side.split(":")
    worker = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        job, options = json.loads(line)
        wall, cpu = time.perf_counter(), time.process_time()
        result = getattr(worker, job)(**options)
        run = Run(
            result,
            time.perf_counter() - wall,
            time.process_time() - cpu,
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        )
        print(json.dumps(run._asdict()), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
