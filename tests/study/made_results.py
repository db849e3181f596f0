"""Write the folder of a study with synthetic results, as workers and their evaluations do."""

import csv
import json
import pathlib

import numpy as np
from PIL import Image

from etcvla.results_schema import EPISODE_COLUMNS, video_stem

CELLS = {
    "AN": "actions only",
    "MN": "actions and base replay",
    "EN": "actions and ETC",
    "EY": "two stages with ETC",
    "RY": "two stages with ETC and replay",
    "AY": "two stages, then actions only",
}
SEEDS = tuple(range(6))
TIERS = ("A", "B", "C", "N")
OBJECTS = ("red cube", "red ball", "blue cube", "blue ball", "green can")
NOVELTIES = {
    "red cube": "both",
    "red ball": "color",
    "blue cube": "noun",
    "blue ball": "none",
    "green can": "none",
}
# Probability that the named object is touched, by cell: known words, new words.
SKILL = {
    "AN": (0.9, 0.52),
    "MN": (0.86, 0.7),
    "EN": (0.88, 0.6),
    "EY": (0.84, 0.4),
    "RY": (0.88, 0.74),
    "AY": (0.9, 0.5),
}
NAMING = {"AN": 0.35, "MN": 0.98, "EN": 0.85, "EY": 0.6, "RY": 0.99, "AY": 0.4}
CONTRASTS = (
    ("the recipe on new words", "RY", "AN", "intention", "C:both", 8.0, "confirmatory"),
    ("trajectory coupling", "RY", "MN", "intention", "B+C", 8.0, "confirmatory"),
    ("known words not worse", "RY", "AN", "intention", "A", -5.0, "confirmatory"),
    ("stage 1 without replay", "EY", "EN", "intention", "C", 8.0, "order"),
    ("stage 1 before actions only", "AY", "AN", "language", "C", 8.0, "order"),
)
GATES = (
    ("G1: acts on known words", "AN", "A", "", "right", 0.7, 1.0),
    ("G1: finds nothing without words", "AN", "A", "", "no_instruction", 0.15, 0.25),
    ("G2: known minus new words", "AN", "A", "C", "right", 0.15, 1.0),
)


def write_made_study(folder: pathlib.Path, *, seeds=SEEDS, layouts=8, unfinished=()) -> None:
    """Write a study with results.

    Args:
      seeds: of all cells.
      layouts: number of layouts of each tier.
      unfinished: (cell, seed) without results.
    """
    cells = []
    for cell in CELLS:
        for seed in seeds:
            keys = [f"{name}{seed}" for name in _chain(cell)]
            runs = [{"key": key, "evaluation": "e0"} for key in keys]
            cells.append({"cell": cell, "seed": seed, "runs": runs})
            if (cell, seed) not in unfinished:
                _write_runs(folder, cell, seed, keys, layouts)
    content = {
        "study": "made",
        "matched": "action_rows",
        "contrasts": [contrast(*fields) for fields in CONTRASTS],
        "gates": [gate(*fields) for fields in GATES],
        "cells": cells,
    }
    (folder / "study.json").write_text(json.dumps(content))
    (folder / "protocol.json").write_text(json.dumps(_protocol(content)))


def contrast(name, a, b, metric, tier, margin=8.0, block="confirmatory"):
    """Return the fields of a contrast."""
    fields = {"name": name, "a": a, "b": b, "metric": metric, "tier": tier}
    return {**fields, "margin": margin, "block": block, "matched": ""}


def gate(name, cell, tier, minus, intervention, low, high):
    """Return the fields of a gate."""
    fields = {"name": name, "cell": cell, "metric": "intention", "tier": tier, "minus": minus}
    return {**fields, "intervention": intervention, "low": low, "high": high}


def _chain(cell):
    return [f"{cell}-first", cell] if cell.endswith("Y") else [cell]


def _protocol(content):
    matching = {}
    for i, cell in enumerate(CELLS):
        matching[cell] = {"flops": 10**15, "action_rows": 64_000, "etc_segments": 40_000 * i}
    by_cell = {}
    for cell in CELLS:
        run = {"name": cell, "stage": "retentive_adapt", "init": "base", "changes": []}
        by_cell[cell] = {"seeds": list(SEEDS), "runs": [run]}
    hypotheses = {
        "matched": "action_rows",
        "contrasts": content["contrasts"],
        "evaluation": {"simulator": "tabletop", "trials": 40},
        "cells": by_cell,
    }
    return {
        "study": "made",
        "sha256": "ab" * 32,
        "written": "2026-11-28T17:00:00+00:00",
        "commit": "0123456789abcdef",
        "matching": matching,
        "hypotheses": hypotheses,
        "changes": [],
    }


