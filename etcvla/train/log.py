"""Log a run: progress lines, and the same numbers as JSON lines, in TensorBoard and in other sinks.

Only host 0 writes. The other hosts check the losses too, so that all stop at the same step.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import jax
import ml_collections
import numpy as np
from etils import epath
from PIL import Image

from etcvla.errors import UserError
from etcvla.train.hosts import log_on_host0
from etcvla.train.metrics import average_metrics
from etcvla.train.sinks import JSONLines, Sink, TensorBoard

T = TypeVar("T")

# (step, steps per second) -> more numbers for a line
ExtraNumbers = Callable[[int, float], Mapping[str, float]]

# How a progress line shows the numbers of `etcvla.train.usage`.
_USAGE_FORMATS = {
    "run/tokens_per_second": "{:,.0f} tokens/s",
    "run/mfu": "{:.1%} MFU",
    "run/device_gib": "{:.1f} GiB on device",
    "run/resident_gib": "{:.1f} GiB resident",
}


class StepTimer:
    """Measures steps per second, and the share of the time spent waiting for data, by interval.

    The time of the first step, which is mostly compilation, and the time inside `pause` do not
    count.
    """

    def __init__(self):
        self._created = time.time()
        self.start_interval()

    def start_interval(self, untimed_steps: int = 0) -> None:
        """Start a new interval, `untimed_steps` of whose steps were done before now."""
        self._start = time.time()
        self._waited = 0.0
        self._untimed_steps = untimed_steps

    def seconds_since_creation(self) -> float:
        """Return the seconds since this timer was made."""
        return time.time() - self._created

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Do not count the time inside."""
        start = time.time()
        yield
        self._start += time.time() - start

    def time_waits(self, data: Iterator[T]) -> Iterator[T]:
        """Yield the same items, and count the time until each is available as waiting."""
        while True:
            start = time.time()
            try:
                item = next(data)
            except StopIteration:
                return
            self._waited += time.time() - start
            yield item

    def rates(self, steps: int) -> tuple[float, float]:
        """Return (steps per second, share of time waiting) of an interval of `steps` steps."""
        timed_steps = steps - self._untimed_steps
        if timed_steps:
            seconds = time.time() - self._start
        else:  # an interval of the first step alone has no other time
            timed_steps = steps
            seconds = self.seconds_since_creation()
        return timed_steps / seconds, self._waited / seconds


