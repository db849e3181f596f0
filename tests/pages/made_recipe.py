"""A recipe's folder as the recipe and its evaluation leave it, with made-up numbers."""

import csv
import json

import numpy as np
from PIL import Image

from etcvla.etc.items import ETC_KINDS, format_loc
from etcvla.stats import wilson

TASKS = ("reach", "door-open", "drawer-open", "drawer-close")
ROAD = ("vlm_pretrain", "distribution_bridge", "objective_bridge", "retentive_adapt")
CONTROL = "retentive_adapt_action_only"
QUESTION_TYPES = {
    "spatial_understanding": "gripper_side",
    "goal_description": "locate_box",
    "affordance": "grasp_point",
    "task_planning": "current",
    "trajectory": "path_task",
    "count": "count_all",
}
# (question, answer, wrong answer) of each question_type
SAID = {
    "gripper_side": ("is the gripper to the left or to the right of the drawer?", "left", "right"),
    "locate_box": (
        "locate the drawer.",
        format_loc([0.2, 0.3, 0.6, 0.7]),
        format_loc([0.5, 0.1, 0.8, 0.3]),
    ),
    "grasp_point": (
        "point to where to grasp the drawer handle.",
        format_loc([0.5, 0.25]),
        format_loc([0.7, 0.7]),
    ),
    "current": ("which step is in progress?", "move to the drawer handle", "<b>nothing</b>"),
    "path_task": (
        "draw the whole path of the gripper.",
        format_loc([0.1, 0.1, 0.4, 0.3, 0.6, 0.6]),
        "left",
    ),
    "count_all": ("how many shapes are there?", "3", "4"),
}


def scores_of(
    right: int, count: int, majority: float = 0.3, blind: float = 0.45
) -> dict[str, float]:
    low, high = wilson(right, count)
    return {
        "accuracy": right / count,
        "low": low,
        "high": high,
        "count": count,
        "majority": majority,
        "blind": blind,
    }


def write_recipe(root, *, runs=(*ROAD, CONTROL), tasks=TASKS, trials=10, steps=60, seed=0):
    """Writes the folder and returns its summary; only the stages after `distribution_bridge` act, and only
    `objective_bridge` is tested under all interventions."""
    rng, stages = np.random.default_rng(seed), {}
    for i, name in enumerate(runs):
        out = root / name / "evaluation"
        (out / "examples").mkdir(parents=True)
        (out / "videos").mkdir()
        datasets = ([] if i == 0 else ["source"]) + (
            ["target"] if name.startswith("retentive") else []
        )
        scores = {
            "step": steps,
            "seconds": 61.0,
            "protocol": {"max_steps": 250, "replan_steps": 5, "image_size": 96},
            "spec": {"trials": trials, "tasks": list(tasks)},
            "mm": {kind: scores_of(90 - 5 * i, 100) for kind in ("count", "relation", "caption")},
            "etc": {
                name: {kind: scores_of(40 + 4 * i + 5 * k, 100) for k, kind in enumerate(ETC_KINDS)}
                for name in datasets
            },
        }
        if i > 1:
            interventions = {"right": trials} | (
                {"wrong_instruction": 5, "blank_image": 5} if i == 2 else {}
            )
            scores["success"] = _episodes(rng, out, tasks, interventions, i)
        (out / "scores.json").write_text(json.dumps(scores))
        _examples(rng, out, ["shapes", *datasets])
        _metrics(rng, root / name, steps, acts=i > 1)
        Image.fromarray(np.full((60, 90, 3), 240, np.uint8)).save(root / name / "plan.png")
        stages[name] = {
            "config": f"configs/{name.removesuffix('_action_only')}.py:tiny",
            "steps": steps,
            "seconds": 100.0 * (i + 1),
            "init_from": "" if i == 0 else runs[0 if name == CONTROL else i - 1],
        }
    summary = {
        "recipe": "demo",
        "runs": list(runs),
        "stages": stages,
        "seconds": 1471.0,
        "peak_memory_gib": 3.14,
        "versions": {"etcvla": "0.1.0", "jax": "0.10.2"},
        "seeds": {"recipe": 7},
        "commit": "0123456789abcdef",
    }
    (root / "summary.json").write_text(json.dumps(summary))
    return summary


def _episodes(rng, out, tasks, interventions, i):
    success, lines = {}, []
    for intervention, trials in interventions.items():
        chance = {"right": 0.75, "wrong_instruction": 0.3, "blank_image": 0.0}[intervention]
        for scene in ("source", "target"):
            for t, task in enumerate(tasks):
                wrong = {"drawer-open": "drawer-close", "drawer-close": "drawer-open"}.get(
                    task, tasks[t - 1]
                )
                won = rng.random(trials) < chance - 0.3 * (scene == "target" and i == 2)
                success.setdefault(intervention, {}).setdefault(scene, {})[task] = [
                    int(won.sum()),
                    trials,
                ]
                lines += [
                    (
                        scene,
                        task,
                        trial,
                        intervention,
                        wrong if intervention == "wrong_instruction" else task,
                        int(ok),
                        88 if ok else 250,
                    )
                    for trial, ok in enumerate(won)
                ]
                _write_video(
                    rng,
                    out
                    / "videos"
                    / f"{intervention}_{scene}_{task}_0_{'success' if won[0] else 'failure'}.gif",
                )
    with (out / "episodes.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ("scene", "task", "trial", "intervention", "instruction_of", "success", "steps"),
                *lines,
            ]
        )
    return success


def _write_video(rng, path):
    first, *rest = (Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)) for _ in range(3))
    first.save(path, save_all=True, append_images=rest, duration=60, loop=0)


def _examples(rng, out, datasets):
    rows = []
    for dataset in datasets:
        for kind in ["count"] if dataset == "shapes" else ETC_KINDS:
            for n in range(6):
                question, answer, wrong = SAID[QUESTION_TYPES[kind]]
                image = f"examples/{len(rows):04d}.png"
                Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(out / image)
                rows.append(
                    {
                        "dataset": dataset,
                        "image": image,
                        "instruction": "Open the drawer.",
                        "kind": kind,
                        "question_type": QUESTION_TYPES[kind],
                        "question": question,
                        "answer": answer,
                        "prediction": answer if n % 2 else wrong,
                        "correct": bool(n % 2),
                    }
                )
    (out / "examples.json").write_text(json.dumps(rows))


def _metrics(rng, folder, steps, acts):
    lines = []
    for step in range(20, steps + 1, 20):
        decay = 7 * np.exp(-5 * step / steps) + 0.4 + 0.05 * rng.random()
        lines.append(
            {
                "step": step,
                "time": 1.7e9 + step,
                "loss": decay,
                "loss/text": decay * 0.8,
                "loss/fast": 0.0,
                "grad_norm": 1.0,
                "steps_per_second": 1.5 + 0.2 * rng.random(),
                "data_wait": 0.03,
                "source_affordance/accuracy": 1 - decay / 8,
            }
        )
        if acts:
            lines[-1] |= {
                "loss/fast": decay * 0.9,
                "loss/flow": decay * 0.2,
                "action/accuracy": 0.9 - decay / 9,
            }
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
