"""A recipe's folder, read: what its runs are, what they scored, what they logged."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from etils import epath

from etcvla.stats import Estimate, mean, rate
from etcvla.train.checkpoint import Checkpoints

CURVE_POINTS = 400  # lines of metrics.jsonl kept, about


@dataclasses.dataclass(frozen=True)
class RunResults:
    """A run of the recipe. Parts that were not written are empty."""

    name: str
    folder: epath.Path
    facts: Mapping[str, Any]  # its entry in summary.json
    scores: Mapping[str, Any]  # its scores.json

    @property
    def title(self) -> str:
        return self.name.replace("_", " ")

    @property
    def questions(self) -> dict[str, Mapping[str, Mapping[str, float]]]:
        """{dataset: {kind: scores}}; the held-out shapes, which measure retention, are "mm"."""
        return {"mm": self.scores.get("mm") or {}, **self.scores.get("etc", {})}

    def accuracy(self, dataset: str) -> Estimate | None:
        """The mean over the kinds."""
        return mean([estimate(kind) for kind in self.questions.get(dataset, {}).values()])

    def tasks(self, scene: str, intervention: str = "right") -> dict[str, Estimate | None]:
        """{task: success rate}."""
        cells = self.scores.get("success", {}).get(intervention, {}).get(scene, {})
        return {task: rate(*cell) for task, cell in cells.items()}

    def success(self, scene: str, intervention: str = "right") -> Estimate | None:
        """Over all tasks and trials together."""
        cells = self.scores.get("success", {}).get(intervention, {}).get(scene, {}).values()
        return rate(*map(sum, zip(*cells, strict=True))) if cells else None

    def episodes(self, suite: str = "") -> list[dict[str, str]]:
        """Lines of episodes.csv, the recipe's own or those of a benchmark."""
        path = self.folder / "evaluation" / suite / "episodes.csv"
        return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []

    @functools.cached_property
    def suites(self) -> dict[str, Sequence[Mapping[str, Any]]]:
        """{benchmark: the cells of its scores}, of those that were played into folders of evaluation/."""
        paths = sorted((self.folder / "evaluation").glob("*/scores.json"))
        return {path.parent.name: read_json(path)["groups"] for path in paths}

    @functools.cached_property
    def metrics(self) -> list[dict[str, float]]:
        """Lines of metrics.jsonl by step; where a resumed run repeats a step, its last line."""
        path = self.folder / "metrics.jsonl"
        rows = map(json.loads, path.read_text().splitlines() if path.exists() else [])
        by_step = {row["step"]: row for row in rows}
        rows = [by_step[step] for step in sorted(by_step)]
        return rows[:: 1 + len(rows) // CURVE_POINTS]


@dataclasses.dataclass(frozen=True)
class RecipeResults:
    """A recipe's folder, read."""

    summary: Mapping[str, Any]
    stages: tuple[RunResults, ...]
    finished: float  # seconds since 1970

    @classmethod
    def read(cls, root: epath.PathLike) -> RecipeResults:
        """Raises FileNotFoundError without a summary.json, ValueError where a file is not JSON."""
        root = epath.Path(root)
        path = root / "summary.json"
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: launch/recipe.py writes it; is {root} a recipe's workdir?"
            )
        summary = read_json(path)
        return cls(
            summary,
            tuple(
                RunResults(
                    name,
                    root / name,
                    summary.get("stages", {}).get(name, {}),
                    read_json(root / name / "evaluation/scores.json", {}),
                )
                for name in summary.get("runs", [])
            ),
            path.stat().mtime,
        )

    @classmethod
    def of(cls, workdirs: Sequence[epath.PathLike]) -> RecipeResults:
        """Runs that no recipe bound together. Raises FileNotFoundError where there is none."""
        return cls(
            {}, tuple(map(_run, map(epath.Path, workdirs), short_names(workdirs))), time.time()
        )

    @property
    def parents(self) -> list[int | None]:
        """For each stage the index of the one that it starts from: its sibling, if the folder of both was moved."""
        folders = [stage.folder for stage in self.stages]

        def index(stage: RunResults) -> int | None:
            origin = epath.Path(stage.facts.get("init_from") or "")
            homes = (origin, stage.folder.parent / origin.name) if origin.name else ()
            return next((folders.index(home) for home in homes if home in folders), None)

        return [index(stage) for stage in self.stages]

    @property
    def road(self) -> list[RunResults]:
        """The stages that follow one another from the first; others are controls beside them.

        A run that starts from none of the others is nobody's control, and stands on the road too.
        """
        road: list[int] = []
        for i, parent in enumerate(self.parents):
            if not road or parent in (None, road[-1]):
                road.append(i)
        return [self.stages[i] for i in road]

    @property
    def acting(self) -> list[RunResults]:
        return [stage for stage in self.stages if any(map(stage.success, self.scenes))]

    @property
    def scenes(self) -> list[str]:
        return union(
            scenes for stage in self.stages for scenes in stage.scores.get("success", {}).values()
        )

    @property
    def datasets(self) -> list[str]:
        """Those of ETC."""
        return [name for name in union(stage.questions for stage in self.stages) if name != "mm"]


def short_names(paths: Sequence[epath.PathLike]) -> list[str]:
    """The last parts of paths, as few as tell them apart."""
    parts = [epath.Path(path).parts for path in paths]
    ends = ([part[-count:] for part in parts] for count in range(1, 1 + max(map(len, parts))))
    return [
        "/".join(end) for end in next((end for end in ends if len(set(end)) == len(parts)), parts)
    ]


def _run(folder: epath.Path, name: str) -> RunResults:
    """A run by its workdir alone."""
    if not folder.exists():
        raise FileNotFoundError(f"{folder} is missing: it should be a run's workdir")
    checkpoints, facts = Checkpoints(folder), {}
    if (step := checkpoints.latest()) is not None:
        config = checkpoints.meta()["config"]
        facts = {
            "steps": step,
            "init_from": config["init_from"],
            "config": f"{config['stage']}:{config['variant']}",
        }
    return RunResults(
        name,
        folder,
        facts | read_json(folder / "training.json", {}),
        read_json(folder / "evaluation/scores.json", {}),
    )


def read_json(path: epath.Path, default: Any = None) -> Any:
    """What a file holds, or `default` where there is none. Raises ValueError where it is not JSON."""
    if not path.exists():
        return default
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not JSON ({error}): remove it and run the recipe again"
        ) from error


def union(parts: Iterable[Iterable[str]]) -> list[str]:
    """All names, each once, in order of appearance."""
    return list(dict.fromkeys(chain.from_iterable(parts)))


def estimate(kind: Mapping[str, float]) -> Estimate:
    """The accuracy in one kind's scores."""
    return Estimate(kind["accuracy"], kind["low"], kind["high"], kind["count"])
