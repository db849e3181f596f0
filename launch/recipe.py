"""Train and evaluate all stages of a recipe, one after another, and write the report.

    python launch/recipe.py --config=configs/recipe.py[:demo|:mt10] [--config.FIELD=VALUE ...]

Runs that are already trained or evaluated are kept. Writes <workdir>/summary.json and
<workdir>/report.html.
"""

from __future__ import annotations

import json
import resource
import time
from typing import Any

import ml_collections
from etils import epath
from ml_collections import config_flags

from configs import common as fields
from etcvla.eval.evaluate import EvaluationSpec, evaluate
from etcvla.eval.trials import EvalProtocol
from etcvla.eval.vqa import mean_accuracy
from etcvla.files import write_json
from etcvla.pages.report import write_report
from etcvla.provenance import git_commit, run_versions
from launch import common

_CONFIG = config_flags.DEFINE_config_file("config", "configs/recipe.py", "Config file of a recipe.")
CONTROL_SUFFIX = "_action_only"


def main(_: list[str]) -> None:
    """Run the recipe."""
    recipe = _CONFIG.value
    start = time.time()
    summaries = {}
    for name, run in recipe_runs(recipe).items():
        print(f"\n=== {name} ===", flush=True)
        config = stage_config(recipe, run)
        config.workdir = f"{recipe.workdir}/{name}"
        seconds = train_run(config)
        scores = evaluate(config.workdir, evaluation_spec(recipe, run))
        summaries[name] = {
            "config": f"configs/{run.stage}.py:{recipe.variant}",
            "init_from": run.init,
            "steps": config.steps,
            "seconds": seconds,
            **summarize_scores(scores),
        }
        write_summary(recipe, summaries, start)
    print(f"\nsummary: {recipe.workdir}/summary.json")
    print(f"report:  {write_report(recipe.workdir)}", flush=True)


def recipe_runs(recipe: ml_collections.ConfigDict) -> dict[str, ml_collections.ConfigDict]:
    """Return the recipe's runs by name in order, followed by those of the control arm if it is on.

    The control arm starts from the same VLM, has no ETC, and spends the steps of the stages that do
    not act on actions as well, so it sees as many frames.
    """
    runs = {name: recipe.runs[name] for name in recipe.order}
    if not recipe.arms.action_only:
        return runs
    init = recipe.order[0]
    steps_without_acting = 0
    for name in recipe.order[1:]:
        run = runs[name]
        steps = stage_config(recipe, run).steps
        if not run.scenes:
            steps_without_acting += steps
            continue
        control = run.to_dict()
        control["init"] = init
        control["action_only"] = True
        control["steps"] = steps + steps_without_acting
        control["interventions"] = ("right",)
        runs[name + CONTROL_SUFFIX] = ml_collections.ConfigDict(control)
        init = name + CONTROL_SUFFIX
        steps_without_acting = 0
    return runs


def stage_config(
    recipe: ml_collections.ConfigDict, run: ml_collections.ConfigDict
) -> ml_collections.ConfigDict:
    """Return the config of a run's stage with the recipe's tasks, data, seed and steps."""
    config = common.load_config(f"configs/{run.stage}.py", recipe.variant)
    config.seed = recipe.seed
    config.steps = run.steps or recipe.steps[run.stage] or config.steps
    config.init_from = f"{recipe.workdir}/{run.init}" if run.init else ""
    config.init_config = ""
    for name in config.datasets:
        config.datasets[name].update(embedded_dataset(recipe, name))
    if run.action_only:
        _keep_actions_alone(config)
    return config


def _keep_actions_alone(config: ml_collections.ConfigDict) -> None:
    """Remove all ETC from a stage."""
    config.loss.text = fields.constant(0.0)
    action = config.streams.action.to_dict()
    action["extra_segments"] = 0
    action["weight"] = fields.constant(1.0)
    with config.unlocked():
        config.streams = {"action": action}


def embedded_dataset(recipe: ml_collections.ConfigDict, name: str) -> dict[str, Any]:
    """Return the embedded dataset "shapes", "source" or "target" for the recipe's tasks."""
    if name == "shapes":
        return fields.shapes(recipe.data_root)
    return fields.metaworld(
        name, tasks=recipe.tasks, episodes=recipe[f"{name}_episodes"], root=recipe.data_root
    )


def train_run(config: ml_collections.ConfigDict) -> float:
    """Train a run unless it is finished; return its total training time in seconds."""
    record = epath.Path(config.workdir) / "training.json"
    seconds = 0.0
    if record.exists():
        seconds = json.loads(record.read_text())["seconds"]
    seconds += common.train_with_parents(config)["seconds"]
    write_json(record, {"seconds": seconds})
    return seconds


def evaluation_spec(
    recipe: ml_collections.ConfigDict, run: ml_collections.ConfigDict
) -> EvaluationSpec:
    """Return what to evaluate a run on."""
    settings = recipe.eval
    datasets = {}
    for name in run.questions:
        entry = embedded_dataset(recipe, name)
        datasets[name] = (entry["path"], entry["cameras"])
    protocol = EvalProtocol(
        max_steps=settings.max_steps, replan_steps=settings.replan_steps, workers=settings.workers
    )
    return EvaluationSpec(
        tasks=recipe.tasks,
        scenes=run.scenes,
        interventions=run.interventions,
        trials=settings.trials,
        intervention_trials=settings.intervention_trials,
        videos=settings.videos,
        questions=settings.questions,
        datasets=datasets,
        protocol=protocol,
        seed=recipe.seed,
    )


def summarize_scores(scores: dict[str, Any]) -> dict[str, Any]:
    """Return a run's entry in summary.json from its scores.json."""
    etc = {}
    if scores["etc"]:
        etc = next(iter(scores["etc"].values()))
    success = scores.get("success", {})
    return {
        "etc": {kind: kind_scores["accuracy"] for kind, kind_scores in etc.items()},
        "etc_baseline": {kind: kind_scores["majority"] for kind, kind_scores in etc.items()},
        "mm": mean_accuracy(scores["mm"]) if "mm" in scores else None,
        "success": success.get("right", {}),
        "interventions": success,
        "evaluation_seconds": scores["seconds"],
    }


def write_summary(
    recipe: ml_collections.ConfigDict, summaries: dict[str, dict], start: float
) -> None:
    """Write <workdir>/summary.json with the runs that are finished.

    Args:
      summaries: run name -> entry.
      start: time of the recipe's start, seconds since 1970.
    """
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    summary = {
        "recipe": recipe.name,
        "runs": list(summaries),
        "stages": summaries,
        "seconds": time.time() - start,
        "peak_memory_gib": max(own, children) / 2**20,
        "versions": run_versions(),
        "seeds": {"recipe": recipe.seed},
        "commit": git_commit(),
    }
    write_json(epath.Path(recipe.workdir) / "summary.json", summary)


if __name__ == "__main__":
    common.run(main)
