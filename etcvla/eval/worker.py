"""A simulator process of an evaluation: it runs trials, and gets action chunks through a pipe.

`rollouts.WorkerPool` starts it as `python -m etcvla.eval.worker FD`, with any Python that has the
simulator. It has a `Slot` for each of its rows of the policy's batch. It does not import JAX.

A job is (protocol, one list of trials per slot). The process answers with an `Update`, then gets
{slot: chunk float32[P, A]} for the slots that queried, and so on until an update has no
observations. None instead of a job ends the process. An exception instead of an update is its last
message.
"""

from __future__ import annotations

import builtins
import contextlib
import signal
import sys
from multiprocessing.connection import Connection

from etcvla.errors import UserError
from etcvla.eval.episodes import Slot, advance


def run_worker(connection: Connection) -> None:
    """Run trials until None arrives or the parent process ends."""
    with contextlib.suppress(EOFError, BrokenPipeError):  # the parent has ended
        try:
            _run_jobs(connection)
        except (EOFError, BrokenPipeError):
            raise
        except Exception as error:  # noqa: BLE001  the parent raises it
            connection.send(make_portable(error))


def _run_jobs(connection: Connection) -> None:
    slots: list[Slot] = []
    while (job := connection.recv()) is not None:
        protocol, shares = job
        while len(slots) < len(shares):
            slots.append(Slot())
        for slot, trials in zip(slots, shares, strict=False):
            slot.start(protocol, trials)
        update = advance(slots, {})
        connection.send(update)
        while update.observations:
            update = advance(slots, connection.recv())
            connection.send(update)


def make_portable(error: Exception) -> Exception:
    """Return an exception that a Python without the simulator's packages can unpickle."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, ImportError):
        return UserError(
            f"{sys.executable} lacks a package that the simulator imports: {error}; install it "
            "there"
        )
    if type(error) is getattr(builtins, type(error).__name__, None):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    # Ctrl-C in a terminal also signals this process. The parent handles it and closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run_worker(Connection(int(sys.argv[1])))
