"""Data of the report's sections about scores, training and configuration.

Each function returns the variable `data` of the section's template, or None without results.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from etcvla.etc.score import MAX_DISTANCE, MIN_IOU
from etcvla.pages import charts, palette
from etcvla.pages.results import (
    SHAPES,
    RecipeResults,
    RunResults,
    accuracy_estimate,
    read_json,
    union,
)
from etcvla.pages.templates import as_words, embed_image
from etcvla.results_schema import INTERVENTIONS
from etcvla.stats import Estimate, mean, rate

TASK_PAIRS = (("drawer-open", "drawer-close"),)  # tasks with the same start state and appearance
BASELINES = ("majority", "blind")
# Fields of a benchmark's protocol.json that the report shows.
_PROTOCOL_FIELDS = ("trials", "max_steps", "execution", "replan_steps", "seed")
# Fields of protocol.json that describe the run, so they may differ between runs.
_RUN_FIELDS = ("checkpoint", "policy", "action_horizon")


def scene_color(scene: str) -> str:
    """Return the colour of a scene."""
    return palette.SCENE_COLORS.get(scene, palette.MUTED)


def dataset_title(dataset: str) -> tuple[str, str]:
    """Return the title and the colour of the scores on a dataset's held-out questions."""
    if dataset == SHAPES:
        return "Retention, held-out shapes", palette.SHAPES
    return f"ETC answers, {dataset}", palette.ETC


# ---- Progress over stages ----


def progress(results: RecipeResults) -> dict[str, Any] | None:
    """Chart of the mean scores after each run."""
    lines = []
    for dataset in results.datasets:
        title, color = dataset_title(dataset)
        values = [run.accuracy(dataset) for run in results.runs]
        dashed = dataset in results.etc_datasets[1:]  # these lines have the same colour
        name = "shapes" if dataset == SHAPES else title
        lines.append(charts.StageSeries(name, color, values, dashed))
    for scene in results.scenes:
        values = [run.success(scene) for run in results.runs]
        lines.append(charts.StageSeries(f"success, {scene}", scene_color(scene), values))
    if not lines:
        return None
    labels = []
    for run in results.runs:
        title = run.title.replace(" action only", "\naction only")
        labels.append(f"{title}\n{run.steps}")
    return {
        "chart": charts.stage_chart(labels, results.parents, lines),
        "has_controls": len(results.main_runs) < len(results.runs),
    }


# ---- Scores by stage ----


def scores(results: RecipeResults) -> dict[str, Any] | None:
    """Table of all scores: a column for each run, a group of rows for each dataset and scene."""
    groups = [_question_group(results, dataset) for dataset in results.datasets]
    groups += [_success_group(results, scene) for scene in results.scenes]
    if not groups:
        return None
    return {"runs": results.runs, "groups": groups}


def _question_group(results: RecipeResults, dataset: str) -> dict[str, Any]:
    title, color = dataset_title(dataset)
    tables = [run.kinds(dataset) for run in results.runs]
    mean_cells = [_mean_cell(table) for table in tables]
    rows = [{"name": "mean over kinds", "cells": mean_cells, "note": ""}]
    for kind in union(tables):
        cells = [_kind_cell(table[kind]) if kind in table else None for table in tables]
        notes = {cell["note"] for cell in cells if cell}
        row = {"name": as_words(kind), "cells": cells, "note": ""}
        if len(notes) == 1:  # the baselines of all runs are equal: show them once
            row["note"] = notes.pop()
            for cell in cells:
                if cell:
                    cell["note"] = ""
        rows.append(row)
    return {"title": title, "color": color, "rows": rows}


def _mean_cell(kinds: Mapping[str, Mapping[str, float]]) -> dict[str, Any] | None:
    """Mean accuracy over the kinds, the mean baselines, and the number of kinds above each."""
    if not kinds:
        return None
    baselines = {}
    above = []
    for name in BASELINES:
        baselines[name] = sum(kind[name] for kind in kinds.values()) / len(kinds)
        count = sum(kind["accuracy"] > kind[name] for kind in kinds.values())
        above.append(f"{name} {count}/{len(kinds)}")
    estimates = [accuracy_estimate(kind) for kind in kinds.values()]
    return _cell(mean(estimates), baselines, note=f"above {', '.join(above)}")


