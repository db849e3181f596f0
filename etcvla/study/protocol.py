"""The hypotheses of a study in writing: fixed before the first evaluation, checked afterwards.

<workdir>/protocol.json has the cells, seeds, contrasts and margins with their hash. Hypotheses that
change before anything is evaluated replace it. Later changes are added to its list "changes", which
the report shows.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from etcvla.errors import UserError
from etcvla.files import hash_json, write_json
from etcvla.provenance import git_commit
from etcvla.study.config import StudySpec

FILE = "protocol.json"


def hypotheses(study: StudySpec) -> dict[str, Any]:
    """Return what a study fixes in advance, as JSON: contrasts, gates, cells."""
    cells = {}
    for name, cell in study.cells.items():
        runs = []
        for run in study.chain(name):
            fields = dataclasses.asdict(run)
            fields["changes"] = [[field, repr(value)] for field, value in run.changes]
            runs.append(fields)
        cells[name] = {"seeds": cell.seeds, "runs": runs}
    contrasts = [dataclasses.asdict(contrast) for contrast in study.contrasts]
    gates = [dataclasses.asdict(gate) for gate in study.gates]
    evaluation = json.loads(study.eval.to_json_best_effort())
    for name in ("workers", "videos"):  # they change no result
        evaluation.pop(name)
    value = {
        "matched": study.matched,
        "contrasts": contrasts,
        "gates": gates,
        "evaluation": evaluation,
        "cells": cells,
    }
    return json.loads(json.dumps(value))


def read_protocol(study: StudySpec) -> dict[str, Any]:
    """Return the content of the study's protocol.json; {} if there is none yet.

    Raises UserError if the folder belongs to another study.
    """
    path = pathlib.Path(study.workdir) / FILE
    if not path.exists():
        return {}
    protocol = json.loads(path.read_text())
    if protocol["study"] != study.name:
        raise UserError(
            f"{study.workdir} belongs to the study {protocol['study']!r}, not {study.name!r}; "
            "choose another --workdir"
        )
    return protocol


def is_written(study: StudySpec) -> bool:
    """Return whether the newest hypotheses in protocol.json are the study's."""
    protocol = read_protocol(study)
    if not protocol:
        return False
    newest = protocol["changes"][-1] if protocol["changes"] else protocol
    return newest["sha256"] == hash_json(hypotheses(study))


def write_protocol(study: StudySpec, matching: Mapping[str, Any]) -> None:
    """Write the study's hypotheses to protocol.json.

    Keys: "study", "sha256", "hypotheses", "matching", "written" and "commit" of the first version;
    "changes", a list of the same keys and "evaluations", the number of runs that were evaluated
    before the hypotheses changed.

    Args:
      matching: cell -> its costs, as JSON.
    """
    content = hypotheses(study)
    entry = {
        "sha256": hash_json(content),
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "matching": matching,
        "hypotheses": content,
    }
    path = pathlib.Path(study.workdir) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    protocol = read_protocol(study)
    evaluations = len(list(path.parent.glob("runs/*/evaluation")))
    if protocol and evaluations:
        protocol["changes"].append({**entry, "evaluations": evaluations})
        print(
            f"{path}: the hypotheses changed after {evaluations} runs were evaluated; the change "
            "is recorded there and shown in the report",
            flush=True,
        )
    else:
        protocol = {"study": study.name, **entry, "changes": []}
    write_json(path, protocol)
