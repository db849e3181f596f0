"""The scores that reports show: accuracies on held-out questions, and success rates."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Mapping

from etcvla.pages import palette
from etcvla.pages.results import ALL_TASKS, RecipeResults, accuracy_estimate, union
from etcvla.pages.templates import as_words
from etcvla.results_schema import BASE_DATA, setting_of
from etcvla.stats import Estimate, mean, rate

BASELINES = ("majority", "blind")


@dataclasses.dataclass(frozen=True)
class Score:
    """One score of one run.

    Attributes:
      value: the score.
      baselines: baseline -> accuracy; empty for success rates.
      note: remark that compares the score with its baselines.
      warning: says that the score is not above its baselines.
    """

    value: Estimate
    baselines: Mapping[str, float] = dataclasses.field(default_factory=dict)
    note: str = ""
    warning: str = ""


@dataclasses.dataclass(frozen=True)
class Measure:
    """A score of all runs, in total and by kind of question or task.

    Attributes:
      title: name of the measure.
      color: its colour.
      rows: row -> title of a run -> score, without runs that were not evaluated. The first row is
        the total.
      place: where the robot acts, as "in the source scene"; empty for accuracies.
    """

    title: str
    color: str
    rows: Mapping[str, Mapping[str, Score]]
    place: str = ""

    @property
    def values(self) -> dict[str, Estimate]:
        """Title of a run -> the total."""
        total = next(iter(self.rows.values()))
        return {title: score.value for title, score in total.items()}


def run_measures(results: RecipeResults) -> list[Measure]:
    """Return the accuracies by dataset and the success rates by scene."""
    etc_colors = itertools.cycle(palette.ETC)
    measures = []
    for dataset in results.datasets:
        rows = _accuracy_rows(results, dataset)
        if dataset == BASE_DATA:
            measures.append(Measure("Retention, base data", palette.BASE_DATA, rows))
        else:
            measures.append(Measure(f"ETC answers, {dataset}", next(etc_colors), rows))
    for scene in results.scenes:
        rows = defaultdict(dict)
        for run in results.runs:
            for task, value in run.success(scene).items():
                row = rows[task]
                if value:
                    row[run.title] = Score(value)
        title = f"Success, {scene} scene"
        measures.append(Measure(title, scene_color(scene), rows, f"in the {scene} scene"))
    return measures


def benchmark_measures(results: RecipeResults) -> list[Measure]:
    """Return the success rates in benchmarks, with the right instruction and nothing changed."""
    measures = []
    for name in union(run.benchmarks for run in results.runs):
        rows = {ALL_TASKS: {}}
        for run in results.runs:
            scenes = {}
            for group in run.benchmarks.get(name, ()):
                if group["intervention"] == "right" and not setting_of(group):
                    scenes[group["scene"]] = group_rate(group["overall"])
            if len(scenes) > 1:
                for scene, value in scenes.items():
                    rows.setdefault(f"scene {scene}", {})[run.title] = Score(value)
            if scenes:
                rows[ALL_TASKS][run.title] = Score(mean(list(scenes.values())))
        color = palette.SCENE_COLORS["source"]
        measures.append(Measure(f"Success, {name}", color, rows, f"on {name}"))
    return measures


def scene_color(scene: str) -> str:
    """Return the colour of a scene, such as "source" or "A0"."""
    tier_color = palette.TIER_COLORS.get(scene[:1], palette.MUTED)
    return palette.SCENE_COLORS.get(scene, tier_color)


def group_rate(scores: Mapping) -> Estimate | None:
    """Return the success rate in the scores of a group of a benchmark's episodes."""
    return rate(scores["success"]["count"], scores["trials"])


def _accuracy_rows(results: RecipeResults, dataset: str) -> dict[str, dict[str, Score]]:
    rows = defaultdict(dict)
    for run in results.runs:
        kinds = run.kinds(dataset)
        if kinds:
            rows["mean over kinds"][run.title] = _mean_score(list(kinds.values()))
        for kind, scores in kinds.items():
            rows[as_words(kind)][run.title] = _kind_score(scores)
    return rows


def _mean_score(kinds: list[Mapping[str, float]]) -> Score:
    """Mean accuracy over the kinds, the mean baselines, and the number of kinds above each."""
    baselines = {}
    above = []
    for name in BASELINES:
        baselines[name] = sum(kind[name] for kind in kinds) / len(kinds)
        count = sum(kind["accuracy"] > kind[name] for kind in kinds)
        above.append(f"{name} {count}/{len(kinds)}")
    value = mean([accuracy_estimate(kind) for kind in kinds])
    return Score(value, baselines, note=f"above {', '.join(above)}")


def _kind_score(kind: Mapping[str, float]) -> Score:
    """Accuracy of one kind, and a warning if it is not clearly above a baseline."""
    value = accuracy_estimate(kind)
    baselines = {name: kind[name] for name in BASELINES}
    note = ", ".join(f"{name} {share:.0%}" for name, share in baselines.items())
    warning = ""
    for words, limit in (("not clearly above", value.low), ("not above", value.value)):
        names = [name for name in BASELINES if limit <= baselines[name]]
        if names:
            warning = f"{words} {' and '.join(names)}"
    return Score(value, baselines, note, warning)
