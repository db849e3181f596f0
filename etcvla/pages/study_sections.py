"""Data of the sections of a study's report.

Each function returns the variable `data` of the section's template, or None without results.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from markupsafe import Markup

from etcvla.files import read_csv
from etcvla.pages import study_charts
from etcvla.pages.cards import MAX_BYTES, to_webp
from etcvla.pages.charts import series_colors
from etcvla.pages.results import union
from etcvla.pages.templates import embed_image, percent
from etcvla.results_schema import INTERVENTIONS, video_stem

RETENTION = ("naming", "pointing", "boxes")  # columns of runs.csv
METRICS = {
    "intention": "Intention: share of the trials in which the named object is touched first",
    "success": "Success",
    "progress": "Progress: reached share of the subtasks",
}
# Metrics in a training log -> panel of the learning curves.
_CURVES = {
    r"loss/flow": "flow matching loss",
    r"etc/.*/name/accuracy": "naming accuracy",
    r"act/[^/]*/intention": "intention while training",
}
_MAX_VIDEOS = 6  # layouts with two videos each

_Table = dict[str, dict[str, dict[str, Any]]]  # row -> column -> score


@dataclasses.dataclass(frozen=True)
class StudyResults:
    """Results of a study.

    Attributes:
      folder: of the study.
      summary: content of summary.json.
      runs: lines of runs.csv.
      protocol: content of protocol.json; {} if there is none.
    """

    folder: epath.Path
    summary: Mapping[str, Any]
    runs: Sequence[Mapping[str, str]]
    protocol: Mapping[str, Any]

    @property
    def unfinished(self) -> dict[str, list[int]]:
        """Cell -> its seeds without results."""
        cells = {}
        for name, cell in self.summary["cells"].items():
            seeds = [seed for seed in cell["planned"] if seed not in cell["finished"]]
            if seeds:
                cells[name] = seeds
        return cells

    @property
    def main_cells(self) -> list[str]:
        """Cells of the confirmatory contrasts, or all if there are none: those in the charts."""
        contrasts = self.summary["contrasts"]
        confirmatory = [entry for entry in contrasts if entry["block"] == "confirmatory"]
        named = union((entry["a"], entry["b"]) for entry in confirmatory)
        return [cell for cell in self.summary["cells"] if cell in named or not named]

    @property
    def colors(self) -> dict[str, str]:
        """Colour of each of the main cells."""
        return series_colors(self.main_cells)

    def chains(self) -> Iterator[tuple[str, list[Mapping[str, str]]]]:
        """Yield (cell, lines of its runs in their order) for each seed of each cell."""
        by_seed = defaultdict(list)
        for row in self.runs:
            by_seed[row["cell"], row["seed"]].append(row)
        for (cell, _), rows in by_seed.items():
            yield cell, rows

    def stages(self, cell: str) -> str:
        """Return the stages of a cell in words, as far as its runs are finished."""
        for name, rows in self.chains():
            if name == cell:
                return " → ".join(row["stage"].replace("_", " ") for row in rows)
        return ""

    def scores(self, metric: str) -> _Table:
        """Return cell -> tier -> score with the right instruction."""
        table: _Table = {}
        for score in self.summary["scores"]:
            if (score["metric"], score["intervention"]) == (metric, "right"):
                table.setdefault(score["cell"], {})[score["tier"]] = score
        return table


def tier_label(tier: str) -> str:
    """Write tiers in words: "B+C" as "B and C", "C:both" as "C, both words new"."""
    tiers, _, novelty = tier.partition(":")
    words = " and ".join(tiers.split("+"))
    if novelty == "both":
        return f"{words}, both words new"
    return f"{words}, {novelty} new" if novelty else words


# ---- Contrasts, gates, scores ----


def contrasts(results: StudyResults) -> dict[str, Any] | None:
    """Chart and table of the contrasts: those that are tested in order, and all others."""
    groups = defaultdict(list)
    for result in results.summary["contrasts"]:
        is_confirmatory = result["block"] == "confirmatory"
        groups["confirmatory" if is_confirmatory else "exploratory"].append(result)
    if not groups:
        return None
    content = {}
    for group, entries in groups.items():
        labels = [f"{result['name']}\n{describe(result)}" for result in entries]
        chart = study_charts.forest_chart(entries, labels)
        content[group] = {"chart": chart, "rows": [_contrast_row(entry) for entry in entries]}
    return {"groups": content}


def describe(result: Mapping[str, Any]) -> str:
    """Write what a contrast compares, such as "RY − AN, intention on C, both words new"."""
    return f"{result['a']} − {result['b']}, {result['metric']} on {tier_label(result['tier'])}"


def _contrast_row(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the texts of a contrast's line in the table."""
    estimate = "–"
    interval = "–"
    if result["estimate"] is not None:
        estimate = f"{result['estimate']:+.1f}"
    if result["low"] is not None:
        interval = f"{result['low']:+.1f} to {result['high']:+.1f}"
    detectable = result["detectable"]
    return {
        "name": result["name"],
        "compares": describe(result),
        "block": result["block"],
        "estimate": estimate,
        "interval": interval,
        "margin": f"{result['margin']:+g}",
        "p": f"{result['p']:.3f} ({result['p_adjusted']:.3f})",
        "seeds": f"{len(result['seeds'])} ({result['layouts']})",
        "detectable": "–" if detectable is None else f"{detectable:.1f}",
        "verdict": result["verdict"],
    }


