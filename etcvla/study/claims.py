"""Claims on pieces of work in a shared folder: at most one live worker has each of them.

An attempt at a piece of work is a file <folder>/attempts/<n>.json, which the file system lets one
process create. The worker touches the file while it lives (heartbeat). If the newest attempt is
dead, the next worker creates file n + 1; no file is ever deleted or renamed, so two workers cannot
both take over. The files are also the history of the attempts: when, where, how they ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import socket
import threading
import time
import traceback
from typing import Any

from etcvla.errors import UserError
from etcvla.files import write_json

RETRIES = 2  # attempts after the first one that failed


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds between heartbeats, and after how many without one a worker counts as dead."""

    heartbeat: float = 20.0
    stale: float = 300.0


DEFAULT_TIMING = Timing()


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One attempt at a piece of work, as its file has it."""

    path: pathlib.Path
    state: str  # "running", "done", "stopped" or "failed"
    host: str
    pid: int
    started: float  # seconds since 1970
    seen: float  # time of the last heartbeat, seconds since 1970

    def is_live(self, timing: Timing = DEFAULT_TIMING) -> bool:
        """Return whether its worker is still at it."""
        if self.state != "running":
            return False
        if self.host == socket.gethostname() and self.pid and not _is_process(self.pid):
            return False
        return time.time() - self.seen < timing.stale


def _is_process(pid: int) -> bool:
    """Return whether this machine runs a process with this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def attempts(folder: pathlib.Path) -> list[Attempt]:
    """Return the attempts at a piece of work, the oldest first."""
    found = []
    for path in sorted((folder / "attempts").glob("[0-9]*.json")):
        text = path.read_text()
        fields = json.loads(text) if text else {}  # empty: created a moment ago
        attempt = Attempt(
            path,
            state=fields.get("state", "running"),
            host=fields.get("host", ""),
            pid=fields.get("pid", 0),
            started=fields.get("started", 0.0),
            seen=path.stat().st_mtime,
        )
        found.append(attempt)
    return found


def state(folder: pathlib.Path, timing: Timing = DEFAULT_TIMING) -> str:
    """Return "running", "failed" (for good) or "waiting" for work that is not done."""
    previous = attempts(folder)
    if previous and previous[-1].is_live(timing):
        return "running"
    failures = sum(attempt.state == "failed" for attempt in previous)
    return "failed" if failures > RETRIES else "waiting"


class Claim:
    """A context in which this process has claimed a piece of work. Get one from `claim`.

    On leaving it the attempt becomes "done", "stopped" (by a signal) or "failed"; the traceback of
    a failure is written beside it.
    """

    def __init__(self, path: pathlib.Path, timing: Timing):
        self._path = path
        self._timing = timing
        self._ended = threading.Event()
        self._fields: dict[str, Any] = {
            "state": "running",
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": time.time(),
        }
        write_json(path, self._fields)
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Claim:
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        self._ended.set()
        self._thread.join()
        outcome = "done"
        if error is not None:
            outcome = "failed" if isinstance(error, Exception) else "stopped"
        if outcome == "failed":
            log = self._path.with_suffix(".log")
            log.write_text("".join(traceback.format_exception(error)))
        write_json(self._path, {**self._fields, "state": outcome, "ended": time.time()})

    def _beat(self) -> None:
        while not self._ended.wait(self._timing.heartbeat):
            with contextlib.suppress(OSError):  # a shared folder may be unreachable for a while
                if attempts(self._path.parent.parent)[-1].path != self._path:
                    self._abort()
                os.utime(self._path)

    def _abort(self) -> None:
        """End this process at once, before it writes to a run that another worker continues."""
        print(
            f"error: {self._path}: this process was suspended for more than "
            f"{self._timing.stale:.0f} s, and another worker has taken over its run; start the "
            "same command again",
            flush=True,
        )
        os._exit(1)


def claim(folder: pathlib.Path, timing: Timing = DEFAULT_TIMING) -> Claim | None:
    """Claim a piece of work; return None if another worker has it or it failed too often.

    Raises UserError if the folder cannot be written to.
    """
    if state(folder, timing) != "waiting":
        return None
    path = folder / "attempts" / f"{len(attempts(folder)):04d}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(exist_ok=False)
    except FileExistsError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be created: {error}; choose another --workdir") from error
    return Claim(path, timing)
