"""Worker processes for episodes. Imports no TensorFlow: a worker is small and starts in a second."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import sys
import types
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, TypeVar

EpisodeJob, EpisodeResult = TypeVar("EpisodeJob"), TypeVar("EpisodeResult")


def run(
    function: Callable[[EpisodeJob], EpisodeResult], jobs: Sequence[EpisodeJob], workers: int
) -> Iterator[EpisodeResult]:
    """The jobs' results in order, from `workers` processes that stay a few jobs ahead of the consumer.

    `function` is one of a module's, that a new process can import.
    """
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:

        def submit(count: int) -> list[Future]:
            with _no_main_module():  # a pool starts its processes as jobs come in
                return [pool.submit(function, job) for job in itertools.islice(todo, count)]

        todo = iter(jobs)
        running = deque(submit(4 * workers))
        try:
            while running:
                result = running.popleft().result()
                running.extend(submit(1))
                yield result
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _no_main_module() -> Iterator[None]:
    """A spawned process first imports the parent's main script, which here would drag TensorFlow or JAX in."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class BySplit:
    """One stream of results read by split. A worker keeps a task's simulator, so splits are not rolled out apart."""

    def __init__(self, results: Iterator[Any]):
        self._results, self._waiting = results, defaultdict(deque)

    def take(self, split: str) -> Iterator[Any]:
        while True:
            if self._waiting[split]:
                yield self._waiting[split].popleft()
            elif (result := next(self._results, None)) is not None:
                self._waiting[result.job.split].append(result)
            else:
                return
