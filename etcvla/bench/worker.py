"""Run one side of a comparison in a process of its own, which uses no CPU between jobs.

A side is a class, and a job is one of its methods. Requests and replies are lines of JSON.
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


class JobResult(NamedTuple):
    """Result and cost of one job."""

    result: Any
    wall: float  # seconds
    cpu: float  # seconds over all threads
    peak_gib: float  # peak memory of the process so far


class Worker:
    """Parent's handle of a side's process.

    Args:
      side: "module:class".
      arguments: arguments of the class, as JSON values.
    """

    def __init__(self, side: str, **arguments: Any):
        self.side = side
        self.process = subprocess.Popen(
            [sys.executable, "-m", "etcvla.bench.worker", side, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._read_reply()  # the side is constructed

    def __call__(self, job: str, **arguments: Any) -> JobResult:
        """Run a job and wait for it. Raises RuntimeError if the process ended."""
        print(json.dumps([job, arguments]), file=self.process.stdin, flush=True)
        return JobResult(**self._read_reply())

    def _read_reply(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise RuntimeError(
                f"the benchmark process of {self.side} ended with code {code}; its error is above"
            )
        return json.loads(line)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()


def main(side: str, arguments: str) -> None:
    """Run jobs from standard input until it ends (the child process)."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to standard error, not between the replies
    module, name = side.split(":")
    worker = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    print("{}", file=replies, flush=True)
    for line in sys.stdin:
        job, options = json.loads(line)
        wall = time.perf_counter()
        cpu = time.process_time()
        result = getattr(worker, job)(**options)
        run = JobResult(
            result=result,
            wall=time.perf_counter() - wall,
            cpu=time.process_time() - cpu,
            peak_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        )
        print(json.dumps(run._asdict()), file=replies, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
