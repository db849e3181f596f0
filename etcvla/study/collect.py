"""Collect the results of a study's runs: a line per episode, and a line per run.

Everything is read from the study's folder: study.json, which `save_graph` writes, says which runs
each cell has.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from etcvla.errors import UserError
from etcvla.files import read_csv, write_json
from etcvla.study.config import split_scene
from etcvla.study.runs import Graph, evaluation_key, read_result, run_folder

FILE = "study.json"
EPISODE_COLUMNS = (
    "cell",
    "seed",
    "tier",
    "rotation",
    "task",
    "layout",
    "named",
    "instruction_of",
    "novelty",
    "touched",
    "success",
    "progress",
    "intention",
    "intervention",
    "condition",
    "run",
)


def save_graph(graph: Graph) -> None:
    """Write <workdir>/study.json.

    Keys: "study" (name), "matched", "contrasts" and "gates" (the fields of `config.Contrast` and
    `config.Gate`), and "cells", a list of {"cell", "seed", "runs": [{"key", "evaluation"}]} whose
    last run is the cell's result.
    """
    study = graph.study
    cells = []
    for (cell, seed), runs in graph.cells.items():
        entries = [{"key": run.key, "evaluation": evaluation_key(run.evaluation)} for run in runs]
        cells.append({"cell": cell, "seed": seed, "runs": entries})
    content = {
        "study": study.name,
        "matched": study.matched,
        "contrasts": [dataclasses.asdict(contrast) for contrast in study.contrasts],
        "gates": [dataclasses.asdict(gate) for gate in study.gates],
        "cells": cells,
    }
    folder = pathlib.Path(study.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FILE, content)


def read_study(workdir: str) -> dict[str, Any]:
    """Return the content of study.json. Raises UserError if the folder holds no study."""
    path = pathlib.Path(workdir) / FILE
    if not path.exists():
        raise UserError(f"{path} does not exist; start launch/study.py with this --workdir first")
    return json.loads(path.read_text())


def episode_rows(workdir: str) -> Iterator[dict[str, str]]:
    """Yield the lines of study.csv by column: the episodes of the last run of each cell.

    Runs without a result have no lines. A column that the simulator does not fill is "".
    """
    for entry in read_study(workdir)["cells"]:
        run = entry["runs"][-1]
        if not read_result(run_folder(workdir, run["key"]), run["evaluation"]):
            continue
        for episode in read_episodes(workdir, run["key"]):
            tier, rotation = split_scene(episode["scene"])
            own = {"tier": tier, "rotation": rotation, "run": run["key"]}
            values = {**episode, **entry, **own}
            yield {column: str(values.get(column, "")) for column in EPISODE_COLUMNS}


def read_episodes(workdir: str, key: str) -> list[dict[str, str]]:
    """Return the lines of a run's episodes.csv; [] for a run that does not act."""
    return read_csv(run_folder(workdir, key) / "evaluation" / "episodes.csv")


def run_results(workdir: str) -> Iterator[dict[str, Any]]:
    """Yield the results of every finished run of every cell.

    Each is the content of its result.json with "cell" and "position" (0 for the cell's first run,
    -1 for its last). A run that several cells share is there once for each.
    """
    for entry in read_study(workdir)["cells"]:
        for i, run in enumerate(entry["runs"]):
            result = read_result(run_folder(workdir, run["key"]), run["evaluation"])
            position = -1 if run is entry["runs"][-1] else i
            if result:
                yield {**result, "cell": entry["cell"], "position": position}
