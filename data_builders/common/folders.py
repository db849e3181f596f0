"""Dataset folders that are either complete or absent."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from etcvla.errors import UserError


@contextlib.contextmanager
def lock_build(path: Path) -> Iterator[None]:
    """Lock the dataset folder `path` against other builds, and remove what killed builds left.

    The lock is a file lock of the kernel, so it ends with the process. Raises UserError if another
    process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / f".{path.name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"another process is building {path}; wait until it ends"
            raise UserError(message) from None
        for partial in path.parent.glob(f"incomplete.*_{path.name}"):
            print(f"removing the partial folder {partial} of a killed build", file=sys.stderr)
            shutil.rmtree(partial)
        yield


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `path` at the end, or removed after an error."""
    with lock_build(path):
        partial = path.parent / f"incomplete.{os.getpid()}_{path.name}"
        partial.mkdir()
        try:
            yield partial
            partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
