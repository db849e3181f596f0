"""Many processes as one run, and what tells a run to stop.

A run that is told to stop (SIGTERM, which spot and preemptible TPU VMs get; SIGINT, which Ctrl-C sends) finishes its
step, saves, and ends with the exit code `PREEMPTED`: start the same command again and it goes on.
"""

from __future__ import annotations

import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils

PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: not a failure, try again


class Preempted(SystemExit):
    """The end of a run that was told to stop; all that it did is saved."""

    def __init__(self) -> None:
        super().__init__(PREEMPTED)


def connect(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Makes this process one of a run's, before JAX is used for anything else.

    Args:
      coordinator: host:port of process 0. "" asks the environment: TPU VMs, SLURM and Open MPI say it all, and where
        nothing does, this process is a run of its own.
      num_processes, process_id: how many there are, and which of them this is.

    Raises ValueError if some of the three are given and others not.
    """
    given = {
        "--coordinator": bool(coordinator),
        "--num_processes": num_processes > 0,
        "--process_id": process_id >= 0,
    }
    if all(given.values()):
        jax.distributed.initialize(coordinator, num_processes, process_id)
        return
    if any(given.values()):
        lacking = " and ".join(flag for flag, there in given.items() if not there)
        raise ValueError(
            f"several processes need --coordinator, --num_processes and --process_id; {lacking} lacking"
        )
    try:
        jax.distributed.initialize()
    except ValueError as error:  # what JAX says where it finds no cluster
        if "coordinator_address" not in str(error):
            raise


def all_hosts_agree(fine: bool) -> bool:
    """Whether all processes are fine; each must ask."""
    if jax.process_count() == 1:
        return fine
    return bool(multihost_utils.process_allgather(jax.numpy.asarray(fine)).all())


def log_on_host0(text: str) -> None:
    """Prints, once for all processes."""
    if jax.process_index() == 0:
        print(text, flush=True)


class StopSignals:
    """While entered, SIGTERM and SIGINT become a question that is asked between steps; a second SIGINT interrupts.

    Of several processes, whichever was told, all stop at the same step: JAX's coordination service sees to that.
    """

    def __enter__(self):
        self._told = False
        self._shared = jax.distributed.is_initialized()
        # With a coordination service, SIGTERM is the service's.
        signals = [signal.SIGINT] if self._shared else [signal.SIGINT, signal.SIGTERM]
        main = (
            threading.current_thread() is threading.main_thread()
        )  # Python lets no other handle signals
        self._before = {number: signal.signal(number, self._tell) for number in signals if main}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self, step: int) -> bool:
        """Whether to stop now, after `step` steps; every process asks at every step."""
        return multihost_utils.reached_preemption_sync_point(step) if self._shared else self._told

    def _tell(self, number: int, frame: Any) -> None:
        if self._told and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._told = True
        if self._shared:
            signal.raise_signal(signal.SIGTERM)