def _kind_cell(kind: Mapping[str, float]) -> dict[str, Any]:
    """Accuracy of one kind, and a warning if it is not clearly above a baseline."""
    value = accuracy_estimate(kind)
    baselines = {name: kind[name] for name in BASELINES}
    note = ", ".join(f"{name} {baselines[name]:.0%}" for name in BASELINES)
    not_above = [name for name in BASELINES if value.value <= baselines[name]]
    not_clearly_above = [name for name in BASELINES if value.low <= baselines[name]]
    cell = _cell(value, baselines, note=note)
    if not_above:
        cell["bad"] = f"not above {' and '.join(not_above)}"
    elif not_clearly_above:
        cell["doubtful"] = f"not clearly above {' and '.join(not_clearly_above)}"
    return cell


def _success_group(results: RecipeResults, scene: str) -> dict[str, Any]:
    values = {"all tasks": [run.success(scene) for run in results.runs]}
    tables = [run.task_rates(scene) for run in results.runs]
    for task in union(tables):
        values[task] = [table.get(task) for table in tables]
    rows = []
    for name, estimates in values.items():
        cells = [_cell(value, {}, show_count=True) if value else None for value in estimates]
        rows.append({"name": name, "cells": cells, "note": ""})
    return {"title": f"Success, {scene} scene", "color": scene_color(scene), "rows": rows}


def _cell(
    value: Estimate, baselines: Mapping[str, float], note: str = "", show_count: bool = False
) -> dict[str, Any]:
    return {
        "value": value,
        "baselines": baselines,
        "note": note,
        "show_count": show_count,
        "bad": "",
        "doubtful": "",
    }


# ---- Success by task, instruction following ----


def success_by_task(results: RecipeResults) -> dict[str, Any] | None:
    """Chart of the success rate by task and scene of each run that was run in closed loop."""
    panels = {}
    for run in results.acting_runs:
        groups = {"all tasks": {scene: run.success(scene) for scene in results.scenes}}
        tables = {scene: run.task_rates(scene) for scene in results.scenes}
        for task in union(tables.values()):
            groups[task] = {scene: table.get(task) for scene, table in tables.items()}
        panels[run.title] = groups
    if not panels:
        return None
    return _scene_bars(results, panels)


def _scene_bars(results: RecipeResults, panels: Mapping[str, Any]) -> dict[str, Any]:
    colors = {scene: scene_color(scene) for scene in results.scenes}
    legend = {f"{scene} scene": color for scene, color in colors.items()}
    return {"legend": legend, "chart": charts.bar_chart(panels, colors, "success rate")}


def interventions(results: RecipeResults) -> dict[str, Any] | None:
    """Success with right and wrong instructions and blank images, and the tables of task pairs."""
    tested = [run for run in results.acting_runs if len(run.scores["success"]) > 1]
    if not tested:
        return None
    panels = {}
    for run in tested:
        groups = {}
        for intervention, label in INTERVENTIONS.items():
            rates = {scene: run.success(scene, intervention) for scene in results.scenes}
            if any(rates.values()):
                groups[label] = rates
        panels[run.title] = groups
    pairs = []
    for pair in TASK_PAIRS:
        tables = []
        for run in tested:
            for scene in results.scenes:
                if pair[0] in run.task_rates(scene):
                    tables.append(_pair_table(run, scene, pair))
        if tables:
            pairs.append({"tasks": pair, "tables": tables})
    return _scene_bars(results, panels) | {"pairs": pairs}


def _pair_table(run: RunResults, scene: str, pair: tuple[str, str]) -> dict[str, Any]:
    """Success of each task of a pair with each instruction that the policy was given."""
    outcomes = defaultdict(list)
    for row in run.episodes():
        in_table = row["scene"] == scene and row["task"] in pair
        if in_table and row["intervention"] != "blank_image":
            outcomes[row["task"], row["instruction_of"]].append(int(row["success"]))
    instructions = union([pair, [instruction for _, instruction in outcomes]])
    rates = {}
    for task in pair:
        rates[task] = {}
        for instruction in instructions:
            successes = outcomes[task, instruction]
            rates[task][instruction] = rate(sum(successes), len(successes))
    return {"run": run.title, "scene": scene, "color": scene_color(scene), "rates": rates}


# ---- Benchmarks ----


def benchmarks(results: RecipeResults) -> dict[str, Any] | None:
    """Scores of each benchmark by run and setting, its protocol, and success by task."""
    names = union(run.benchmarks for run in results.runs)
    if not names:
        return None
    return {"benchmarks": [_benchmark(results, name) for name in names]}


