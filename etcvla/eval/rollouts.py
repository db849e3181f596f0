"""Closed-loop evaluation: worker processes hold the simulators, this process holds the policy.

A worker noise_samples images only when the policy looks. Looks of all waiting workers are answered in one batch. What an
episode does depends on its own seed alone (layout and action noise), so the number of workers changes nothing but the
last bits of a matrix product: which trial is played by which worker, and with it in which row of the batch, is fixed.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import wait
from typing import Any

import numpy as np

from etcvla.eval.results_log import ResultsLog
from etcvla.eval.trials import EvalProtocol, Trial, TrialResult
from etcvla.pages.videos import VideoRecorder
from etcvla.policy import Policy
from etcvla.sims import suites
from etcvla.stats import wilson
from etcvla.train.log import format_duration


class Workers:
    """Simulator processes, to be kept over several evaluations: each holds on to its last environment.

    Args:
      count: how many; they start when they are first needed.
      python: the interpreter that has the simulator.
    """

    def __init__(self, count: int, python: str = sys.executable):
        self._workers = [_Worker(python) for _ in range(count)]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_) -> None:
        for worker in self._workers:
            worker.stop()

    def begin(self, protocol: EvalProtocol, parts: Sequence[Sequence[Trial]]) -> list[_Worker]:
        """Gives every worker its trials, and returns all."""
        for worker, part in zip(self._workers, parts, strict=True):
            worker.begin(protocol, part)
        return self._workers


def evaluate(
    policy: Policy,
    trials: Sequence[Trial],
    protocol: EvalProtocol,
    *,
    what: str,
    results_log: ResultsLog | None = None,
    workers: Workers | None = None,
) -> list[TrialResult]:
    """Runs all trials and returns their results in the order of `trials`. `what` names the run on the progress line.

    Args:
      results_log: keeps each result, and knows which are done; without one all are played, and keep their frames.
      workers: `protocol.workers` of them; without any some are started, and stopped again.

    Raises ValueError if the protocol replans later than a chunk is long, RuntimeError if a worker dies, and whatever a
    worker raised.
    """
    if protocol.replan_steps > policy.config.horizon:
        raise ValueError(
            f"protocol.replan_steps {protocol.replan_steps} exceeds the policy's chunk of {policy.config.horizon}"
        )
    if workers is None:
        with Workers(protocol.workers) as workers:
            return evaluate(
                policy, trials, protocol, what=what, results_log=results_log, workers=workers
            )
    results = results_log.results(trials) if results_log else {}
    parts = [[t for t in part if t not in results] for part in _split(trials, protocol.workers)]
    busy, began, shown, before = workers.begin(protocol, parts), time.time(), 0.0, len(results)
    videos = VideoRecorder(policy, protocol.workers)
    while len(results) < len(trials):
        ready = _messages(busy)
        for worker, message in ready:
            if isinstance(message, TrialResult):
                message = videos.finish(worker, message)
                results[message.trial] = message
                if results_log:
                    results_log.add(message)
        looks = {worker: look for worker, look in ready if isinstance(look, dict)}
        videos.predict_paths(looks)
        _answer(policy, busy, looks)
        if time.time() - shown > 5 or len(results) == len(trials):
            shown = time.time()
            _progress(what, results, len(trials), before, began)
    ordered = [results[trial] for trial in trials]
    if results_log:
        results_log.finish(ordered)
    return ordered


def _split(trials: Sequence[Trial], parts: int) -> list[list[Trial]]:
    """Near-equal runs of trials that share their simulator, so that a worker makes few of them."""
    ordered = sorted(trials, key=lambda t: (t.scene, t.task))
    cuts = np.linspace(0, len(ordered), parts + 1).astype(int)
    return [ordered[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]


def _messages(workers: Sequence[_Worker]) -> list[tuple[_Worker, Any]]:
    ready = wait([worker.connection for worker in workers if worker.left])
    return [(worker, worker.receive()) for worker in workers if worker.connection in ready]


def _answer(policy: Policy, workers: Sequence[_Worker], looks: dict[_Worker, dict]) -> None:
    """One batch for all looks; the rows of those who wait for nothing are filled, so that one shape is compiled."""
    if not looks:
        return
    filling = next(iter(looks.values()))
    batch = [looks.get(worker, filling) for worker in workers]
    chunks = policy.act(batch, [look["seed"] for look in batch])
    for worker, chunk in zip(workers, chunks, strict=True):
        if worker in looks:
            worker.send(chunk)


def _progress(what: str, results: dict, total: int, before: int, began: float) -> None:
    done, seconds = len(results) - before, time.time() - began
    left = format_duration(seconds / done * (total - len(results))) if done else "?"
    won = sum(result.success for result in results.values())
    print(f"{what} {len(results)}/{total} episodes | {won} succeeded | {left} left", flush=True)


class _Worker:
    """A process with a simulator (see `etcvla.eval.worker`), and this end of its pipe."""

    def __init__(self, python: str):
        self._python, self._process, self.connection, self.left = python, None, None, 0

    def begin(self, protocol: EvalProtocol, trials: Sequence[Trial]) -> None:
        if self._process is None and trials:
            self._start()
        if trials:
            self.send((protocol, list(trials)))
        self.left = len(trials)

    def send(self, message: Any) -> None:
        with contextlib.suppress(ConnectionError):  # `receive` says why it died
            self.connection.send(message)

    def _start(self) -> None:
        self.connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [self._python, "-m", "etcvla.eval.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=suites.environment_variables(),
            )

    def receive(self) -> Any:
        try:
            message = self.connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise RuntimeError("a simulator worker died; its message stands above") from error
        if isinstance(message, Exception):
            raise message
        self.left -= isinstance(message, TrialResult)
        return message

    def stop(self) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait()
            self.connection.close()
            self._process, self.left = None, 0


def table(results: Sequence[TrialResult]) -> dict[str, dict[str, dict[str, list[int]]]]:
    """{intervention: {scene: {task: [successes, trials]}}} of what was not perturbed."""
    out: dict = {}
    for result in results:
        t = result.trial
        if t.perturbation:
            continue
        cell = out.setdefault(t.intervention, {}).setdefault(t.scene, {}).setdefault(t.task, [0, 0])
        cell[0] += result.success
        cell[1] += 1
    return out


def rates(results: Sequence[TrialResult]) -> Iterator[str]:
    """A line a intervention and scene: successes, trials, rate and its 95 % interval."""
    for intervention, scenes in table(results).items():
        for scene, tasks in scenes.items():
            won, total = np.sum(list(tasks.values()), axis=0).tolist()
            low, high = wilson(won, total)
            yield (
                f"{intervention:<18}{scene:<8} {won}/{total} = {won / total:.0%} [{low:.0%}, {high:.0%}]   "
                + ", ".join(f"{task} {a}/{b}" for task, (a, b) in tasks.items())
            )
