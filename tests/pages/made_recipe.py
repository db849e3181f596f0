"""Write the folder of a recipe with synthetic results, as the recipe and its evaluation do."""

import csv
import json

import numpy as np
from PIL import Image

from etcvla.etc.items import ETC_KINDS, format_loc
from etcvla.results_schema import BASE_DATA, video_stem
from etcvla.stats import wilson

TASKS = ("reach", "door-open", "drawer-open", "drawer-close")
MAIN_RUNS = ("vlm_pretrain", "distribution_bridge", "objective_bridge", "retentive_adapt")
CONTROL = "retentive_adapt_action_only"
QUESTION_TYPES = {
    "spatial_understanding": "gripper_side",
    "goal_description": "locate_box",
    "affordance": "grasp_point",
    "task_planning": "current",
    "trajectory": "path_task",
    "count": "count_all",
}
# question type -> (question, answer, wrong answer)
QUESTIONS = {
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
SUCCESS_CHANCE = {"right": 0.75, "wrong_instruction": 0.3, "blank_image": 0.0}
OPPOSITE = {"drawer-open": "drawer-close", "drawer-close": "drawer-open"}
EPISODE_COLUMNS = (
    "scene",
    "task",
    "trial",
    "intervention",
    "instruction_of",
    "perturbation",
    "success",
    "steps",
)


def kind_scores(
    correct: int, count: int, majority: float = 0.3, blind: float = 0.45
) -> dict[str, float]:
    """Return the scores of one kind of questions."""
    low, high = wilson(correct, count)
    return {
        "accuracy": correct / count,
        "low": low,
        "high": high,
        "count": count,
        "majority": majority,
        "blind": blind,
    }


def write_recipe(root, *, runs=(*MAIN_RUNS, CONTROL), tasks=TASKS, trials=10, steps=60, seed=0):
    """Write the folder and return its summary.

    Only the runs after `distribution_bridge` act, and only `objective_bridge` is evaluated with
    all interventions.
    """
    rng = np.random.default_rng(seed)
    stages = {}
    for i, name in enumerate(runs):
        _write_evaluation(rng, root, name, i, tasks=tasks, trials=trials, steps=steps)
        _write_metrics(rng, root / name, steps, acts=i > 1)
        Image.fromarray(np.full((60, 90, 3), 240, np.uint8)).save(root / name / "plan.png")
        parent = runs[0] if name == CONTROL else runs[i - 1]
        stages[name] = {
            "config": f"configs/{name.removesuffix('_action_only')}.py:tiny",
            "steps": steps,
            "seconds": 100.0 * (i + 1),
            "init_from": parent if i > 0 else "",
            "control": name == CONTROL,
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


def _write_evaluation(rng, root, name, index, *, tasks, trials, steps):
    """Write the evaluation folder of one run; `index` is its position in the recipe."""
    out = root / name / "evaluation"
    (out / "examples").mkdir(parents=True)
    (out / "videos").mkdir()
    datasets = []
    if index > 0:
        datasets.append("source")
    if name.startswith("retentive"):
        datasets.append("target")
    etc_scores = {}
    for dataset in datasets:
        etc_scores[dataset] = {}
        for k, kind in enumerate(ETC_KINDS):
            etc_scores[dataset][kind] = kind_scores(40 + 4 * index + 5 * k, 100)
    shapes_kinds = ("count", "relation", "caption")
    scores = {
        "step": steps,
        "seconds": 61.0,
        "protocol": {"max_steps": 250, "replan_steps": 5, "image_size": 96},
        "spec": {"trials": trials, "tasks": list(tasks)},
        "mm": {kind: kind_scores(90 - 5 * index, 100) for kind in shapes_kinds},
        "etc": etc_scores,
    }
    if index > 1:
        interventions = {"right": trials}
        if index == 2:
            interventions |= {"wrong_instruction": 5, "blank_image": 5}
        scores["success"] = _write_episodes(rng, out, tasks, interventions, index)
    (out / "scores.json").write_text(json.dumps(scores))
    _write_examples(rng, out, [BASE_DATA, *datasets])


def _write_episodes(rng, out, tasks, interventions, index):
    """Write episodes.csv and videos; return the table of successes for scores.json."""
    table = {}
    lines = []
    for intervention, trials in interventions.items():
        for scene in ("source", "target"):
            for t, task in enumerate(tasks):
                chance = SUCCESS_CHANCE[intervention] - 0.3 * (scene == "target" and index == 2)
                successes = rng.random(trials) < chance
                cell = [int(successes.sum()), trials]
                table.setdefault(intervention, {}).setdefault(scene, {})[task] = cell
                wrong_task = OPPOSITE.get(task, tasks[t - 1])
                instruction_of = wrong_task if intervention == "wrong_instruction" else task
                for trial, success in enumerate(successes):
                    steps = 88 if success else 250
                    row = [
                        scene,
                        task,
                        trial,
                        intervention,
                        instruction_of,
                        "",
                        int(success),
                        steps,
                    ]
                    lines.append([str(value) for value in row])
                first_row = dict(zip(EPISODE_COLUMNS, lines[-trials], strict=True))
                _write_video(rng, out / "videos" / f"{video_stem(first_row)}.gif")
    with (out / "episodes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([EPISODE_COLUMNS, *lines])
    return table


def _random_image(rng):
    return Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8))


def _write_video(rng, path):
    first, *rest = [_random_image(rng) for _ in range(3)]
    first.save(path, save_all=True, append_images=rest, duration=60, loop=0)


def _write_examples(rng, out, datasets):
    """Write examples.json with three wrong and three correct answers by dataset and kind."""
    rows = []
    for dataset in datasets:
        for kind in ["count"] if dataset == BASE_DATA else ETC_KINDS:
            question, answer, wrong = QUESTIONS[QUESTION_TYPES[kind]]
            for n in range(6):
                image = f"examples/{len(rows):04d}.png"
                _random_image(rng).save(out / image)
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


def _write_metrics(rng, folder, steps, acts):
    lines = []
    for step in range(20, steps + 1, 20):
        loss = 7 * np.exp(-5 * step / steps) + 0.4 + 0.05 * rng.random()
        line = {
            "step": step,
            "time": 1.7e9 + step,
            "loss": loss,
            "loss/text": loss * 0.8,
            "loss/fast": 0.0,
            "grad_norm": 1.0,
            "steps_per_second": 1.5 + 0.2 * rng.random(),
            "data_wait": 0.03,
            "source_affordance/accuracy": 1 - loss / 8,
        }
        if acts:
            line["loss/fast"] = loss * 0.9
            line["loss/flow"] = loss * 0.2
            line["action/accuracy"] = 0.9 - loss / 9
        lines.append(json.dumps(line) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))
