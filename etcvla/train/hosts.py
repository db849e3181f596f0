"""Run on several hosts, and stop on a signal.

SIGTERM (which spot and preemptible TPU VMs get) and SIGINT (Ctrl-C) make a run finish its step,
save, and exit with the code `PREEMPTED`. The same command then resumes it.
"""

from __future__ import annotations

import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils

from etcvla.errors import UserError

PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: not a failure, try again


class Preempted(SystemExit):
    """Ends a run that saved its state after a signal to stop."""

    def __init__(self):
        super().__init__(PREEMPTED)


def connect(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Connect this process to the others of its run. Call it before anything else of JAX.

    Args:
      coordinator: host:port of process 0. "" reads the environment of TPU VMs, SLURM or Open MPI;
        without any of these, this process is a run of its own.
      num_processes: number of processes of the run.
      process_id: number of this process, from 0.

    Raises UserError if only some of the three are given.
    """
    missing = []
    if not coordinator:
        missing.append("--coordinator")
    if num_processes <= 0:
        missing.append("--num_processes")
    if process_id < 0:
        missing.append("--process_id")
    if not missing:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    elif len(missing) < 3:
        raise UserError(
            "several processes need --coordinator, --num_processes and --process_id; missing: "
            f"{', '.join(missing)}"
        )
    else:
        try:
            jax.distributed.initialize()
        except ValueError as error:  # JAX found no cluster
            if "coordinator_address" not in str(error):
                raise


def all_hosts_agree(condition: bool) -> bool:
    """Return whether `condition` is true on all processes. Each must call it."""
    if jax.process_count() == 1:
        return condition
    return bool(multihost_utils.process_allgather(jax.numpy.asarray(condition)).all())


def log_on_host0(text: str) -> None:
    """Print on process 0 only."""
    if jax.process_index() == 0:
        print(text, flush=True)


class StopSignals:
    """A context in which SIGTERM and SIGINT are requests to stop, checked between steps.

    A second SIGINT interrupts at once. If one of several processes gets a signal, all of them stop
    at the same step, by JAX's coordination service.
    """

    def __enter__(self) -> StopSignals:
        self._received = False
        self._distributed = jax.distributed.is_initialized()
        self._old_handlers = {}
        # The coordination service handles SIGTERM itself.
        signals = [signal.SIGINT] if self._distributed else [signal.SIGINT, signal.SIGTERM]
        if threading.current_thread() is threading.main_thread():  # Python's rule for handlers
            for number in signals:
                self._old_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)

    def __call__(self, step: int) -> bool:
        """Return whether to stop after `step` steps. Every process calls it in every step."""
        if self._distributed:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received

    def _handle(self, number: int, frame: Any) -> None:
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = True
        if self._distributed:
            signal.raise_signal(signal.SIGTERM)