def _benchmark(results: RecipeResults, name: str) -> dict[str, Any]:
    runs = [run for run in results.runs if name in run.benchmarks]
    rows = []
    panels = {}
    for run in runs:
        panels[run.title] = defaultdict(dict)
        for cell in run.benchmarks[name]:
            setting = _setting(cell)
            overall = cell["overall"]
            rows.append(
                {
                    "run": run.title,
                    "setting": setting,
                    "success": cell_rate(overall),
                    "progress": overall["progress"],
                    "intention": overall["intention"]["rate"],
                }
            )
            for task, task_scores in cell["tasks"].items():
                task_name = as_words(task.rpartition("/")[2])
                panels[run.title][task_name][setting] = cell_rate(task_scores)
    colors = charts.series_colors(list(dict.fromkeys(row["setting"] for row in rows)))
    protocols = {}
    for run in runs:
        protocols[run.title] = read_json(run.evaluation / name / "protocol.json", {})
    return {
        "name": name,
        "rows": rows,
        "protocol": _merge_settings(protocols, _PROTOCOL_FIELDS),
        "differences": _differing_fields(list(protocols.values())),
        "legend": colors,
        "chart": charts.bar_chart(panels, colors, "success rate"),
    }


def cell_rate(cell_scores: Mapping[str, Any]) -> Estimate | None:
    """Return the success rate in the scores of a benchmark's cell."""
    return rate(cell_scores["success"]["count"], cell_scores["trials"])


def _setting(cell: Mapping[str, Any]) -> str:
    label = INTERVENTIONS[cell["intervention"]]
    return f"{label}, {cell['perturbation']}" if cell["perturbation"] else label


def _differing_fields(protocols: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the protocol's fields in which runs differ, without those that describe the run."""
    fields = []
    for field in union(protocols):
        values = [protocol.get(field) for protocol in protocols]
        if field not in _RUN_FIELDS and any(value != values[0] for value in values):
            fields.append(field)
    return fields


# ---- Training curves ----


def training(results: RecipeResults) -> dict[str, Any] | None:
    """Curves of each run, and the pictures of the stages' plans."""
    curves = {}
    plans = {}
    for run in results.runs:
        if run.metrics:
            curves[run.title] = charts.training_chart(run.metrics)
        path = run.folder / "plan.png"
        if path.exists():
            plans[run.title] = embed_image(path.read_bytes())
    if not curves and not plans:
        return None
    without_metrics = [run.title for run in results.runs if not run.metrics]
    return {"curves": curves, "plans": plans, "without_metrics": without_metrics}


# ---- Configuration and definitions ----


def configuration(results: RecipeResults) -> dict[str, Any]:
    """Configs, protocol, seeds and versions, and the definitions of the scores."""
    summary = results.summary
    protocols = {}
    for run in results.runs:
        spec = run.scores.get("spec", {})
        numbers = {name: value for name, value in spec.items() if isinstance(value, int)}
        protocols[run.title] = numbers | dict(run.scores.get("protocol", {}))
    seeds = {f"seed of {name}": seed for name, seed in summary.get("seeds", {}).items()}
    versions = {"commit": summary["commit"]} if "commit" in summary else {}
    configs = {run.title: run.info["config"] for run in results.runs if "config" in run.info}
    tables = {
        "Configs": configs,
        "Evaluation protocol and seeds": _merge_settings(protocols) | seeds,
        "Versions": versions | summary.get("versions", {}),
    }
    return {
        "tables": {title: table for title, table in tables.items() if table},
        "min_iou": MIN_IOU,
        "max_distance": MAX_DISTANCE,
    }


def _merge_settings(
    settings_by_run: Mapping[str, Mapping[str, Any]], fields: Sequence[str] | None = None
) -> dict[str, str]:
    """Return each field's value; if runs differ, all values with the titles of their runs."""
    merged = {}
    for field in union(settings_by_run.values()) if fields is None else fields:
        runs_by_value = defaultdict(list)
        for title, settings in settings_by_run.items():
            if field in settings:
                runs_by_value[str(settings[field])].append(title)
        if len(runs_by_value) == 1:
            merged[field] = next(iter(runs_by_value))
        elif runs_by_value:
            values = [f"{value} ({', '.join(runs)})" for value, runs in runs_by_value.items()]
            merged[field] = "; ".join(values)
    return merged
