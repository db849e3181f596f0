"""Results of a study: study.csv, runs.csv and summary.json, from the runs that are finished.

A published study has these files, so the report (`etcvla/pages/study.py`) reads nothing else.
"""

from __future__ import annotations

import itertools
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from etcvla.eval import paired
from etcvla.files import write_csv, write_json
from etcvla.study import collect
from etcvla.study.config import METRICS
from etcvla.study.episode_table import EpisodeTable

RETENTION = {"naming": "name", "pointing": "point", "boxes": "box"}  # column -> kind of questions
RUN_COLUMNS = (
    "cell",
    "seed",
    "position",
    "name",
    "stage",
    "init",
    "key",
    "steps",
    "flops",
    "action_rows",
    "etc_segments",
    "seconds",
    "evaluation_seconds",
    *RETENTION,
    "embedding_drift",
)
# Metrics of the scores with other words than the right ones, or without an image.
CONTROL_METRICS = ("intention", "language")
# Metrics of the last run of a cell, for each tier: columns of runs.csv such as "intention_C".
_RUN_METRICS = ("success", "intention")
_POINTS = 100  # contrasts are in percentage points


def write_results(workdir: str) -> dict[str, Any]:
    """Write study.csv, runs.csv and summary.json into a study's folder; return the summary.

    Raises UserError if the folder has no study, or a result lacks what a contrast needs.
    """
    folder = pathlib.Path(workdir)
    study = collect.read_study(workdir)
    table = EpisodeTable(collect.episode_rows(workdir))
    runs = _run_rows(collect.run_results(workdir), table)
    summary = summarize(study, table)
    episodes = [row.values() for row in table.rows]
    write_csv(folder / "study.csv", collect.EPISODE_COLUMNS, episodes)
    columns = dict.fromkeys(RUN_COLUMNS, "")
    for row in runs:
        columns |= dict.fromkeys(row, "")
    write_csv(folder / "runs.csv", columns, [{**columns, **row}.values() for row in runs])
    write_json(folder / "summary.json", summary)
    return summary


def _run_rows(results: Iterable[Mapping[str, Any]], table: EpisodeTable) -> list[dict[str, Any]]:
    """Return the lines of runs.csv: one for each cell, seed and run of the cell's chain."""
    rows = []
    for result in results:
        row = {column: result.get(column, "") for column in RUN_COLUMNS}
        row.update(_retention(result))
        if result["position"] == -1:
            for tier in table.tiers:
                for metric in _RUN_METRICS:
                    values = table.layout_values(result["cell"], result["seed"], metric, tier)
                    if values:
                        mean = float(np.mean(list(values.values())))
                        row[f"{metric}_{tier}"] = round(mean, 4)
        rows.append(row)
    return rows


