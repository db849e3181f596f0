"""Where logged numbers and images go: JSON lines, TensorBoard and Weights & Biases."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from etils import epath
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import directory_check

from etcvla.errors import UserError
from etcvla.files import write_atomically


class Sink(Protocol):
    """Takes numbers and images of a run."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log numbers by name after `step` steps."""

    def write_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Log an image, uint8[height, width, 3]."""

    def close(self) -> None:
        """Finish writing."""


class JSONLines:
    """A file with one JSON object a line: {"step", "time", and the numbers}.

    If the file exists, lines after `start` (of steps that are about to be repeated) and incomplete
    lines of a killed run are removed first.
    """

    def __init__(self, path: epath.PathLike, start: int = 0):
        path = epath.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        old = path.read_text() if path.exists() else ""
        kept = [line + "\n" for line in old.splitlines() if _step_of(line) <= start]
        new = "".join(kept)
        if new != old:
            write_atomically(path, new)
        self._file = path.open("a")

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Append a line."""
        line = {"step": step, "time": time.time(), **numbers}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _step_of(line: str) -> float:
    """Return a line's step; infinity for an incomplete line."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return float("inf")


class TensorBoard:
    """Event files in a folder. TensorBoard hides what earlier files hold after step `start`.

    tensorboardX's own writer thread is not used: a full disk ends it, and then every later call
    that logs would wait for it forever.
    """

    def __init__(self, folder: str, start: int = 0):
        directory_check(folder)
        self._writer = EventsWriter(os.path.join(folder, "events"))
        self._write_event(step=start + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log numbers as scalars."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        self._write_event(step=step, summary=Summary(value=values))

    def write_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Log an image, uint8[height, width, 3]."""
        self._write_event(step=step, summary=summary.image(name, image, dataformats="HWC"))

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()

    def _write_event(self, **fields: Any) -> None:
        self._writer.write_event(Event(wall_time=time.time(), **fields))
        self._writer.flush()


def import_wandb() -> ModuleType:
    """Return the package wandb. Raises UserError if it is not installed."""
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            "--wandb needs the package wandb: `pip install etcvla[wandb]`, or leave the flag out; "
            "metrics.jsonl and TensorBoard have the same numbers"
        ) from error
    return wandb


class WandB:
    """A run of Weights & Biases. A resumed run continues under the id in <workdir>/wandb_id.

    The library reads WANDB_MODE; WANDB_MODE=offline keeps everything on disk. Raises UserError if
    the package is not installed.
    """

    def __init__(self, project: str, name: str, workdir: str, config: Mapping[str, Any]):
        self._wandb = import_wandb()
        id_file = epath.Path(workdir) / "wandb_id"
        if not id_file.exists():
            id_file.parent.mkdir(parents=True, exist_ok=True)
            id_file.write_text(uuid.uuid4().hex[:8])
        self._run = self._wandb.init(
            project=project,
            name=name,
            dir=workdir,
            config=dict(config),
            id=id_file.read_text(),
            resume="allow",
        )

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log numbers by name after `step` steps."""
        self._run.log(dict(numbers), step=step)

    def write_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Log an image, uint8[height, width, 3]."""
        self._run.log({name: self._wandb.Image(image)}, step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
