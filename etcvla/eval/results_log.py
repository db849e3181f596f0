"""The files of an evaluation's episodes: protocol.json, and episodes.csv to which a line is added as each one ends.

What was interrupted goes on with the trials that have no line.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence

from etils import epath
from PIL import Image

from etcvla.eval.trials import Trial, TrialResult
from etcvla.results_schema import EPISODE_COLUMNS, TRIAL_COLUMNS, VideoName

VIDEO_FRAME_MS = 60  # a frame of a GIF


class ResultsLog:
    """Of one folder, which is made.

    Args:
      protocol: everything that the episodes' outcome depends on, as JSON has it.
      replace: a folder of another protocol is begun anew instead of refused.

    Raises ValueError, naming what differs, for a folder of another protocol, and for an episodes.csv of other columns.
    """

    def __init__(self, folder: epath.PathLike, protocol: Mapping, *, replace: bool = False):
        self._folder = epath.Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path, record = self._folder / "episodes.csv", self._folder / "protocol.json"
        asked = json.loads(json.dumps(protocol))
        found = json.loads(record.read_text()) if record.exists() else None
        if found != asked:
            if found is not None and not replace:
                other = sorted(key for key in {*found, *asked} if found.get(key) != asked.get(key))
                raise ValueError(
                    f"{record} is of another protocol: {_differences(found, asked, other)}; write to "
                    "another folder, or ask for the same"
                )
            self._path.unlink(missing_ok=True)
            if (videos := self._folder / "videos").exists():
                videos.rmtree()
            write(record, json.dumps(asked, indent=2) + "\n")
        self._rows = self._read()

    def results(self, trials: Sequence[Trial]) -> dict[Trial, TrialResult]:
        """Those of `trials` that are done."""
        return {
            trial: TrialResult.of_row(trial, self._rows[trial.key])
            for trial in trials
            if trial.key in self._rows
        }

    def add(self, result: TrialResult) -> None:
        """Keeps a result, its video first: a line says that all of it is there."""
        if result.frames is not None:
            self._write_video(result)
        with self._path.open("a") as file:  # one write of one line
            file.write(_line(result.row().values()))
        self._rows[result.trial.key] = result.row()

    def finish(self, results: Sequence[TrialResult]) -> None:
        """Puts the lines into the results' order: workers end in any."""
        write(
            self._path,
            "".join(
                map(_line, (EPISODE_COLUMNS, *(self._rows[r.trial.key].values() for r in results)))
            ),
        )

    def _read(self) -> dict[tuple[str, ...], dict[str, str]]:
        """The lines by trial; a last one that was torn is taken off the file."""
        text = self._path.read_text() if self._path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        header = _line(EPISODE_COLUMNS)
        if not whole:
            write(self._path, header)
            return {}
        if not whole.startswith(header):
            raise ValueError(
                f"{self._path} has the columns {whole.splitlines()[0]}, expected {header.strip()}; it is "
                "of another version: write to another folder"
            )
        if whole != text:
            write(self._path, whole)
        rows = csv.DictReader(whole.splitlines())
        return {tuple(row[name] for name in TRIAL_COLUMNS): row for row in rows}

    def _write_video(self, result: TrialResult) -> None:
        trial = result.trial
        name = VideoName(
            intervention=trial.intervention,
            scene=trial.scene,
            task=trial.task,
            trial=trial.trial,
            success=result.success,
            perturbation=trial.perturbation,
        )
        folder = self._folder / "videos"
        folder.mkdir(exist_ok=True)
        first, *rest = [Image.fromarray(frame) for frame in result.frames]
        first.save(
            folder / f"{name.stem}.gif",
            save_all=True,
            append_images=rest,
            duration=VIDEO_FRAME_MS,
            loop=0,
        )


def _differences(found: Mapping, asked: Mapping, keys: Sequence[str]) -> str:
    return ", ".join(
        f"{key} is {_short(found.get(key))}, asked is {_short(asked.get(key))}" for key in keys
    )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else text[:77] + "..."


def _line(values) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(values)
    return out.getvalue()


def write(path: epath.Path, text: str) -> None:
    """Writes a file at once: an interrupted write leaves what was there."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)
