"""Worker processes that make episodes.

Imports no TensorFlow, so that a worker is small and starts within a second.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import sys
import types
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

from data_builders.common.jobs import EpisodeResult

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_jobs(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int
) -> Iterator[Result]:
    """Yield the results of `jobs` in order, computed by `workers` processes.

    The processes work at most four jobs per process ahead of the consumer.

    Args:
      function: a function of a module, which the worker processes import.
    """
    pending_jobs = iter(jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:

        def _submit(count: int) -> list[Future]:
            # The pool starts its processes when jobs are submitted.
            with _hide_main_module():
                return [pool.submit(function, job) for job in itertools.islice(pending_jobs, count)]

        running = deque(_submit(4 * workers))
        try:
            while running:
                result = running.popleft().result()
                running.extend(_submit(1))
                yield result
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _hide_main_module() -> Iterator[None]:
    """Keep a spawned process from importing the parent's main script, which imports TensorFlow."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class ResultsBySplit:
    """Reads one iterator of results split by split.

    All splits share one iterator because a worker keeps the simulator of one task at a time.
    """

    def __init__(self, results: Iterator[EpisodeResult]):
        self._results = results
        self._waiting: dict[str, deque[EpisodeResult]] = defaultdict(deque)

    def take(self, split: str) -> Iterator[EpisodeResult]:
        """Yield the results of `split`; results of other splits wait for their turn."""
        while True:
            if self._waiting[split]:
                yield self._waiting[split].popleft()
                continue
            result = next(self._results, None)
            if result is None:
                return
            self._waiting[result.job.split].append(result)
