"""What is in a robot dataset of ours: `python -m data_builders.tools.report DIR [--json=FILE]`.

Items by grade, kind, task and split; how far answers can be guessed; how subtasks agree with contact; what the build
left out, and how often experts succeeded. DIR is <out>/<dataset>/<config>/<version>.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from absl import app, flags

from etcvla.data.rlds import RLDSDataset
from etcvla.etc.balance import Tally
from etcvla.etc.items import ITEM_FIELDS, Item
from etcvla.etc.subtasks import agreement, label_subtasks


def dataset_report(directory: str | Path) -> dict:
    """The report as plain values. Raises FileNotFoundError where there is no dataset."""
    directory = Path(directory)
    info = directory / "dataset_info.json"
    if not info.exists():
        raise FileNotFoundError(
            f"{directory} is no dataset: it has no dataset_info.json (give <dataset>/<config>/"
            f"<version>)"
        )
    tally, agreements = Tally(), {"plan": defaultdict(list), "trajectory": defaultdict(list)}
    for split in (row["name"] for row in json.loads(info.read_text())["splits"]):
        _count(RLDSDataset(directory, split), split, tally, agreements)
    built = directory / "metadata.json"
    return {
        **tally.summary(),
        "contact_agreement": {
            name: {task: round(float(np.mean(values)), 3) for task, values in by_task.items()}
            for name, by_task in agreements.items()
        },
        "build": json.loads(built.read_text()) if built.exists() else {},
    }


def _count(dataset: RLDSDataset, split: str, tally: Tally, agreements: dict) -> None:
    columns = [dataset.column(f"etc/{field}") for field in ITEM_FIELDS]
    has_facts = "annotation/phase" in dataset.features
    facts = (
        {
            name: dataset.column(f"annotation/{name}")
            for name in ("phase", "contact", "gripper_open", "gripper_position")
        }
        if has_facts
        else {}
    )
    for episode in range(dataset.num_episodes):
        about = dataset.metadata(episode)
        steps = range(int(dataset.starts[episode]), int(dataset.starts[episode + 1]))
        for t in steps:
            tally.add(
                map(Item, *(column[t] for column in columns)),
                task=about.get("task", ""),
                split=split,
            )
        if has_facts and about["target"] >= 0:
            at = {name: np.array([column[t] for t in steps]) for name, column in facts.items()}
            _agree(at, int(about["target"]), float(about["rate"]), about["task"], agreements)


def _agree(
    facts: dict[str, np.ndarray], target: int, rate: float, task: str, agreements: dict
) -> None:
    """Notes an episode's agreement of the plan's phases, and of `label_subtasks` without contact, with contact."""
    contact = facts["contact"][:, target]
    guessed = label_subtasks(facts["gripper_position"], facts["gripper_open"], rate)
    for name, phase in (("plan", facts["phase"]), ("trajectory", guessed)):
        if np.isfinite(share := agreement(phase, contact, rate)):
            agreements[name][task].append(share)


def table(report: dict) -> str:
    """The report as text."""
    lines = []
    for by in ("grade", "kind", "question_type", "task", "split"):
        total = sum(report[f"by_{by}"].values())
        lines += [
            "",
            f"{by:<28}{'items':>9}{'share':>8}",
            *(
                f"{name:<28}{count:>9}{count / total:>8.1%}"
                for name, count in report[f"by_{by}"].items()
            ),
        ]
    lines += _kinds(report["kinds_by_task"])
    lines += ["", f"{'majority answer':<28}{'items':>9}{'share':>8}{'blind':>8}  answer"]
    for name, row in report["majority"].items():
        blind = report["blind"].get(name)
        lines.append(
            f"{name:<28}{row['items']:>9}{row['share']:>8.1%}"
            f"{'' if blind is None else format(blind['share'], '.1%'):>8}  {row['answer']}"
        )
    lines += ["", f"{'agreement with contact':<28}{'plan':>9}{'trajectory':>12}"]
    plan, guessed = (report["contact_agreement"][name] for name in ("plan", "trajectory"))
    lines += [
        f"{task:<28}{share:>9.1%}{'' if task not in guessed else format(guessed[task], '.1%'):>12}"
        for task, share in plan.items()
    ]
    lines += [
        "",
        *(
            f"characters of {name}s: mean {row['mean']}, p99 {row['p99']:.0f}, max {row['max']}"
            for name, row in report["characters"].items()
        ),
    ]
    build = report["build"]
    if "tasks" in build:
        lines += [
            "",
            f"{'task':<28}{'episodes':>9}{'tries':>8}{'success':>9}",
            *(
                f"{task:<28}{row['episodes']:>9}{row['tries']:>8}{row['success']:>9.0%}"
                for task, row in build["tasks"].items()
            ),
        ]
    if "dropped" in build:
        lines += [
            "",
            f"{'left out':<48}{'items':>9}",
            *(f"{reason:<48}{count:>9}" for reason, count in build["dropped"].items()),
        ]
    return "\n".join(
        [*lines, "", *(f"UNBALANCED {problem}" for problem in report["unbalanced"])]
    ).strip()


def _kinds(by_task: dict[str, dict[str, int]]) -> list[str]:
    """Items by task and kind; a kind that a task lacks stands out as 0."""
    kinds = list(dict.fromkeys(kind for row in by_task.values() for kind in row))
    return [
        "",
        f"{'task':<28}" + "".join(f"{kind:>{len(kind) + 2}}" for kind in kinds),
        *(
            f"{task:<28}" + "".join(f"{row[kind]:>{len(kind) + 2}}" for kind in kinds)
            for task, row in sorted(by_task.items())
        ),
    ]


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        raise app.UsageError("give one dataset directory")
    try:
        report = dataset_report(argv[1])
        if _JSON.value:
            Path(_JSON.value).write_text(json.dumps(report, indent=1) + "\n")
    except OSError as error:
        sys.exit(f"error: {error}")
    print(table(report))
    if report["unbalanced"]:
        sys.exit(1)


if __name__ == "__main__":
    _JSON = flags.DEFINE_string("json", None, "File to write the report to as well.")
    app.run(main)
