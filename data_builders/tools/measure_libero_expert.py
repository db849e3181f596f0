"""Measure how often the scripted expert succeeds from LIBERO's fixed initial states.

    python -m data_builders.tools.measure_libero_expert --tasks=libero_object,libero_spatial \\
        --states=0-9 --out=expert.csv

Every state is tried once. Results are appended to the CSV file one by one, and trials that the file
has do not run again. So the same command resumes after an interruption, and prints the table of a
finished file.
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

from data_builders.common import command, worker_pool
from data_builders.common.tables import markdown_table
from data_builders.libero_etc.episodes import ExpertTrial, run_expert_trial
from etcvla.errors import UserError
from etcvla.sims.libero import files as libero_files
from etcvla.stats import rate

COLUMNS = [field.name for field in dataclasses.fields(ExpertTrial)]


def read_trials(path: Path) -> list[ExpertTrial]:
    """Return the rows of a CSV file, [] without a file. Raises UserError if it is another table."""
    if not path.exists():
        return []
    trials = []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != COLUMNS:
            raise UserError(
                f"--out={path}: columns {reader.fieldnames}, expected {COLUMNS}; name another file"
            )
        for row in reader:
            task = row.pop("task")
            numbers = {column: int(text) for column, text in row.items()}
            trials.append(ExpertTrial(task, **numbers))
    return trials


def measure(trials: Sequence[ExpertTrial], path: Path, workers: int) -> Iterator[ExpertTrial]:
    """Run the trials that the CSV file does not have; append each to the file and yield it."""
    finished = {(trial.task, trial.state) for trial in read_trials(path)}
    missing = [trial for trial in trials if (trial.task, trial.state) not in finished]
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if not file.tell():
            writer.writerow(COLUMNS)
        if not missing:
            return
        for trial in worker_pool.run_jobs(run_expert_trial, missing, workers):
            writer.writerow(dataclasses.astuple(trial))
            file.flush()
            yield trial


def format_table(trials: Iterable[ExpertTrial]) -> str:
    """Return the success rate of each task and suite, with Wilson's 95 % intervals, as Markdown."""
    by_task: dict[str, list[ExpertTrial]] = defaultdict(list)
    by_suite: dict[str, list[ExpertTrial]] = defaultdict(list)
    for trial in trials:
        by_task[trial.task].append(trial)
        by_suite[trial.task.partition("/")[0]].append(trial)
    rows = [_table_row(name, group) for name, group in (by_task | by_suite).items()]
    return markdown_table(
        ["task", "success", "share", "95 % interval", "mean steps", "one grasp"], rows
    )


def _table_row(name: str, trials: Sequence[ExpertTrial]) -> list[str]:
    successes = [trial for trial in trials if trial.success]
    share = rate(len(successes), len(trials))
    mean_steps = ""
    if successes:
        mean_steps = f"{sum(trial.steps for trial in successes) / len(successes):.0f}"
    return [
        name,
        f"{len(successes)}/{len(trials)}",
        f"{share.value:.0%}",
        f"{share.low:.0%} to {share.high:.0%}",
        mean_steps,
        str(sum(trial.grasps == 1 for trial in successes)),
    ]


def parse_states(text: str) -> range:
    """Return the states of "3" or "0-9". Raises UserError for another text."""
    first, _, last = text.partition("-")
    last = last or first
    if not first.isdecimal() or not last.isdecimal():
        raise UserError(f"--states={text}: expected a number, or first-last as in 0-9")
    return range(int(first), int(last) + 1)


def _requested_trials(tasks: Sequence[str], states: range) -> list[ExpertTrial]:
    names: list[str] = []
    for task in tasks:
        names += libero_files.task_names(task)
    trials = []
    for name in dict.fromkeys(names):
        trials += [ExpertTrial(name, state) for state in states]
    return trials


def main(argv: list[str]) -> None:
    """Run the command."""
    with command.user_errors():
        command.check_no_arguments(argv)
        trials = _requested_trials(_TASKS.value, parse_states(_STATES.value))
        path = Path(_OUT.value)
        for trial in measure(trials, path, _WORKERS.value):
            result = "success" if trial.success else "FAILURE"
            print(
                f"{trial.task}, state {trial.state}: {result} after {trial.steps} steps, "
                f"grasps {trial.grasps}",
                file=sys.stderr,
            )
        requested = {(trial.task, trial.state) for trial in trials}
        measured = read_trials(path)
        print(format_table(t for t in measured if (t.task, t.state) in requested))


if __name__ == "__main__":
    _TASKS = flags.DEFINE_list(
        "tasks", ["libero_object", "libero_spatial"], "Suites, suite/name or suite/index."
    )
    _STATES = flags.DEFINE_string("states", "0-9", "Fixed initial states: a number, or first-last.")
    _OUT = flags.DEFINE_string(
        "out", None, "CSV file of results; trials that it has do not run again.", required=True
    )
    _WORKERS = flags.DEFINE_integer("workers", os.cpu_count() or 1, "Number of worker processes.")
    app.run(main)
