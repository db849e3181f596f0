"""Print statistics of a robot dataset with ETC items.

    python -m data_builders.tools.report --data=DIR [--json=FILE]

The report has the numbers of items by grade, kind, task and split, how often answers can be
guessed, how subtasks agree with contact, which items the build dropped, and how often experts
succeeded. The exit code is 1 if answers of a question type are unbalanced.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from data_builders.common import command
from data_builders.common.read_dataset import iterate_items, read_info, read_metadata
from data_builders.common.tables import markdown_table
from etcvla.data.rlds import RLDSDataset
from etcvla.etc.balance import Tally
from etcvla.etc.subtasks import agreement, label_subtasks
from etcvla.files import write_json

# phase source -> task -> agreement with contact of each episode
Agreements = dict[str, dict[str, list[float]]]

_ANNOTATION_FIELDS = ("phase", "contact", "gripper_open", "gripper_position")


def dataset_report(directory: str | Path) -> dict[str, Any]:
    """Return the report as plain values.

    Args:
      directory: version folder of the dataset.

    Raises UserError if there is no dataset.
    """
    directory = Path(directory)
    tally = Tally()
    agreements: Agreements = {"plan": defaultdict(list), "trajectory": defaultdict(list)}
    for split in read_info(directory)["splits"]:
        dataset = RLDSDataset(directory, split["name"])
        _count_items(dataset, tally)
        if "annotation/phase" in dataset.features:
            _measure_agreement(dataset, agreements)
    contact_agreement = {}
    for name, by_task in agreements.items():
        contact_agreement[name] = {
            task: round(float(np.mean(shares)), 3) for task, shares in by_task.items()
        }
    return {
        **tally.summary(),
        "contact_agreement": contact_agreement,
        "build": read_metadata(directory),
    }


def _count_items(dataset: RLDSDataset, tally: Tally) -> None:
    tasks = []
    for episode in range(dataset.num_episodes):
        task = dataset.metadata(episode).get("task", "")
        tasks += [task] * int(dataset.lengths[episode])
    for task, items in zip(tasks, iterate_items(dataset), strict=True):
        tally.add(items, task=task, split=dataset.split)


def _measure_agreement(dataset: RLDSDataset, agreements: Agreements) -> None:
    """Append each episode's agreement of phases with contact.

    "plan" are the stored phases, "trajectory" those of `label_subtasks` without contact.
    """
    columns = {name: dataset.column(f"annotation/{name}") for name in _ANNOTATION_FIELDS}
    for episode in range(dataset.num_episodes):
        metadata = dataset.metadata(episode)
        target = int(metadata["target"])
        if target < 0:
            continue
        steps = slice(int(dataset.starts[episode]), int(dataset.starts[episode + 1]))
        facts = {name: np.asarray(column[steps]) for name, column in columns.items()}
        rate = float(metadata["rate"])
        contact = facts["contact"][:, target]
        labelled = label_subtasks(facts["gripper_position"], facts["gripper_open"], rate)
        for name, phase in (("plan", facts["phase"]), ("trajectory", labelled)):
            share = agreement(phase, contact, rate)
            if np.isfinite(share):
                agreements[name][metadata["task"]].append(share)


def format_report(report: Mapping[str, Any]) -> str:
    """Return the report as Markdown tables."""
    sections = []
    for key in ("grade", "kind", "question_type", "task", "split"):
        counts = report[f"by_{key}"]
        total = sum(counts.values())
        rows = [[name, count, f"{count / total:.1%}"] for name, count in counts.items()]
        sections.append(markdown_table([key, "items", "share"], rows))
    sections.append(_table_of_dicts("task", report["kinds_by_task"]))
    sections.append(_majority_table(report["majority"], report["blind"]))
    agreement_of_trajectory = report["contact_agreement"]["trajectory"]
    rows = []
    for task, share in report["contact_agreement"]["plan"].items():
        rows.append([task, share, agreement_of_trajectory.get(task, "")])
    sections.append(markdown_table(["agreement with contact", "plan", "trajectory"], rows))
    sections.append(_table_of_dicts("characters", report["characters"]))
    build = report["build"]
    if "tasks" in build:
        sections.append(_table_of_dicts("task", build["tasks"]))
    if "dropped_items" in build:
        rows = list(build["dropped_items"].items())
        sections.append(markdown_table(["dropped", "items"], rows))
    sections += [f"UNBALANCED {problem}" for problem in report["unbalanced"]]
    return "\n\n".join(sections)


def _table_of_dicts(title: str, table: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table with a row per key and a column per key of the first value."""
    columns = list(next(iter(table.values()), {}))
    rows = []
    for name, cells in table.items():
        rows.append([name, *(cells[column] for column in columns)])
    return markdown_table([title, *columns], rows)


def _majority_table(majority: Mapping[str, dict], blind: Mapping[str, dict]) -> str:
    """Return how often constant answers, and answers that ignore the image, are right."""
    rows = []
    for name, row in majority.items():
        blind_share = f"{blind[name]['share']:.1%}" if name in blind else ""
        rows.append([name, row["items"], f"{row['share']:.1%}", blind_share, row["answer"]])
    head = ["majority answer", "items", "share", "without image", "answer"]
    return markdown_table(head, rows)


def main(argv: list[str]) -> None:
    """Run the command."""
    with command.user_errors():
        command.check_no_arguments(argv)
        report = dataset_report(_DATA.value)
        if _JSON.value:
            write_json(_JSON.value, report)
    print(format_report(report))
    if report["unbalanced"]:
        sys.exit(1)


if __name__ == "__main__":
    _DATA = flags.DEFINE_string("data", None, "Version folder of the dataset.", required=True)
    _JSON = flags.DEFINE_string("json", None, "JSON file to write the report to.")
    app.run(main)