def gates(results: StudyResults) -> dict[str, Any] | None:
    """Return the gates, with what they measure in words."""
    rows = []
    for gate in results.summary["gates"]:
        measured = f"{gate['metric']} of {gate['cell']} on {tier_label(gate['tier'])}"
        if gate["minus"]:
            measured += f" minus {tier_label(gate['minus'])}"
        if gate["intervention"] != "right":
            measured += f", {INTERVENTIONS[gate['intervention']]}"
        rows.append({**gate, "measured": measured})
    return {"rows": rows} if rows else None


def scores(results: StudyResults) -> dict[str, Any] | None:
    """Tables of each metric by cell and tier."""
    tables = {}
    for metric, title in METRICS.items():
        cells = results.scores(metric)
        if cells:
            tables[metric] = {"title": title, "cells": cells, "tiers": union(cells.values())}
    if not tables:
        return None
    return {"tables": tables, "tier_label": tier_label, "stages": results.stages}


def language(results: StudyResults) -> dict[str, Any] | None:
    """Chart of intention with right, wrong and no words, and the effect of naming an object."""
    panels: dict[str, Any] = {}
    found = set()
    main_cells = results.main_cells
    for score in results.summary["scores"]:
        is_whole_tier = ":" not in score["tier"]
        if score["metric"] == "intention" and is_whole_tier and score["cell"] in main_cells:
            found.add(score["intervention"])
            cells = panels.setdefault(f"tier {score['tier']}", {})
            cells.setdefault(score["cell"], {})[score["intervention"]] = score
    if len(found) < 2:
        return None
    labels = {name: label for name, label in INTERVENTIONS.items() if name in found}
    chart = study_charts.control_chart(panels, labels, results.summary["chance"])
    cells = results.scores("language")
    tiers = union(cells.values())
    return {"chart": chart, "cells": cells, "tiers": tiers, "tier_label": tier_label}


# ---- Retention, learning curves, costs ----


def retention(results: StudyResults) -> dict[str, Any] | None:
    """Charts of what the base model knew after each stage, and against intention."""
    chains = [rows for _, rows in results.chains()]
    rows = itertools.chain(*sorted(chains, key=len, reverse=True))
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    panels = {}
    for column in RETENTION:
        curves = {}
        for cell, by_stage in _retention_by_stage(results, column).items():
            points = []
            for stage in filter(by_stage.get, stages):
                points.append((stages.index(stage), float(np.mean(by_stage[stage]))))
            curves[cell] = points
        if curves:
            panels[column] = curves
    if not panels:
        return None
    chart = study_charts.curve_chart(
        panels,
        results.colors,
        xlabel="after the stage",
        xticks=[stage.replace("_", "\n") for stage in stages],
        shares=RETENTION,
    )
    return {"chart": chart, "scatter": _scatter(results), "rows": _retention_rows(results)}


def _retention_by_stage(results: StudyResults, column: str) -> dict[str, dict[str, list[float]]]:
    """Return cell -> stage -> accuracy of each seed."""
    values: dict[str, dict[str, list[float]]] = {}
    for cell, rows in results.chains():
        for row in rows:
            if row[column] and cell in results.main_cells:
                by_stage = values.setdefault(cell, {})
                by_stage.setdefault(row["stage"], []).append(float(row[column]))
    return values


def _scatter(results: StudyResults) -> Markup | None:
    """Return the chart of naming after the last run against intention, with a panel per tier."""
    panels = {}
    for tier in union(results.scores("intention").values()):
        points = defaultdict(list)
        for row in results.runs:
            intention = row.get(f"intention_{tier}")
            is_shown = row["position"] == "-1" and row["cell"] in results.main_cells
            if is_shown and row["naming"] and intention:
                points[row["cell"]].append((float(row["naming"]), float(intention)))
        if points and ":" not in tier:
            panels[f"tier {tier}"] = points
    if not panels:
        return None
    return study_charts.scatter_chart(panels, results.colors, "naming", "intention")


def _retention_rows(results: StudyResults) -> list[list[str]]:
    """Return the lines of the table: mean accuracies after the last run, and the largest drift."""
    rows = []
    for cell in results.summary["cells"]:
        runs = [row for row in results.runs if row["cell"] == cell]
        texts = [cell]
        for column in RETENTION:
            values = [float(row[column]) for row in runs if row["position"] == "-1" and row[column]]
            texts.append(percent(np.mean(values)) if values else "–")
        drifts = [float(row["embedding_drift"]) for row in runs if row["embedding_drift"]]
        texts.append(f"{max(drifts):.3f}" if drifts else "–")
        rows.append(texts)
    return rows


