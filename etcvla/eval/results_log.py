"""Files of an evaluation's episodes: protocol.json, episodes.csv and videos.

episodes.csv gets a line when an episode ends. An interrupted evaluation resumes with the trials
that have no line.
"""

from __future__ import annotations

import csv
import io
import json
import operator
from collections.abc import Iterable, Mapping, Sequence

from etils import epath
from PIL import Image

from etcvla.errors import UserError
from etcvla.eval.trials import Trial, TrialResult
from etcvla.files import write_atomically, write_csv, write_json
from etcvla.results_schema import EPISODE_COLUMNS, TRIAL_COLUMNS, video_stem

VIDEO_FRAME_MS = 60  # duration of a frame


class ResultsLog:
    """The files of one evaluation, in a folder that it creates.

    Args:
      protocol: everything on which the results depend, see `benchmark.describe_protocol`.
      replace: delete the results of another protocol instead of raising an error.

    Raises UserError if the folder has results of another protocol or columns of another version.
    """

    def __init__(self, folder: epath.PathLike, protocol: Mapping, *, replace: bool = False):
        self._folder = epath.Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._episodes_path = self._folder / "episodes.csv"
        self._videos_folder = self._folder / "videos"
        self._open_protocol(protocol, replace)
        self._rows = self._read_rows()

    def _open_protocol(self, protocol: Mapping, replace: bool) -> None:
        path = self._folder / "protocol.json"
        protocol = json.loads(json.dumps(protocol))
        if path.exists():
            previous = json.loads(path.read_text())
            if previous == protocol:
                return
            if not replace:
                raise UserError(
                    f"{path} has another protocol: {_differences(previous, protocol)}; write to "
                    "another folder, or use the same protocol"
                )
        self._episodes_path.unlink(missing_ok=True)
        if self._videos_folder.exists():
            self._videos_folder.rmtree()
        write_json(path, protocol)

    def results(self, trials: Sequence[Trial]) -> dict[Trial, TrialResult]:
        """Return the results of those of the trials that are finished."""
        finished = [trial for trial in trials if trial.key in self._rows]
        return {trial: TrialResult.from_row(trial, self._rows[trial.key]) for trial in finished}

    def add(self, result: TrialResult) -> None:
        """Write a result. The video comes first, so a line means that all of it is written."""
        if result.frames is not None:
            self._write_video(result)
        row = result.to_row()
        with self._episodes_path.open("a") as file:  # one write of one line
            file.write(_csv_line(row.values()))
        self._rows[result.trial.key] = row

    def finish(self, results: Sequence[TrialResult]) -> None:
        """Sort the lines of episodes.csv in the order of these results."""
        rows = [self._rows[result.trial.key].values() for result in results]
        write_csv(self._episodes_path, EPISODE_COLUMNS, rows)

    def _read_rows(self) -> dict[tuple[str, ...], dict[str, str]]:
        """Return the lines by trial, after removing an incomplete last line from the file."""
        text = self._episodes_path.read_text() if self._episodes_path.exists() else ""
        complete = text[: text.rfind("\n") + 1]
        header = _csv_line(EPISODE_COLUMNS)
        complete = complete or header
        if not complete.startswith(header):
            raise UserError(
                f"{self._episodes_path} has the columns {complete.splitlines()[0]}, expected "
                f"{header.strip()}; another version of etcvla wrote it: write to another folder"
            )
        if complete != text:
            write_atomically(self._episodes_path, complete)
        key = operator.itemgetter(*TRIAL_COLUMNS)
        return {key(row): row for row in csv.DictReader(complete.splitlines())}

    def _write_video(self, result: TrialResult) -> None:
        self._videos_folder.mkdir(exist_ok=True)
        frames = [Image.fromarray(frame) for frame in result.frames]
        frames[0].save(
            self._videos_folder / f"{video_stem(result.to_row())}.gif",
            save_all=True,
            append_images=frames[1:],
            duration=VIDEO_FRAME_MS,
            loop=0,
        )


def _differences(previous: Mapping, protocol: Mapping) -> str:
    differences = []
    for key in sorted({*previous, *protocol}):
        before = json.dumps(previous.get(key))
        now = json.dumps(protocol.get(key))
        if before != now:
            differences.append(f"{key} is {before:.80}, but now {now:.80}")
    return ", ".join(differences)


def _csv_line(values: Iterable[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()