class MetricsLogger:
    """Averages the metrics of a stage's steps and logs them every `log_every` steps.

    Metrics stay on the device until a line is due, so logging never makes the device wait.

    Args:
      config: the stage's config. Its workdir gets metrics.jsonl, held_out.jsonl, images and the
        folder tensorboard.
      start: number of steps done before.
      extra_numbers: computes more numbers for a line, on the host, when the line is due.
      sinks: sinks besides the files and TensorBoard.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        *,
        start: int = 0,
        extra_numbers: ExtraNumbers = lambda step, rate: {},
        sinks: Sequence[Sink] = (),
    ):
        self.last_line: dict[str, float] = {}
        self.timer = StepTimer()
        self._config = config
        self._workdir = epath.Path(config.workdir)
        self._start = start
        self._extra_numbers = extra_numbers
        self._pending: list[tuple[int, Mapping[str, jax.Array]]] = []
        self._first_step_done = False
        self._writes = jax.process_index() == 0
        self._files: dict[str, JSONLines] = {}
        self._sinks: list[Sink] = []
        if self._writes:
            tensorboard = TensorBoard(os.path.join(config.workdir, "tensorboard"), start)
            self._sinks = [tensorboard, *sinks]

    def __enter__(self) -> MetricsLogger:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        for sink in (*self._files.values(), *self._sinks):
            with contextlib.suppress(OSError) if failed else self._explain_failure():
                sink.close()

    @contextlib.contextmanager
    def _explain_failure(self) -> Iterator[None]:
        """Raise UserError, which names the workdir, if writing fails."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._workdir}: cannot write the run's logs: {error}. Checkpoints are intact: "
                "make room or make the directory writable, and start again"
            ) from error

    def step(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Take one step's metrics; log the means every `log_every` steps and after the last step.

        Raises UserError, as `flush`, when it logs.
        """
        self._pending.append((step, metrics))
        if not self._first_step_done:
            jax.block_until_ready(metrics)
            self._first_step_done = True
            seconds = self.timer.seconds_since_creation()
            log_on_host0(f"{self._config.stage}: first step after {seconds:.1f} s")
            self.timer.start_interval(untimed_steps=1)
        if step % self._config.log_every == 0 or step == self._config.steps:
            self.flush()

    def flush(self) -> None:
        """Log the pending metrics.

        Raises UserError, which names the step, if a loss or gradient is not finite. A step that
        reports that it was `skipped` is counted instead, and left out of the means.
        """
        if not self._pending:
            return
        pending = jax.device_get(self._pending)
        completed = []
        for step, metrics in pending:
            if not metrics.get("skipped"):
                self._check_finite(int(step), metrics)
                completed.append(metrics)
        numbers = average_metrics(completed)
        if "skipped" in pending[0][1]:
            numbers["skipped"] = float(len(pending) - len(completed))
        last_step = int(pending[-1][0])
        self._log_line(last_step, len(pending), numbers)
        self._pending = []
        self.timer.start_interval()

    def _check_finite(self, step: int, metrics: Mapping[str, np.ndarray]) -> None:
        for name, label in (("loss", "loss"), ("grad_norm", "gradient norm")):
            if not np.isfinite(metrics[name]):
                raise UserError(
                    f"{self._config.stage}: the {label} is {metrics[name]} at step {step}; the "
                    "checkpoint before it is intact. Lower optim.lr, or check that step's batch"
                )

    def log_held_out(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log the results of an evaluation, to held_out.jsonl and the sinks."""
        self._write("held_out", step, numbers, prefix="held_out/")
        shown = ", ".join([_losses(numbers), *_accuracies(numbers)])
        log_on_host0(f"{self._config.stage} {step}/{self._config.steps} | held out: {shown}")

    def log_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Log an image, uint8[height, width, 3], to the sinks and to <workdir>/<name>.png."""
        if not self._writes:
            return
        with self._explain_failure():
            with (self._workdir / f"{name}.png").open("wb") as file:
                Image.fromarray(image).save(file, "png")
            for sink in self._sinks:
                sink.write_image(step, name, image)

    def _log_line(self, step: int, count: int, numbers: dict[str, float]) -> None:
        """Log the means of `count` steps, the last of which is `step`."""
        rate, waiting = self.timer.rates(count)
        self.last_line = {
            **numbers,
            "steps_per_second": rate,
            "data_wait": waiting,
            **self._extra_numbers(step, rate),
        }
        self._write("metrics", step, self.last_line)
        steps = self._config.steps
        shown = [
            f"{self._config.stage} {step}/{steps}",
            f"{rate:.2f} steps/s",
            f"{format_duration((steps - step) / rate)} left",
            _losses(numbers),
        ]
        if numbers.get("skipped"):
            shown.append(f"{numbers['skipped']:.0f} steps skipped: not finite")
        shown.append(f"data wait {waiting:.0%}")
        for name, template in _USAGE_FORMATS.items():
            if name in self.last_line:
                shown.append(template.format(self.last_line[name]))
        log_on_host0(" | ".join(shown))

    def _write(self, file: str, step: int, numbers: Mapping[str, float], prefix: str = "") -> None:
        if not self._writes:
            return
        with self._explain_failure():
            if file not in self._files:
                self._files[file] = JSONLines(self._workdir / f"{file}.jsonl", self._start)
            self._files[file].write(step, numbers)
            prefixed = {prefix + name: value for name, value in numbers.items()}
            for sink in self._sinks:
                sink.write(step, prefixed)


def format_duration(seconds: float) -> str:
    """Format seconds as h:mm:ss or m:ss."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _losses(numbers: Mapping[str, float]) -> str:
    losses = [
        f"{name.removeprefix('loss/')} {value:.3f}"
        for name, value in numbers.items()
        if name.startswith("loss")
    ]
    return " ".join(losses)


def _accuracies(numbers: Mapping[str, float]) -> list[str]:
    """Format the accuracies of questions, and the success rates over all tasks."""
    formatted = []
    for name, value in numbers.items():
        match = re.fullmatch("etc/(.+)/accuracy|act/([^/]+)/success", name)
        if match:
            label = match[1] or match[2]
            formatted.append(f"{label} {value:.0%}")
    return formatted
