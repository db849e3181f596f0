"""Data of the report's sections about scores, training and configuration.

Each function returns the variable `data` of the section's template, or None without results.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from etcvla.etc.score import MAX_DISTANCE, MIN_IOU
from etcvla.pages import charts
from etcvla.pages.measures import group_rate, run_measures, scene_color
from etcvla.pages.results import ALL_TASKS, RecipeResults, RunResults, read_json, union
from etcvla.pages.templates import as_words, embed_image, fraction, interval, percent
from etcvla.results_schema import INTERVENTIONS, setting_of
from etcvla.stats import rate

TASK_PAIRS = (("drawer-open", "drawer-close"),)  # tasks with the same start state and appearance
# Fields of a benchmark's protocol.json that the report shows.
_PROTOCOL_FIELDS = ("trials", "max_steps", "execution", "replan_steps", "seed")
# Fields of protocol.json that describe the run, so they may differ between runs.
_RUN_FIELDS = ("checkpoint", "policy", "action_horizon")

_Settings = dict[str, dict[str, list[str]]]  # field -> value -> titles of the runs with this value


def scores(results: RecipeResults) -> dict[str, Any] | None:
    """Chart and table of all scores by run."""
    measures = run_measures(results)
    if not measures:
        return None
    return {
        "chart": charts.stage_chart(results.runs, results.parents, measures),
        "has_controls": len(results.main_runs) < len(results.runs),
        "runs": results.runs,
        "measures": measures,
    }


# ---- Success by task, instruction following ----


def success_by_task(results: RecipeResults) -> dict[str, Any] | None:
    """Chart of the success rate by task and scene of each run that was run in closed loop."""
    panels = {}
    for run in results.acting_runs:
        groups = defaultdict(dict)
        for scene in results.scenes:
            for task, value in run.success(scene).items():
                groups[task][scene] = value
        panels[run.title] = groups
    if not panels:
        return None
    return _scene_bars(results, panels)


def _scene_bars(results: RecipeResults, panels: charts.BarPanels) -> dict[str, Any]:
    colors = {scene: scene_color(scene) for scene in results.scenes}
    return {"legend": colors, "chart": charts.bar_chart(panels, colors, "success rate")}


def interventions(results: RecipeResults) -> dict[str, Any] | None:
    """Success by intervention, the tables of task pairs, and the language control."""
    panels = {}
    pair_tables = defaultdict(list)
    for run in results.acting_runs:
        if len(run.scores["success"]) == 1:
            continue  # the run was evaluated with right instructions only
        groups = defaultdict(dict)
        for scene in results.scenes:
            for intervention in run.scores["success"]:
                value = run.success(scene, intervention)[ALL_TASKS]
                groups[INTERVENTIONS[intervention]][scene] = value
            for pair in TASK_PAIRS:
                if pair[0] in run.success(scene):
                    pair_tables[pair].append(_pair_table(run, scene, pair))
        panels[run.title] = groups
    data = {"language": _language_table(results), "pairs": pair_tables}
    if panels:
        data |= _scene_bars(results, panels)
    return data if panels or data["language"] else None


def _pair_table(run: RunResults, scene: str, pair: tuple[str, str]) -> dict[str, Any]:
    """Success of each task of a pair with the instruction of each of the two tasks."""
    outcomes = defaultdict(list)
    for row in run.episodes():
        is_plain = row["scene"] == scene and not setting_of(row)
        if is_plain and row["intervention"] in ("right", "wrong_instruction"):
            outcomes[row["task"], row["instruction_of"]].append(int(row["success"]))
    rates = defaultdict(dict)
    for task in pair:
        for instruction in pair:
            successes = outcomes[task, instruction]
            rates[task][instruction] = rate(sum(successes), len(successes))
    return {"run": run.title, "scene": scene, "color": scene_color(scene), "rates": rates}


def _language_table(results: RecipeResults) -> dict[str, Any] | None:
    """Return the effect of words on what is touched, by run, setting and intervention."""
    cells = defaultdict(dict)
    for run in results.runs:
        for benchmark in ["", *run.benchmarks]:
            for group in run.language(benchmark):
                setting = ", ".join([f"scene {group['scene']}", *setting_of(group)])
                key = (run.title, setting, group["novelty"], str(group["layouts"]))
                cells[key][group["intervention"]] = _language_cell(group)
    found = union(cells.values())
    shown = {name: label for name, label in INTERVENTIONS.items() if name in found}
    blank = dict.fromkeys(shown, "–")
    rows = [[*key, *(blank | row).values()] for key, row in cells.items()]
    columns = ["run", "setting", "new words", "layouts", *shown.values()]
    return {"columns": columns, "rows": rows} if rows else None


def _language_cell(group: Mapping[str, Any]) -> str:
    interval = f"[{100 * group['low']:+.0f}, {100 * group['high']:+.0f}]"
    shares = f"{percent(group['named'])} named, {percent(group['unnamed'])} not"
    return f"{100 * group['difference']:+.0f} {interval} ({shares})"


# ---- Benchmarks ----


def benchmarks(results: RecipeResults) -> dict[str, Any] | None:
    """Scores of each benchmark by run and setting, its protocol, and success by task."""
    names = union(run.benchmarks for run in results.runs)
    if not names:
        return None
    return {"benchmarks": {name: _benchmark(results, name) for name in names}}


def _benchmark(results: RecipeResults, name: str) -> dict[str, Any]:
    rows = []
    shown = []
    panels = {}
    protocols = {}
    for run in results.runs:
        if name not in run.benchmarks:
            continue
        protocols[run.title] = read_json(run.evaluation / name / "protocol.json", {})
        bars = defaultdict(dict)
        has_scenes = len({group["scene"] for group in run.benchmarks[name]}) > 1
        for group in run.benchmarks[name]:
            scene = [group["scene"]] if has_scenes else []
            setting = ", ".join([INTERVENTIONS[group["intervention"]], *setting_of(group)])
            shown.append(setting)
            name_cell = ", ".join([*scene, setting])
            rows.append([run.title, name_cell, *_benchmark_cells(group["overall"])])
            for task, task_scores in group["tasks"].items():
                task_name = ", ".join([as_words(task.rpartition("/")[2]), *scene])
                bars[task_name][setting] = group_rate(task_scores)
        panels[run.title] = bars
    settings = _merge_settings(protocols)
    differing = [name for name, by_value in settings.items() if len(by_value) > 1]
    colors = charts.series_colors(union([shown]))
    return {
        "rows": rows,
        "protocol": {name: settings[name] for name in _PROTOCOL_FIELDS if name in settings},
        "differences": [name for name in differing if name not in _RUN_FIELDS],
        "legend": colors,
        "chart": charts.bar_chart(panels, colors, "success rate"),
    }


def _benchmark_cells(scores: Mapping[str, Any]) -> list[str]:
    """Write the success rate, progress and intention of a group of episodes."""
    success = group_rate(scores)
    return [
        f"{percent(success.value)} ({interval(success)}, {fraction(success)})",
        f"{scores['progress']:.2f}",
        percent(scores["intention"]["rate"]),
    ]


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
    return {"runs": results.runs, "curves": curves, "plans": plans}


# ---- Configuration and definitions ----


def configuration(results: RecipeResults) -> dict[str, Any]:
    """Configs, protocol, seeds and versions, and the definitions of the scores."""
    protocols = {}
    for run in results.runs:
        spec = run.scores.get("spec", {})
        numbers = {name: value for name, value in spec.items() if isinstance(value, int)}
        protocols[run.title] = numbers | run.scores.get("protocol", {})
    return {
        "configs": {run.title: run.info["config"] for run in results.runs if "config" in run.info},
        "protocol": _merge_settings(protocols),
        "summary": results.summary,
        "min_iou": MIN_IOU,
        "max_distance": MAX_DISTANCE,
    }


def _merge_settings(settings_by_run: Mapping[str, Mapping[str, Any]]) -> _Settings:
    """Group the runs by the value of each setting."""
    merged: _Settings = {}
    for title, settings in settings_by_run.items():
        for field, value in settings.items():
            merged.setdefault(field, {}).setdefault(str(value), []).append(title)
    return merged
