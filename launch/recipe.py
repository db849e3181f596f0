"""All stages in a row, each trained, evaluated and summed up; then the report.

    python launch/recipe.py --config=configs/recipe.py[:demo|:mt10] [--config.FIELD=VALUE ...]

A run that is already trained or evaluated is not done again. Writes <workdir>/summary.json and <workdir>/report.html.
"""

from __future__ import annotations

import json
import resource
import time

import ml_collections
from etils import epath
from ml_collections import config_flags

from configs import common as fields
from etcvla.eval.evaluate import EvaluationSpec, evaluate
from etcvla.eval.trials import EvalProtocol
from etcvla.eval.vqa import mean_accuracy
from etcvla.pages.report import write_report
from etcvla.provenance import git_commit, run_versions
from launch import common

_CONFIG = config_flags.DEFINE_config_file("config", "configs/recipe.py", "A recipe's config file.")
CONTROL = "_action_only"


def main(_):
    recipe, began = _CONFIG.value, time.time()
    stages = {}
    for name, run in runs_of(recipe).items():
        print(f"\n=== {name} ===", flush=True)
        config = stage_config(recipe, run)
        config.workdir = f"{recipe.workdir}/{name}"
        seconds = train_run(config)
        scores = evaluate(config.workdir, eval_spec(recipe, run))
        stages[name] = {
            "config": f"configs/{run.stage}.py:{recipe.variant}",
            "init_from": run.init,
            "steps": config.steps,
            "seconds": seconds,
            **stage_summary(scores),
        }
        write_summary(recipe, stages, began)
    print(
        f"\nsummary: {recipe.workdir}/summary.json\nreport:  {write_report(recipe.workdir)}",
        flush=True,
    )


def runs_of(recipe: ml_collections.ConfigDict) -> dict[str, ml_collections.ConfigDict]:
    """Run name -> its entry, in order; the control arm's runs stand at the end.

    The control spends the steps of the stages that do not act on actions too: the same number of looks from the same
    VLM, and no ETC anywhere.
    """
    runs = {name: recipe.runs[name] for name in recipe.order}
    if not recipe.arms.action_only:
        return runs
    idle, init = 0, recipe.order[0]
    for name in recipe.order[1:]:
        steps = stage_config(recipe, runs[name]).steps
        if not runs[name].scenes:
            idle += steps
            continue
        runs[name + CONTROL] = ml_collections.ConfigDict(
            {
                **runs[name].to_dict(),
                "init": init,
                "action_only": True,
                "steps": steps + idle,
                "interventions": ("right",),
            }
        )
        idle, init = 0, name + CONTROL
    return runs


def stage_config(
    recipe: ml_collections.ConfigDict, run: ml_collections.ConfigDict
) -> ml_collections.ConfigDict:
    """The config of a run's stage, on the recipe's tasks and data."""
    config = common.load_config(f"configs/{run.stage}.py", recipe.variant)
    config.seed = recipe.seed
    config.steps = run.steps or recipe.steps[run.stage] or config.steps
    config.init_from, config.init_config = f"{recipe.workdir}/{run.init}" if run.init else "", ""
    config.datasets.update({name: dataset_of(recipe, name) for name in config.datasets})
    if run.action_only:
        config.loss.text = fields.constant(0.0)
        with config.unlocked():
            config.streams = {
                "action": {
                    **config.streams.action.to_dict(),
                    "extra_segments": 0,
                    "weight": fields.constant(1.0),
                }
            }
    return config


def dataset_of(recipe: ml_collections.ConfigDict, name: str) -> dict:
    """The embedded dataset that the stages know by this name."""
    if name == "shapes":
        return fields.shapes(recipe.data_root)
    return fields.metaworld(
        name, tasks=recipe.tasks, episodes=recipe[f"{name}_episodes"], root=recipe.data_root
    )


def train_run(config: ml_collections.ConfigDict) -> float:
    """Trains, unless that is done, and returns the seconds that it took, over all the sessions that it took."""
    record = epath.Path(config.workdir) / "training.json"
    before = json.loads(record.read_text())["seconds"] if record.exists() else 0.0
    seconds = before + common.train_with_parents(config)["seconds"]
    record.write_text(json.dumps({"seconds": seconds}))
    return seconds


def eval_spec(recipe: ml_collections.ConfigDict, run: ml_collections.ConfigDict) -> EvaluationSpec:
    """What a run is evaluated on."""
    e, data = recipe.eval, {name: dataset_of(recipe, name) for name in run.vqa}
    return EvaluationSpec(
        tasks=recipe.tasks,
        scenes=run.scenes,
        interventions=run.interventions,
        trials=e.trials,
        control_trials=e.control_trials,
        videos=e.videos,
        questions=e.questions,
        seed=recipe.seed,
        datasets={name: (d["path"], d["cameras"]) for name, d in data.items()},
        protocol=EvalProtocol(
            max_steps=e.max_steps, replan_steps=e.replan_steps, workers=e.workers
        ),
    )


def stage_summary(scores: dict) -> dict:
    """What summary.json says of one run's evaluation."""
    etc = next(iter(scores["etc"].values()), {}) if scores["etc"] else {}
    success = scores.get("success", {})
    return {
        "etc": {kind: s["accuracy"] for kind, s in etc.items()},
        "etc_baseline": {kind: s["majority"] for kind, s in etc.items()},
        "mm": mean_accuracy(scores["mm"]) if "mm" in scores else None,
        "success": success.get("right", {}),
        "interventions": success,
        "evaluation_seconds": scores["seconds"],
    }


def write_summary(recipe: ml_collections.ConfigDict, stages: dict, began: float) -> None:
    """Rewrites <workdir>/summary.json with the runs so far."""
    peak = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    path = epath.Path(recipe.workdir) / "summary.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(
        json.dumps(
            {
                "recipe": recipe.name,
                "runs": list(stages),
                "stages": stages,
                "seconds": time.time() - began,
                "peak_memory_gib": peak / 2**20,
                "versions": run_versions(),
                "seeds": {"recipe": recipe.seed},
                "commit": git_commit(),
            },
            indent=2,
        )
    )
    temporary.replace(path)


if __name__ == "__main__":
    common.run(main)
