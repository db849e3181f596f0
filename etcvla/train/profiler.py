"""Profile a window of training steps with JAX's profiler."""

from __future__ import annotations

import re
from typing import Any

import jax
from etils import epath

from etcvla.errors import UserError
from etcvla.train.hosts import log_on_host0


def parse_window(text: str) -> tuple[int, int] | None:
    """Parse START:STOP, the first and last step to profile, counted from 1; "" returns None.

    Raises UserError for anything else.
    """
    if not text:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match:
        first = int(match[1])
        last = int(match[2])
        if 1 <= first <= last:
            return first, last
    raise UserError(f"--profile is {text!r}, expected START:STOP, steps counted from 1, as 20:25")


class Profiler:
    """Writes a trace of the window's steps to <workdir>/profile, for TensorBoard or xprof.

    Args:
      window: (first, last) step; None traces nothing.
      start: number of steps done before; a window that ended by then is not traced.
    """

    def __init__(self, workdir: str, window: tuple[int, int] | None, start: int):
        self.folder = epath.Path(workdir) / "profile"
        self.window = window
        self.tracing = False
        self._start_trace_before(start + 1)

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def step(self, step: int, outputs: Any) -> None:
        """Start or end the trace after a step was dispatched. Waits for the window's last step."""
        if self.tracing and step >= self.window[1]:
            jax.block_until_ready(outputs)
            self.close()
        self._start_trace_before(step + 1)

    def close(self) -> None:
        """End the trace, if one is running."""
        if self.tracing:
            jax.profiler.stop_trace()
            self.tracing = False
            first, last = self.window
            log_on_host0(f"profile of steps {first} to {last}: {self.folder}")

    def _start_trace_before(self, step: int) -> None:
        if self.tracing or self.window is None:
            return
        first, last = self.window
        if first <= step <= last:
            jax.profiler.start_trace(str(self.folder))
            self.tracing = True
