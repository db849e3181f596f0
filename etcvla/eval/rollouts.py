"""Closed-loop evaluation: worker processes run the simulators, this process runs the policy.

A worker renders images only when it queries the policy, and all waiting workers share one batch.
Layout and action noise of an episode depend on its own seed only, so the number of workers changes
only the last bits of a matrix product. The assignment of trials to workers, and thereby to rows of
the batch, is fixed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from etcvla.errors import UserError
from etcvla.eval.results_log import ResultsLog
from etcvla.eval.trials import EvalProtocol, Trial, TrialResult
from etcvla.pages.videos import VideoRecorder
from etcvla.policy import Policy
from etcvla.sims import suites
from etcvla.train.log import format_duration

_PROGRESS_SECONDS = 5  # between two progress lines


class WorkerPool:
    """Simulator processes, which keep their last environment from one evaluation to the next.

    Args:
      count: number of processes. They start when they are first needed.
      python: the interpreter that has the simulator.
    """

    def __init__(self, count: int, python: str = sys.executable):
        self.workers = [WorkerProcess(python) for _ in range(count)]

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.stop()


class WorkerProcess:
    """A simulator process (`etcvla.eval.worker`) and our end of its pipe."""

    def __init__(self, python: str):
        self.trials_left = 0
        self.connection: Connection | None = None
        self._python = python
        self._process: subprocess.Popen | None = None

    def start_trials(self, protocol: EvalProtocol, trials: list[Trial]) -> None:
        """Send trials to the process, which starts if necessary."""
        self.trials_left = len(trials)
        if not trials:
            return
        if self._process is None:
            self._start()
        self.send((protocol, trials))

    def _start(self) -> None:
        self.connection, worker_end = Pipe()
        with worker_end:
            self._process = subprocess.Popen(
                [self._python, "-m", "etcvla.eval.worker", str(worker_end.fileno())],
                pass_fds=[worker_end.fileno()],
                env=suites.environment_variables(),
            )

    def send(self, message: Any) -> None:
        """Send a message. If the process has died, `receive` raises the error."""
        with contextlib.suppress(ConnectionError):
            self.connection.send(message)

    def receive(self) -> dict[str, Any] | TrialResult:
        """Return an observation or a result.

        Raises the worker's exception, or RuntimeError if the process died.
        """
        try:
            message = self.connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise RuntimeError("a simulator worker died; see its message above") from error
        if isinstance(message, Exception):
            raise message
        if isinstance(message, TrialResult):
            self.trials_left -= 1
        return message

    def stop(self) -> None:
        """Stop the process, if it runs."""
        if self._process:
            self._process.terminate()
            self._process.wait()
            self.connection.close()
            self._process = None


def run_trials(
    policy: Policy,
    trials: Sequence[Trial],
    protocol: EvalProtocol,
    *,
    label: str,
    results_log: ResultsLog | None = None,
    pool: WorkerPool | None = None,
) -> list[TrialResult]:
    """Run all trials and return their results in the order of `trials`.

    Args:
      label: name of the run on progress lines.
      results_log: stores the results; its finished trials are not run again. Without one, all
        trials are run and keep their frames.
      pool: `protocol.workers` processes; without one, processes are started and stopped again.

    Raises UserError if the policy's chunks are shorter than replan_steps, RuntimeError if a worker
    dies, and the exceptions of workers.
    """
    if protocol.replan_steps > policy.config.horizon:
        raise UserError(
            f"protocol.replan_steps {protocol.replan_steps} exceeds the policy's chunk of "
            f"{policy.config.horizon} steps"
        )
    if pool is None:
        with WorkerPool(protocol.workers) as pool:
            return run_trials(
                policy, trials, protocol, label=label, results_log=results_log, pool=pool
            )
    results = results_log.results(trials) if results_log else {}
    progress = _Progress(label, len(trials), len(results))
    for worker, share in zip(pool.workers, _split(trials, protocol.workers), strict=True):
        worker.start_trials(protocol, [trial for trial in share if trial not in results])
    videos = VideoRecorder(policy, protocol.workers)
    while len(results) < len(trials):
        observations = {}
        for worker in _wait(pool.workers):
            message = worker.receive()
            if isinstance(message, TrialResult):
                result = videos.finish(worker, message)
                results[result.trial] = result
                if results_log:
                    results_log.add(result)
            else:
                observations[worker] = message
        videos.predict_paths(observations)
        if observations:
            _send_chunks(policy, pool.workers, observations)
        progress.show(list(results.values()))
    ordered = [results[trial] for trial in trials]
    if results_log:
        results_log.finish(ordered)
    return ordered


def _split(trials: Sequence[Trial], count: int) -> list[list[Trial]]:
    """Return `count` shares of similar size; equal environments are in few shares."""
    ordered = sorted(trials, key=lambda trial: (trial.scene, trial.task))
    limits = np.linspace(0, len(ordered), count + 1).astype(int)
    return [ordered[start:stop] for start, stop in itertools.pairwise(limits)]


def _wait(workers: list[WorkerProcess]) -> list[WorkerProcess]:
    """Wait until workers have sent messages, and return these workers."""
    ready = wait([worker.connection for worker in workers if worker.trials_left])
    return [worker for worker in workers if worker.connection in ready]


def _send_chunks(
    policy: Policy, workers: list[WorkerProcess], observations: dict[WorkerProcess, dict]
) -> None:
    """Send chunks to the workers that sent observations.

    The batch has a row for each worker, so that one shape is compiled. Rows of workers without an
    observation are copies of another row.
    """
    filler = next(iter(observations.values()))
    rows = [observations.get(worker, filler) for worker in workers]
    chunks = policy.act(rows, [row["seed"] for row in rows])
    for worker, chunk in zip(workers, chunks, strict=True):
        if worker in observations:
            worker.send(chunk)


@dataclasses.dataclass
class _Progress:
    """Prints how many episodes are finished, and the expected remaining time."""

    label: str
    total: int
    finished_before: int
    start: float = dataclasses.field(default_factory=time.time)
    last_shown: float = 0.0

    def show(self, results: list[TrialResult]) -> None:
        """Print a line if the last one is old, or if everything is finished."""
        now = time.time()
        if now - self.last_shown <= _PROGRESS_SECONDS and len(results) < self.total:
            return
        self.last_shown = now
        remaining = "?"
        finished = len(results) - self.finished_before
        if finished:
            seconds = (now - self.start) / finished * (self.total - len(results))
            remaining = format_duration(seconds)
        successes = sum(result.success for result in results)
        print(
            f"{self.label} {len(results)}/{self.total} episodes | {successes} succeeded | "
            f"{remaining} left",
            flush=True,
        )
