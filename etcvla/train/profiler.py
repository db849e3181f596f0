"""A window of steps under JAX's profiler."""

from __future__ import annotations

import re
from typing import Any

import jax
from etils import epath


def parse_window(text: str) -> tuple[int, int] | None:
    """(first, last) step of "START:STOP", both in the trace; None for "".

    Raises ValueError for anything else.
    """
    if not text:
        return None
    found = re.fullmatch(r"(\d+):(\d+)", text)
    first, last = map(int, found.groups()) if found else (0, 0)
    if not 1 <= first <= last:
        raise ValueError(
            f"--profile is {text!r}, expected START:STOP, steps counted from 1, as 20:25"
        )
    return first, last


class Profiler:
    """Writes a trace of the window's steps to <workdir>/profile, for TensorBoard's profile plugin or xprof.

    Args:
      window: (first, last) step; None traces nothing. Of a window that lies behind `start`, nothing is left.
    """

    def __init__(self, workdir: str, window: tuple[int, int] | None, start: int):
        self.folder, self.window, self.tracing = epath.Path(workdir) / "profile", window, False
        self._next(start + 1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def step(self, step: int, outputs: Any) -> None:
        """After a step was dispatched; the window's last is waited for."""
        if self.tracing and step >= self.window[1]:
            jax.block_until_ready(outputs)
            self.close()
        self._next(step + 1)

    def close(self) -> None:
        """Ends a trace that is under way."""
        if self.tracing:
            jax.profiler.stop_trace()
            self.tracing = False
            if jax.process_index() == 0:
                print(
                    f"profile of steps {self.window[0]} to {self.window[1]}: {self.folder}",
                    flush=True,
                )

    def _next(self, step: int) -> None:
        if not self.tracing and self.window and self.window[0] <= step <= self.window[1]:
            jax.profiler.start_trace(str(self.folder))
            self.tracing = True