def _retention(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the accuracies of a run on what the base model knows, by column."""
    retention = {}
    for kinds in result.get("scores", {}).get("questions", {}).values():
        for column, kind in RETENTION.items():
            if kind in kinds:
                retention[column] = round(kinds[kind]["accuracy"], 4)
    return retention


def summarize(study: Mapping[str, Any], table: EpisodeTable) -> dict[str, Any]:
    """Return the content of summary.json.

    Keys:
      study: its name.
      chance: share of the objects of a layout that are named; None for simulators without layouts.
      cells: cell -> {"planned", "finished"}: lists of seeds.
      scores: list of {"cell", "metric", "tier", "intervention", "value", "low", "high", "seeds"};
        values in [0, 1], "seeds" maps each seed to its value.
      contrasts: see `contrast`. Confirmatory contrasts are tested in their order, others are
        adjusted by Holm's method within their block.
      gates: see `gate`.

    Args:
      study: content of study.json.
    """
    cells = {}
    for entry in study["cells"]:
        cell = cells.setdefault(entry["cell"], {"planned": [], "finished": []})
        cell["planned"].append(entry["seed"])
        if table.has_results(entry["cell"], entry["seed"]):
            cell["finished"].append(entry["seed"])
    contrasts = []
    for fields in study["contrasts"]:
        contrasts.append(contrast(fields, cells[fields["a"]]["finished"], table))
    gates = []
    for fields in study["gates"]:
        gates.append(gate(fields, cells[fields["cell"]]["finished"], table))
    _judge(contrasts)
    return {
        "study": study["study"],
        "chance": table.chance(),
        "cells": cells,
        "scores": _scores(cells, table),
        "contrasts": contrasts,
        "gates": gates,
    }


def _scores(cells: Mapping[str, Any], table: EpisodeTable) -> list[dict[str, Any]]:
    scores = []
    for cell in cells:
        for intervention in table.interventions:
            metrics = METRICS
            tiers = table.tiers
            if intervention != "right":
                metrics = CONTROL_METRICS
                tiers = [tier for tier in tiers if ":" not in tier]
            for metric, tier in itertools.product(metrics, tiers):
                seeds = cells[cell]["finished"]
                found = score(table, cell, seeds, metric, tier, intervention)
                if found:
                    scores.append(found)
    return scores


def score(
    table: EpisodeTable,
    cell: str,
    seeds: Sequence[int],
    metric: str,
    tier: str,
    intervention: str = "right",
) -> dict[str, Any] | None:
    """Return a cell's score, the mean over seeds of means over layouts; None without trials."""
    by_seed = {}
    for seed in seeds:
        values = table.layout_values(cell, seed, metric, tier, intervention)
        if values:
            by_seed[seed] = np.array(list(values.values()))
    if not by_seed:
        return None
    fields = {"cell": cell, "metric": metric, "tier": tier, "intervention": intervention}
    return {**fields, **_estimate(by_seed, "value", 1)}


def _estimate(by_seed: Mapping[int, np.ndarray], name: str, scale: float) -> dict[str, Any]:
    """Return the mean over seeds under `name`, its interval and the mean of each seed, scaled."""
    means = {seed: scale * float(np.mean(values)) for seed, values in by_seed.items()}
    limits = [scale * limit for limit in paired.two_level_interval(list(by_seed.values()))]
    low, high = [round(limit, 4) if math.isfinite(limit) else None for limit in limits]
    seeds = {seed: round(value, 4) for seed, value in means.items()}
    value = round(float(np.mean(list(means.values()))), 4)
    return {name: value, "low": low, "high": high, "seeds": seeds}


def contrast(
    fields: Mapping[str, Any], seeds: Sequence[int], table: EpisodeTable
) -> dict[str, Any]:
    """Return the result of a contrast, over the seeds and layouts that both cells have.

    Keys: those of `fields` and
      estimate, low, high: mean of a - b with its 95 % interval, percentage points. None without
        results; the limits are None for one seed.
      p: of the two-sided sign flip test against min(margin, 0).
      seeds: seed -> difference. layouts: number of layouts of each seed, the smallest one.
      detectable: the difference that these seeds detect with 80 % power, percentage points.

    Args:
      fields: of a `config.Contrast`.
      seeds: of the cell a.
    """
    by_seed = {}
    for seed in seeds:
        differences = _layout_differences(fields, seed, table)
        if differences:
            by_seed[seed] = np.array(differences)
    empty = {"estimate": None, "low": None, "high": None, "seeds": {}}
    result = {**fields, **(_estimate(by_seed, "estimate", _POINTS) if by_seed else empty)}
    differences = np.array(list(result["seeds"].values()))
    result["p"] = paired.sign_flip(differences - min(fields["margin"], 0))
    result["layouts"] = min(map(len, by_seed.values()), default=0)
    result["detectable"] = None
    if len(differences) > 1:
        deviation = float(np.std(differences, ddof=1))
        detectable = paired.detectable_difference(deviation, len(differences))
        result["detectable"] = round(detectable, 2)
    return result


def _layout_differences(fields: Mapping[str, Any], seed: int, table: EpisodeTable) -> list[float]:
    """Return a - b of each layout that both arms have with this seed."""
    arms = []
    for arm in (fields["a"], fields["b"]):
        arms.append(table.layout_values(arm, seed, fields["metric"], fields["tier"]))
    ours, theirs = arms
    return [value - theirs[layout] for layout, value in ours.items() if layout in theirs]


def _judge(contrasts: Sequence[dict[str, Any]]) -> None:
    """Add "p_adjusted" and "verdict" to contrasts."""
    blocks: dict[str, list[dict[str, Any]]] = {}
    for result in contrasts:
        blocks.setdefault(result["block"], []).append(result)
    for block, results in blocks.items():
        adjust = paired.fixed_order if block == "confirmatory" else paired.holm
        adjusted = adjust([result["p"] for result in results])
        for result, p_value in zip(results, adjusted, strict=True):
            result["p_adjusted"] = p_value
            low = -math.inf if result["low"] is None else result["low"]
            high = math.inf if result["high"] is None else result["high"]
            result["verdict"] = paired.verdict(low, high, p_value, result["margin"])


def gate(fields: Mapping[str, Any], seeds: Sequence[int], table: EpisodeTable) -> dict[str, Any]:
    """Return whether a gate holds: whether a score, or its excess over another tier, is in range.

    Keys: those of `fields`, "value" (None without results) and "holds".

    Args:
      fields: of a `config.Gate`.
      seeds: of its cell.
    """
    values = []
    for tier in filter(None, (fields["tier"], fields["minus"])):
        found = score(table, fields["cell"], seeds, fields["metric"], tier, fields["intervention"])
        values.append(found and found["value"])
    value = None
    if None not in values:
        value = round(values[0] - sum(values[1:]), 4)
    holds = value is not None and fields["low"] <= value <= fields["high"]
    return {**fields, "value": value, "holds": holds}
