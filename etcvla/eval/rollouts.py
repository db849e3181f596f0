"""Closed-loop evaluation: worker processes run the simulators, this process runs the policy.

Each worker process has one or several environments, each environment is a row of the policy's
batch, and a batch waits for all of them. An environment starts its next trial as soon as one has
ended, so short episodes leave no row empty. Layout and action noise of an episode depend on its own
seed only, so the number of rows changes only the last bits of a matrix product. The assignment of
trials to rows is fixed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from etcvla.errors import UserError
from etcvla.eval.episodes import Update
from etcvla.eval.results_log import ResultsLog
from etcvla.eval.trials import EvalProtocol, Trial, TrialResult
from etcvla.pages.videos import VideoRecorder
from etcvla.policy import Policy
from etcvla.sims import suites
from etcvla.train.log import format_duration

_PROGRESS_SECONDS = 5  # between two progress lines


class WorkerPool:
    """Simulator processes, which keep their last environments from one evaluation to the next.

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
    """A simulator process (`etcvla.eval.worker`) and our end of its pipe.

    Attributes:
      is_running: whether it has trials that have not ended.
    """

    def __init__(self, python: str):
        self.is_running = False
        self.connection: Connection | None = None
        self._python = python
        self._process: subprocess.Popen | None = None

    def start_trials(self, protocol: EvalProtocol, shares: list[list[Trial]]) -> None:
        """Send the trials of each environment to the process, which starts if necessary."""
        self.is_running = any(shares)
        if not self.is_running:
            return
        if self._process is None:
            self._start()
        self.send((protocol, shares))

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

    def receive(self) -> Update:
        """Return the results and observations since the last chunks.

        Raises the worker's exception, or RuntimeError if the process died.
        """
        try:
            message = self.connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise RuntimeError("a simulator worker died; see its message above") from error
        if isinstance(message, Exception):
            raise message
        self.is_running = bool(message.observations)
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
    _start_trials(pool, trials, protocol, finished=results)
    videos = VideoRecorder(policy, protocol.rows)
    while any(worker.is_running for worker in pool.workers):
        ended, observations = _receive(pool, protocol)
        for row, result in ended:
            result = videos.finish(row, result)
            results[result.trial] = result
            if results_log:
                results_log.add(result)
        videos.predict_paths(observations)
        _send_chunks(policy, pool, protocol, observations)
        progress.show(list(results.values()))
    ordered = [results[trial] for trial in trials]
    if results_log:
        results_log.finish(ordered)
    return ordered


def _start_trials(
    pool: WorkerPool,
    trials: Sequence[Trial],
    protocol: EvalProtocol,
    finished: Collection[Trial],
) -> None:
    """Send each process the trials of its rows that are not finished."""
    shares = []
    for share in _split(trials, protocol.rows):
        shares.append([trial for trial in share if trial not in finished])
    for worker, rows in zip(pool.workers, _rows_of_workers(protocol), strict=True):
        worker.start_trials(protocol, [shares[row] for row in rows])


def _split(trials: Sequence[Trial], count: int) -> list[list[Trial]]:
    """Return `count` shares of similar size; equal environments are in few shares."""
    ordered = sorted(trials, key=lambda trial: (trial.scene, trial.task, trial.condition))
    limits = np.linspace(0, len(ordered), count + 1).astype(int)
    return [ordered[start:stop] for start, stop in itertools.pairwise(limits)]


def _rows_of_workers(protocol: EvalProtocol) -> list[range]:
    """Return the rows of the policy's batch that belong to each process."""
    count = protocol.environments
    return [range(count * number, count * (number + 1)) for number in range(protocol.workers)]


def _receive(
    pool: WorkerPool, protocol: EvalProtocol
) -> tuple[list[tuple[int, TrialResult]], dict[int, dict[str, Any]]]:
    """Wait for all processes that run trials.

    Returns (row, result) of the trials that ended, and row -> observation.
    """
    ended = []
    observations = {}
    for worker, rows in zip(pool.workers, _rows_of_workers(protocol), strict=True):
        if not worker.is_running:
            continue
        update = worker.receive()
        ended += [(rows[slot], result) for slot, result in update.results]
        observations |= {rows[slot]: row for slot, row in update.observations.items()}
    return ended, observations


def _send_chunks(
    policy: Policy,
    pool: WorkerPool,
    protocol: EvalProtocol,
    observations: Mapping[int, dict[str, Any]],
) -> None:
    """Send chunks to the processes whose environments sent observations.

    The batch has a row for each environment, so that one shape is compiled. Rows without an
    observation are copies of another row.
    """
    if not observations:
        return
    filler = next(iter(observations.values()))
    batch = [observations.get(row, filler) for row in range(protocol.rows)]
    chunks = policy.act(batch, [observation["seed"] for observation in batch])
    for worker, rows in zip(pool.workers, _rows_of_workers(protocol), strict=True):
        if worker.is_running:
            slots = {slot: row for slot, row in enumerate(rows) if row in observations}
            worker.send({slot: chunks[row] for slot, row in slots.items()})


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
