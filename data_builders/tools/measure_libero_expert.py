"""How often the expert succeeds from LIBERO's fixed initial states: `python -m data_builders.tools.measure_libero_expert`.

    python -m data_builders.tools.measure_libero_expert --tasks=libero_object,libero_spatial --states=0-9 --out=expert.csv

Every state is tried once. Results go to the CSV as they come; what stands there already is not run again, so that the
same command goes on where it was stopped, and prints the table of a finished file.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from absl import app, flags

from data_builders.common import worker_pool
from data_builders.libero_etc.episodes import ExpertTrial, try_expert
from etcvla.sims.libero import files as libero_files
from etcvla.stats import rate


def read_trials(path: Path) -> list[ExpertTrial]:
    """The rows of a CSV; none if there is no file. Raises ValueError if it is another table."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        fields = [field.name for field in dataclasses.fields(ExpertTrial)]
        if reader.fieldnames != fields:
            raise ValueError(
                f"{path}: columns {reader.fieldnames}, expected {fields}; name another file"
            )
        return [
            ExpertTrial(row["task"], *(int(row[name]) for name in fields[1:])) for row in reader
        ]


def measure(trials: Sequence[ExpertTrial], path: Path, workers: int) -> Iterator[ExpertTrial]:
    """Runs what the CSV does not hold, and appends it there."""
    known = {(trial.task, trial.state) for trial in read_trials(path)}
    missing = [trial for trial in trials if (trial.task, trial.state) not in known]
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if not file.tell():
            writer.writerow(field.name for field in dataclasses.fields(ExpertTrial))
        for trial in worker_pool.run(try_expert, missing, workers) if missing else ():
            writer.writerow(dataclasses.astuple(trial))
            file.flush()
            yield trial


def table(trials: Iterable[ExpertTrial]) -> str:
    """Successes of each task and suite with 95 % intervals (Wilson's), as text."""
    groups = defaultdict(list)
    for trial in trials:
        groups[trial.task].append(trial)
    for task in list(groups):
        groups[task.partition("/")[0]] += groups[task]
    width = max(map(len, groups), default=0)
    lines = [f"{'task':<{width}}  success   share  95 % interval  steps  one grasp"]
    for name, found in groups.items():
        won = [trial for trial in found if trial.success]
        share = rate(len(won), len(found))
        steps = f"{sum(trial.steps for trial in won) / len(won):.0f}" if won else ""
        lines.append(
            f"{name:<{width}}  {len(won):>3}/{len(found):<3}  {share.value:>6.0%}  "
            f"[{share.low:>4.0%}, {share.high:>4.0%}]   {steps:>5}  {sum(t.grasps == 1 for t in won):>9}"
        )
    return "\n".join(lines)


def _states(text: str) -> range:
    first, _, last = text.partition("-")
    if not first.isdecimal() or not (last or first).isdecimal():
        raise ValueError(f"--states={text}: expected a number, or first-last as in 0-9")
    return range(int(first), int(last or first) + 1)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    try:
        tasks = dict.fromkeys(
            task for name in _TASKS.value for task in libero_files.task_names(name)
        )
        trials = [ExpertTrial(task, state) for task in tasks for state in _states(_STATES.value)]
        path = Path(_OUT.value)
        for trial in measure(trials, path, _WORKERS.value):
            print(
                f"{trial.task}, state {trial.state}: {'success' if trial.success else 'FAILURE'} after {trial.steps} "
                f"steps, grasps {trial.grasps}",
                file=sys.stderr,
            )
        wanted = {(trial.task, trial.state) for trial in trials}
        print(table(trial for trial in read_trials(path) if (trial.task, trial.state) in wanted))
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    _TASKS = flags.DEFINE_list(
        "tasks", ["libero_object", "libero_spatial"], "Suites, suite/name or suite/index."
    )
    _STATES = flags.DEFINE_string("states", "0-9", "Fixed initial states: a number, or first-last.")
    _OUT = flags.DEFINE_string(
        "out", None, "CSV file of results, which is read first.", required=True
    )
    _WORKERS = flags.DEFINE_integer("workers", os.cpu_count() or 1, "Processes.")
    app.run(main)
