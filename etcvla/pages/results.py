"""Read the results of training runs and evaluations from their folders."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from etcvla.errors import UserError
from etcvla.files import read_csv
from etcvla.results_schema import BASE_DATA
from etcvla.stats import Estimate, rate
from etcvla.train.checkpoint import find_checkpoint

ALL_TASKS = "all tasks"
MAX_CURVE_POINTS = 400  # approximate number of lines of metrics.jsonl that are kept


@dataclasses.dataclass(frozen=True)
class RunResults:
    """Results of one training run. Results that were not written are empty.

    Attributes:
      name: name of the run in the report.
      folder: workdir of the run.
      info: "config", "steps", "seconds", "init_from" and "control" of the run, as far as they are
        known.
      scores: content of evaluation/scores.json.
    """

    name: str
    folder: epath.Path
    info: Mapping[str, Any]
    scores: Mapping[str, Any]

    @property
    def title(self) -> str:
        """Name in words."""
        return self.name.replace("_", " ")

    @property
    def steps(self) -> str:
        """Number of training steps in words, for example "1,000 steps"."""
        return f"{self.info['steps']:,} steps" if "steps" in self.info else ""

    @property
    def is_control(self) -> bool:
        """Whether the run belongs to a recipe's control arm."""
        return self.info.get("control", False)

    @property
    def evaluation(self) -> epath.Path:
        """Folder of the evaluation."""
        return self.folder / "evaluation"

    @property
    def acting(self) -> bool:
        """Whether the run was evaluated in closed loop."""
        return bool(self.scores.get("success"))

    def kinds(self, dataset: str) -> Mapping[str, Mapping[str, float]]:
        """Return {kind: scores} of the held-out questions of a dataset."""
        if dataset == BASE_DATA:
            return self.scores.get("mm") or {}
        return self.scores.get("etc", {}).get(dataset, {})

    def success(self, scene: str, intervention: str = "right") -> dict[str, Estimate | None]:
        """Return {task: success rate}, with the rate over the trials of all tasks first."""
        tasks = self.scores.get("success", {}).get(intervention, {}).get(scene, {})
        pooled = np.sum([*tasks.values(), (0, 0)], axis=0).tolist()
        return {task: rate(*counts) for task, counts in {ALL_TASKS: pooled, **tasks}.items()}

    def episodes(self, benchmark: str = "") -> list[dict[str, str]]:
        """Read episodes.csv of the run's own evaluation, or of a benchmark."""
        return read_csv(self.evaluation / benchmark / "episodes.csv")

    def language(self, benchmark: str = "") -> list[dict[str, Any]]:
        """Read the groups of language.json of the run's own evaluation, or of a benchmark."""
        return read_json(self.evaluation / benchmark / "language.json", {"groups": []})["groups"]

    @functools.cached_property
    def benchmarks(self) -> dict[str, Sequence[Mapping[str, Any]]]:
        """{benchmark: groups of its scores.json}, one for each folder of evaluation/."""
        paths = sorted(self.evaluation.glob("*/scores.json"))
        return {path.parent.name: read_json(path)["groups"] for path in paths}

    @functools.cached_property
    def metrics(self) -> list[dict[str, float]]:
        """Lines of metrics.jsonl by step. If a resumed run repeats a step, its last line counts."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return []
        by_step = {}
        for line in path.read_text().splitlines():
            row = json.loads(line)
            by_step[row["step"]] = row
        rows = [by_step[step] for step in sorted(by_step)]
        return rows[:: 1 + len(rows) // MAX_CURVE_POINTS]


@dataclasses.dataclass(frozen=True)
class RecipeResults:
    """Results of the runs of a recipe, or of runs that are compared.

    Attributes:
      summary: content of the recipe's summary.json; empty for a comparison.
      runs: the runs in their order.
      finished: time of the results, seconds since 1970.
    """

    summary: Mapping[str, Any]
    runs: tuple[RunResults, ...]
    finished: float

    @classmethod
    def read(cls, workdir: epath.PathLike) -> RecipeResults:
        """Read the workdir of a recipe.

        Raises:
          UserError: summary.json is missing, or a file is not JSON.
        """
        workdir = epath.Path(workdir)
        path = workdir / "summary.json"
        if not path.exists():
            raise UserError(
                f"{path} is missing: give the workdir of a recipe (written by launch/recipe.py)"
            )
        summary = read_json(path)
        stages = summary.get("stages", {})
        runs = []
        for name in summary.get("runs", []):
            folder = workdir / name
            scores = read_json(folder / "evaluation/scores.json", {})
            runs.append(RunResults(name, folder, stages.get(name, {}), scores))
        return cls(summary, tuple(runs), path.stat().mtime)

    @classmethod
    def compare(cls, workdirs: Sequence[epath.PathLike]) -> RecipeResults:
        """Read runs that are not part of one recipe.

        Raises:
          UserError: a workdir does not exist.
        """
        runs = []
        for folder, name in zip(workdirs, short_names(workdirs), strict=True):
            runs.append(_read_run(epath.Path(folder), name))
        return cls({}, tuple(runs), time.time())

    @property
    def date(self) -> str:
        """Date and local time of the results."""
        return time.strftime("%d %B %Y, %H:%M", time.localtime(self.finished))

    @property
    def parents(self) -> list[int | None]:
        """Index of the run whose checkpoint each run starts from; None for other checkpoints.

        A parent is found by its folder's name too, because both folders may have been moved.
        """
        index_by_folder = {run.folder: i for i, run in enumerate(self.runs)}
        parents = []
        for run in self.runs:
            origin = epath.Path(run.info.get("init_from") or "")
            sibling = run.folder.parent / origin.name if origin.name else origin
            parents.append(index_by_folder.get(origin, index_by_folder.get(sibling)))
        return parents

    @property
    def main_runs(self) -> list[RunResults]:
        """Runs without the control runs."""
        return [run for run in self.runs if not run.is_control]

    @property
    def acting_runs(self) -> list[RunResults]:
        """Runs that were evaluated in closed loop."""
        return [run for run in self.runs if run.acting]

    @property
    def scenes(self) -> list[str]:
        """Scenes in which any run was evaluated."""
        tables = [run.scores["success"].values() for run in self.acting_runs]
        return union(itertools.chain.from_iterable(tables))

    @property
    def datasets(self) -> list[str]:
        """Datasets with held-out questions: `BASE_DATA` first, if any run answered them."""
        base = [BASE_DATA] if any(run.kinds(BASE_DATA) for run in self.runs) else []
        return [*base, *union(run.scores.get("etc", {}) for run in self.runs)]


def short_names(paths: Sequence[epath.PathLike]) -> list[str]:
    """Return the last parts of each path, as few as make the names different."""
    all_parts = [epath.Path(path).parts for path in paths]
    for count in range(1, max(map(len, all_parts))):
        names = ["/".join(parts[-count:]) for parts in all_parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _read_run(folder: epath.Path, name: str) -> RunResults:
    """Read a run without the summary of a recipe."""
    if not folder.exists():
        raise UserError(f"{folder} is missing: give the workdir of a run")
    info = {}
    checkpoint = find_checkpoint(folder)
    if checkpoint is not None:
        config = checkpoint.meta()["config"]
        info = {
            "steps": checkpoint.step,
            "init_from": config["init_from"],
            "config": f"{config['stage']}:{config['variant']}",
        }
    info |= read_json(folder / "training.json", {})
    return RunResults(name, folder, info, read_json(folder / "evaluation/scores.json", {}))


def read_json(path: epath.Path, default: Any = None) -> Any:
    """Return the content of a JSON file, or `default` if the file does not exist.

    Raises:
      UserError: the file is not JSON.
    """
    if not path.exists():
        return default
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not JSON ({error}): remove it and run the recipe again"
        ) from error


def union(collections: Iterable[Iterable[str]]) -> list[str]:
    """Return all names, each once, in the order of their first appearance."""
    return list(dict.fromkeys(itertools.chain.from_iterable(collections)))


def accuracy_estimate(scores: Mapping[str, float]) -> Estimate:
    """Return the accuracy in the scores of one kind of questions."""
    return Estimate(scores["accuracy"], scores["low"], scores["high"], scores["count"])
