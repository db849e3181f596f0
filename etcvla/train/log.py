"""Where a run's numbers go: a progress line, JSON lines, TensorBoard and, by choice, Weights & Biases.

Process 0 writes; the others only stop where it would.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath
from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import directory_check

from etcvla.train.metrics import average_metrics

Facts = Callable[
    [int, float], Mapping[str, float]
]  # (step, steps a second) -> more numbers for the line


class Sink(Protocol):
    """What takes numbers and pictures."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def picture(self, step: int, name: str, image: np.ndarray) -> None: ...  # uint8[H, W, 3]

    def close(self) -> None: ...


class JSONLines:
    """A file with an object a line: {"step", "time", and the numbers}.

    Of a file that is there, what a killed run left behind `start` (and half a line, where it was torn) is dropped:
    the steps are about to be done again.
    """

    def __init__(self, path: epath.PathLike, start: int = 0):
        path = epath.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.read_text() if path.exists() else ""
        kept = "".join(line + "\n" for line in before.splitlines() if _step_of(line) <= start)
        if kept != before:
            temporary = path.with_suffix(".tmp")
            temporary.write_text(kept)
            temporary.replace(path)
        self._file = path.open("a")

    def write(self, step, numbers):
        self._file.write(json.dumps({"step": step, "time": time.time(), **numbers}) + "\n")
        self._file.flush()

    def close(self):
        self._file.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except ValueError:
        return float("inf")


class TensorBoard:
    """Event files in a folder; what earlier ones hold from `start` on is hidden.

    They are not written by tensorboardX's thread: a full disk ends that, and whoever logs would wait for it for ever.
    """

    def __init__(self, folder: str, start: int = 0):
        directory_check(folder)
        self._writer = EventsWriter(os.path.join(folder, "events"))
        self._put(step=start + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step, numbers):
        self._put(
            step=step,
            summary=Summary(
                value=[
                    Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()
                ]
            ),
        )

    def picture(self, step, name, image):
        self._put(step=step, summary=summary.image(name, image, dataformats="HWC"))

    def close(self):
        self._writer.close()

    def _put(self, **fields):
        self._writer.write_event(Event(wall_time=time.time(), **fields))
        self._writer.flush()


def find_wandb() -> Any:
    """The package. Raises ImportError saying how to get it, where it is not installed."""
    try:
        import wandb
    except ImportError as error:
        raise ImportError(
            "--wandb needs the package wandb: `pip install etcvla[wandb]`, or leave the flag out; "
            "metrics.jsonl and TensorBoard have the same numbers"
        ) from error
    return wandb


class WandB:
    """A run of Weights & Biases, taken up again by the id that stands in <workdir>/wandb_id.

    WANDB_MODE=offline, which the library reads, keeps everything on disk. Raises what `find_wandb` raises.
    """

    def __init__(self, project: str, name: str, workdir: str, config: Mapping[str, Any]):
        self._wandb = find_wandb()
        known = epath.Path(workdir) / "wandb_id"
        if not known.exists():
            known.parent.mkdir(parents=True, exist_ok=True)
            known.write_text(uuid.uuid4().hex[:8])
        self._run = self._wandb.init(
            project=project,
            name=name,
            dir=workdir,
            config=dict(config),
            id=known.read_text(),
            resume="allow",
        )

    def write(self, step, numbers):
        self._run.log(dict(numbers), step=step)

    def picture(self, step, name, image):
        self._run.log({name: self._wandb.Image(image)}, step=step)

    def close(self):
        self._run.finish()