def _write_runs(folder, cell, seed, keys, layouts):
    for position, key in enumerate(keys):
        run = folder / "runs" / key
        (run / "evaluation/videos").mkdir(parents=True)
        is_last = position == len(keys) - 1
        naming = NAMING[cell] if is_last else 0.97
        result = {
            "name": _chain(cell)[position],
            "stage": "retentive_adapt" if is_last else "distribution_bridge",
            "seed": seed,
            "key": key,
            "init": "base",
            "steps": 4000 if is_last else 1500,
            "evaluation": "e0",
            "seconds": 900.0 + seed,
            "evaluation_seconds": 60.0,
            "flops": 10**15,
            "action_rows": 64_000 * is_last,
            "etc_segments": 12_000,
            "scores": {"questions": {"tabletop_vqa": _kinds(naming)}, "success": {}},
            "metrics": {"step": 4000},
            "embedding_drift": 0.02,
        }
        (run / "result.json").write_text(json.dumps(result))
        (run / "metrics.jsonl").write_text(_metrics(naming, result["steps"]))
        if is_last:
            _write_episodes(run / "evaluation", cell, seed, layouts)


def _kinds(naming):
    kinds = {}
    for kind, share in (("name", 1.0), ("point", 0.8), ("box", 0.7)):
        kinds[kind] = {"accuracy": naming * share, "majority": 0.02, "count": 200}
    return kinds


def _metrics(naming, steps):
    lines = []
    for step in np.linspace(0, steps, 9).astype(int).tolist():
        done = step / steps
        line = {
            "step": step,
            "loss/flow": 1.2 - done,
            "etc/tabletop_vqa/name/accuracy": 0.99 + done * (naming - 0.99),
        }
        lines.append(json.dumps(line) + "\n")
    return "".join(lines)


def _write_episodes(folder, cell, seed, layouts):
    rng = np.random.default_rng([seed, *cell.encode()])
    shift = rng.normal(0, 0.04)
    rows = []
    for tier in TIERS:
        for intervention in ("right", "no_instruction", "wrong_instruction", "blank_image"):
            for trial in range(5 * layouts):
                known, new = SKILL[cell]
                novelty = "none" if tier == "A" else NOVELTIES[OBJECTS[trial % 5]]
                is_new = novelty != "none"
                chance = (new if is_new else known) + shift
                if intervention in ("no_instruction", "blank_image"):
                    chance = 0.0
                rows.append(_episode(rng, f"{tier}{seed % 3}", intervention, trial, chance))
                rows[-1]["novelty"] = novelty
    with (folder / "episodes.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, EPISODE_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    if seed == 0:
        _write_videos(folder / "videos", rows, cell)


def _episode(rng, scene, intervention, trial, chance):
    """Return an episode: the object that the words name is touched, or any of the five."""
    named = OBJECTS[trial % 5]
    words = named
    if intervention == "wrong_instruction":
        words = OBJECTS[(trial + 1) % 5]
    touched = words if rng.random() < chance else OBJECTS[rng.integers(5)]
    return {
        "simulator": "tabletop",
        "scene": scene,
        "task": "touch",
        "trial": str(trial),
        "intervention": intervention,
        "condition": "",
        "perturbation": "",
        "instruction_of": "" if intervention == "no_instruction" else words,
        "layout": trial // 5,
        "named": named,
        "instruction": f"touch the {words}",
        "success": int(touched == named and rng.random() < 0.9),
        "steps": 12,
        "progress": 0.5 + 0.5 * (touched == named),
        "intention": int(touched == named),
        "touched": touched,
    }


def _write_videos(folder, rows, cell):
    for row in rows:
        if int(row["trial"]) < 2 and row["intervention"] == "right":
            color = (60 * (1 + len(cell)), 120, 200 if int(row["success"]) else 90)
            frames = [Image.new("RGB", (96, 96), color) for _ in range(2)]
            path = folder / f"{video_stem(row)}.gif"
            frames[0].save(path, save_all=True, append_images=frames[1:])