def learning(results: StudyResults) -> dict[str, Any] | None:
    """Curves over the steps of all runs of a cell, means over seeds."""
    panels: dict[str, dict[str, dict[int, list[float]]]] = {}
    for cell, rows in results.chains():
        first_step = 0
        for row in rows if cell in results.main_cells else []:
            for step, title, value in _logged(results.folder / "runs" / row["key"]):
                curve = panels.setdefault(title, {}).setdefault(cell, {})
                curve.setdefault(first_step + step, []).append(value)
            first_step += int(row["steps"])
    if not panels:
        return None
    means = {}
    for title in sorted(panels, key=list(_CURVES.values()).index):
        means[title] = {}
        for cell, by_step in panels[title].items():
            steps = sorted(by_step)
            means[title][cell] = [(step, float(np.mean(by_step[step]))) for step in steps]
    shares = [title for title in means if "loss" not in title]
    chart = study_charts.curve_chart(means, results.colors, xlabel="step", shares=shares)
    return {"chart": chart}


def _logged(folder: epath.Path) -> Iterator[tuple[int, str, float]]:
    """Yield (step, panel, value) of the metrics in a run's log that have a panel."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    for line in lines:
        row = json.loads(line)
        for name, value in row.items():
            for pattern, title in _CURVES.items():
                if re.fullmatch(pattern, name):
                    yield row["step"], title, value


def costs(results: StudyResults) -> dict[str, Any] | None:
    """Table of what each cell's training consumes, over all its runs."""
    matching = results.protocol.get("matching", {})
    if not matching:
        return None
    seconds = defaultdict(list)
    for cell, rows in results.chains():
        seconds[cell].append(sum(float(row["seconds"]) for row in rows))
    rows = []
    for cell, cost in matching.items():
        minutes = f"{np.mean(seconds[cell]) / 60:.0f} min" if seconds[cell] else "–"
        rows.append(
            [
                cell,
                f"{cost['flops'] / 1e12:,.0f}",
                f"{cost['action_rows']:,}",
                f"{cost['etc_segments']:,}",
                minutes,
            ]
        )
    return {"rows": rows, "matched": results.protocol["hypotheses"]["matched"]}


# ---- Videos ----


def videos(results: StudyResults) -> dict[str, Any] | None:
    """Videos of trials that both arms of the first contrast recorded, side by side."""
    if not results.summary["contrasts"]:
        return None
    first = results.summary["contrasts"][0]
    by_arm = [_recorded(results, first[arm]) for arm in ("a", "b")]
    shared = [trial for trial in by_arm[0] if trial in by_arm[1]]
    pairs = []
    num_bytes = 0
    for trial in shared[:_MAX_VIDEOS]:
        arms = []
        for arm, recorded in zip((first["a"], first["b"]), by_arm, strict=True):
            row, path = recorded[trial]
            data = to_webp(path)
            num_bytes += len(data)
            arms.append({"cell": arm, "row": row, "image": embed_image(data)})
        if num_bytes > MAX_BYTES:
            break
        pairs.append({"row": arms[0]["row"], "arms": arms})
    return {"pairs": pairs, "num_available": len(shared)} if pairs else None


def _recorded(results: StudyResults, cell: str) -> dict[tuple, tuple[Mapping, epath.Path]]:
    """Return (seed, scene, task, trial) -> (line of episodes.csv, video) of a cell's last runs.

    Scenes take turns.
    """
    recorded = {}
    for run in results.runs:
        if run["cell"] != cell or run["position"] != "-1":
            continue
        folder = results.folder / "runs" / run["key"] / "evaluation"
        for row in read_csv(folder / "episodes.csv"):
            video = folder / "videos" / f"{video_stem(row)}.gif"
            if row["intervention"] == "right" and video.exists():
                key = (run["seed"], row["scene"], row["task"], row["trial"])
                recorded[key] = (row, video)
    return dict(sorted(recorded.items(), key=lambda item: (int(item[0][3]), item[0][:3])))


def protocol(results: StudyResults) -> dict[str, Any] | None:
    """Return the protocol with the runs of each cell in words."""
    if not results.protocol:
        return None
    cells = {}
    for name, cell in results.protocol["hypotheses"]["cells"].items():
        runs = []
        for run in cell["runs"]:
            changes = ", ".join(f"{field} = {value}" for field, value in run["changes"])
            runs.append({"stage": run["stage"], "init": run["init"], "changes": changes})
        cells[name] = {"runs": runs, "seeds": cell["seeds"]}
    return {"protocol": results.protocol, "cells": cells}