class Logger:
    """Turns a stage's metrics into lines.

    Metrics stay on the device until a line is due, so that logging never makes the device wait. The first step, which
    is mostly compilation, counts in no rate, and neither does what is done in a `pause`.

    Args:
      workdir: gets metrics.jsonl, held_out.jsonl and a folder tensorboard.
      every: steps between lines; the last step has one too.
      start: steps that are done already.
      facts: what else a line says, asked on the host when it is due.
      more: further sinks.
    """

    def __init__(
        self,
        workdir: str,
        stage: str,
        steps: int,
        every: int,
        *,
        start: int = 0,
        facts: Facts = lambda step, rate: {},
        more: Sequence[Sink] = (),
    ):
        self.stage, self.steps, self.every = stage, steps, every
        self.last: dict[str, float] = {}
        self._workdir, self._start, self._facts = epath.Path(workdir), start, facts
        self._pending: list[tuple[int, Mapping[str, jax.Array]]] = []
        self._files: dict[str, JSONLines] = {}
        self._speaks = jax.process_index() == 0
        self._sinks = (
            [TensorBoard(os.path.join(workdir, "tensorboard"), start), *more]
            if self._speaks
            else []
        )
        self._began = time.time()
        self._compiled = False
        self._restart(untimed=0)

    def __enter__(self):
        return self

    def __exit__(self, failed, *_):
        for sink in (*self._files.values(), *self._sinks):
            with contextlib.suppress(OSError) if failed else self._told():
                sink.close()

    @contextlib.contextmanager
    def _told(self):
        """What cannot be written is an OSError with the place."""
        try:
            yield
        except OSError as error:
            raise OSError(
                f"{self._workdir}: what the run logs was not written: {error}. Its checkpoints are whole: "
                "make room, or make it writable, and start again"
            ) from error

    def waiting(self, data: Iterator) -> Iterator:
        """The same iterator; the time spent waiting for it is shown on the progress line."""
        while True:
            began = time.time()
            try:
                item = next(data)
            except StopIteration:
                return
            self._waited += time.time() - began
            yield item

    @contextlib.contextmanager
    def pause(self):
        """What is done inside counts in no rate."""
        began = time.time()
        yield
        self._since += time.time() - began

    def step(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes one step's metrics; every `every` steps writes their means.

        Raises FloatingPointError at a loss or gradient that is not finite, naming the step, unless the step says that
        it was `skipped`: then it is counted, and its numbers are left out.
        """
        self._pending.append((step, metrics))
        if not self._compiled:
            jax.block_until_ready(metrics)
            self._compiled = True
            self._print(f"{self.stage}: first step after {time.time() - self._began:.1f} s")
            self._restart(untimed=1)
        if step % self.every == 0 or step == self.steps:
            self.flush()

    def flush(self) -> None:
        """Writes what is pending."""
        if not self._pending:
            return
        steps, metrics = zip(*jax.device_get(self._pending), strict=True)
        done = [
            (step, values)
            for step, values in zip(steps, metrics, strict=True)
            if not values.get("skipped")
        ]
        for step, values in done:
            for what, value in {
                "loss": values["loss"],
                "gradient's norm": values["grad_norm"],
            }.items():
                if not np.isfinite(value):
                    raise FloatingPointError(
                        f"{self.stage}: the {what} is {value} at step {step}; the checkpoint "
                        "before it is intact. Lower optim.lr, or look at the batch of that step"
                    )
        numbers = average_metrics([values for _, values in done])
        if "skipped" in metrics[0]:
            numbers["skipped"] = float(len(steps) - len(done))
        self._write(int(steps[-1]), len(steps), numbers)
        self._pending = []
        self._restart(untimed=0)

    def held_out(self, step: int, numbers: Mapping[str, float]) -> None:
        """Writes what an evaluation found, to held_out.jsonl and the sinks."""
        self._put("held_out", step, numbers, prefix="held_out/")
        right = {
            found[1] or found[2]: value
            for name, value in numbers.items()
            if (found := re.fullmatch("etc/(.+)/accuracy|act/([^/]+)/success", name))
        }
        shown = [_losses(numbers), *(f"{name} {value:.0%}" for name, value in right.items())]
        self._print(f"{self.stage} {step}/{self.steps} | held out: {', '.join(shown)}")

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Shows uint8[H, W, 3], in <workdir>/<name>.png too."""
        if not self._speaks:
            return
        with self._told():
            with (self._workdir / f"{name}.png").open("wb") as file:
                Image.fromarray(image).save(file, "png")
            for sink in self._sinks:
                sink.picture(step, name, image)

    def _write(self, step: int, count: int, numbers: dict[str, float]) -> None:
        timed = count - self._untimed
        seconds = time.time() - (
            self._since if timed else self._began
        )  # a line of the first step alone has no other
        rate, waited = (timed or count) / seconds, self._waited / seconds
        self.last = {
            **numbers,
            "steps_per_second": rate,
            "data_wait": waited,
            **self._facts(step, rate),
        }
        self._put("metrics", step, self.last)
        shown = _losses(numbers)
        if numbers.get("skipped"):
            shown += f" | {numbers['skipped']:.0f} steps skipped: not finite"
        self._print(
            f"{self.stage} {step}/{self.steps} | {rate:.2f} steps/s | {format_duration((self.steps - step) / rate)} left "
            f"| {shown} | data wait {waited:.0%}{_usage(self.last)}"
        )

    def _put(self, file: str, step: int, numbers: Mapping[str, float], prefix: str = "") -> None:
        if not self._speaks:
            return
        with self._told():
            if file not in self._files:
                self._files[file] = JSONLines(self._workdir / f"{file}.jsonl", self._start)
            self._files[file].write(step, numbers)
            for sink in self._sinks:
                sink.write(step, {prefix + name: value for name, value in numbers.items()})

    def _restart(self, untimed: int) -> None:
        """A new line begins, with so many of its steps behind the format_duration."""
        self._waited, self._since, self._untimed = 0.0, time.time(), untimed

    def _print(self, text: str) -> None:
        if self._speaks:
            print(text, flush=True)


def format_duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _losses(numbers: Mapping[str, float]) -> str:
    return " ".join(
        f"{name.removeprefix('loss/')} {value:.3f}"
        for name, value in numbers.items()
        if name.startswith("loss")
    )


def _usage(numbers: Mapping[str, float]) -> str:
    """What a line says of `etcvla.train.usage`'s numbers, as far as they are there."""
    parts = {
        "run/tokens_per_second": " | {:,.0f} tokens/s",
        "run/mfu": " | {:.1%} MFU",
        "run/device_gib": " | {:.1f} GiB on device",
        "run/resident_gib": " | {:.1f} GiB resident",
    }
    return "".join(text.format(numbers[name]) for name, text in parts.items() if name in numbers)
