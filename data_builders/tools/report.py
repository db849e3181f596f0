"""Print statistics of a robot dataset with ETC items.

    python -m data_builders.tools.report --data=DIR [--json=FILE]

The report has the numbers of items by grade, kind, task and split, how often answers can be
guessed, how subtasks agree with contact, which items the build dropped, and how often experts
succeeded. The exit code is 1 if answers of a question type are unbalanced.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from data_builders.common import command
from data_builders.common.read_dataset import iterate_items, read_info, read_metadata
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
        steps = range(int(dataset.starts[episode]), int(dataset.starts[episode + 1]))
        facts = {
            name: np.array([column[step] for step in steps]) for name, column in columns.items()
        }
        rate = float(metadata["rate"])
        contact = facts["contact"][:, target]
        labelled = label_subtasks(facts["gripper_position"], facts["gripper_open"], rate)
        for name, phase in (("plan", facts["phase"]), ("trajectory", labelled)):
            share = agreement(phase, contact, rate)
            if np.isfinite(share):
                agreements[name][metadata["task"]].append(share)


def format_report(report: Mapping[str, Any]) -> str:
    """Return the report as text."""
    sections = []
    for key in ("grade", "kind", "question_type", "task", "split"):
        sections.append(_count_lines(key, report[f"by_{key}"]))
    sections.append(_kind_lines(report["kinds_by_task"]))
    sections.append(_majority_lines(report["majority"], report["blind"]))
    sections.append(_agreement_lines(report["contact_agreement"]))
    sections.append(_length_lines(report["characters"]))
    build = report["build"]
    if "tasks" in build:
        sections.append(_expert_lines(build["tasks"]))
    if "dropped_items" in build:
        lines = [f"{'dropped':<48}{'items':>9}"]
        lines += [f"{reason:<48}{count:>9}" for reason, count in build["dropped_items"].items()]
        sections.append(lines)
    sections.append([f"UNBALANCED {problem}" for problem in report["unbalanced"]])
    return "\n\n".join("\n".join(lines) for lines in sections).strip()


def _count_lines(name: str, counts: Mapping[str, int]) -> list[str]:
    total = sum(counts.values())
    lines = [f"{name:<28}{'items':>9}{'share':>8}"]
    lines += [f"{key:<28}{count:>9}{count / total:>8.1%}" for key, count in counts.items()]
    return lines


def _kind_lines(by_task: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return items by task and kind; a kind that a task lacks is 0."""
    kinds: list[str] = []
    for counts in by_task.values():
        kinds += [kind for kind in counts if kind not in kinds]
    lines = [_kind_row("task", kinds, {kind: kind for kind in kinds})]
    lines += [_kind_row(task, kinds, counts) for task, counts in sorted(by_task.items())]
    return lines


def _kind_row(name: str, kinds: Iterable[str], cells: Mapping[str, Any]) -> str:
    return f"{name:<28}" + "".join(f"{cells[kind]:>{len(kind) + 2}}" for kind in kinds)


def _majority_lines(majority: Mapping[str, dict], blind: Mapping[str, dict]) -> list[str]:
    lines = [f"{'majority answer':<28}{'items':>9}{'share':>8}{'blind':>8}  answer"]
    for name, row in majority.items():
        blind_share = f"{blind[name]['share']:.1%}" if name in blind else ""
        lines.append(
            f"{name:<28}{row['items']:>9}{row['share']:>8.1%}{blind_share:>8}  {row['answer']}"
        )
    return lines


def _agreement_lines(contact_agreement: Mapping[str, Mapping[str, float]]) -> list[str]:
    trajectory = contact_agreement["trajectory"]
    lines = [f"{'agreement with contact':<28}{'plan':>9}{'trajectory':>12}"]
    for task, share in contact_agreement["plan"].items():
        other = f"{trajectory[task]:.1%}" if task in trajectory else ""
        lines.append(f"{task:<28}{share:>9.1%}{other:>12}")
    return lines


def _length_lines(characters: Mapping[str, dict]) -> list[str]:
    return [
        f"characters of {name}s: mean {row['mean']}, p99 {row['p99']:.0f}, max {row['max']}"
        for name, row in characters.items()
    ]


def _expert_lines(tasks: Mapping[str, dict]) -> list[str]:
    lines = [f"{'task':<28}{'episodes':>9}{'attempts':>9}{'success':>9}"]
    for task, row in tasks.items():
        lines.append(
            f"{task:<28}{row['episodes']:>9}{row['attempts']:>9}{row['success_rate']:>9.0%}"
        )
    return lines


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
