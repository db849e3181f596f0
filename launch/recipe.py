"""Train and evaluate all stages of a recipe, one after another, and write the report.

    python launch/recipe.py --config=configs/recipe.py[:demo|:mt10] [--config.FIELD=VALUE ...]

Runs that are already trained or evaluated are kept. Writes <workdir>/summary.json and
<workdir>/report.html.
"""

from __future__ import annotations

import dataclasses
import resource
import time
from collections.abc import Mapping
from typing import Any

import ml_collections
from etils import epath
from ml_collections import config_flags

from configs import common as fields
from etcvla.eval.vqa import mean_accuracy
from etcvla.files import write_json
from etcvla.pages.report import write_report
from etcvla.provenance import git_commit, run_versions
from etcvla.results_schema import BASE_DATA
from etcvla.study.config import RANDOM, Cell, RunSpec, StudySpec
from etcvla.study.execute import execute
from etcvla.study.runs import Run, make_graph
from launch import common

_CONFIG = config_flags.DEFINE_config_file("config", "configs/recipe.py", "Config file of a recipe.")
CONTROL_SUFFIX = "_action_only"
DATASETS = (BASE_DATA, "source", "target")


def main(_: list[str]) -> None:
    """Run the recipe."""
    recipe = _CONFIG.value
    start = time.time()
    summaries = {}
    study = recipe_study(recipe)
    graph = make_graph(study, common.load_stage, named_folders=True)
    for run in graph.runs.values():
        print(f"\n=== {run.spec.name} ===", flush=True)
        results = execute(run, study, common.train_with_parents)
        summaries[run.spec.name] = summarize(recipe, run, results)
        write_summary(recipe, summaries, start)
    print(f"\nsummary: {recipe.workdir}/summary.json")
    print(f"report:  {write_report(recipe.workdir)}", flush=True)


def recipe_study(recipe: ml_collections.ConfigDict) -> StudySpec:
    """Return a recipe as a study with one seed, in which every run is a cell."""
    runs = recipe_runs(recipe)
    settings = ml_collections.ConfigDict({**recipe.eval, "tasks": recipe.tasks})
    return StudySpec(
        name=recipe.name,
        workdir=recipe.workdir,
        variant=recipe.variant,
        runs=runs,
        cells={name: Cell(name, name, (recipe.seed,)) for name in runs},
        contrasts=(),
        gates=(),
        matched="action_rows",
        base="",
        datasets={name: (embedded_dataset(recipe, name),) for name in DATASETS},
        general=(BASE_DATA,),
        eval=settings,
    )


def recipe_runs(recipe: ml_collections.ConfigDict) -> dict[str, RunSpec]:
    """Return the recipe's runs by name in order, followed by those of the control arm if it is on.

    The control arm starts from the same VLM, has no ETC, and spends the steps of the stages that do
    not act on actions as well, so it sees as many frames.
    """
    runs = {}
    for name in recipe.order:
        fields_of_run = recipe.runs[name]
        steps = recipe.steps[fields_of_run.stage]
        runs[name] = RunSpec(
            name,
            stage=fields_of_run.stage,
            init=fields_of_run.init or RANDOM,
            changes=(("steps", steps),) if steps else (),
            questions=fields_of_run.questions,
            scenes=fields_of_run.scenes,
            interventions=fields_of_run.interventions,
        )
    if recipe.arms.action_only:
        runs |= _control_runs(recipe, runs)
    return runs


def _control_runs(
    recipe: ml_collections.ConfigDict, runs: Mapping[str, RunSpec]
) -> dict[str, RunSpec]:
    """Return the runs of the control arm by name."""
    controls = {}
    init, *names = recipe.order
    steps = 0
    for name in names:
        run = runs[name]
        config = common.load_stage(f"configs/{run.stage}.py", recipe.variant, run.changes)
        steps += config.steps
        if not run.scenes:
            continue
        control = name + CONTROL_SUFFIX
        controls[control] = dataclasses.replace(
            run,
            name=control,
            init=init,
            changes=(*fields.action_only(config).items(), ("steps", steps)),
            interventions=("right",),
        )
        init = control
        steps = 0
    return controls


def embedded_dataset(recipe: ml_collections.ConfigDict, name: str) -> dict[str, Any]:
    """Return the embedded dataset `BASE_DATA`, "source" or "target" for the recipe's tasks."""
    if name == BASE_DATA:
        return fields.tabletop_vqa(recipe.data_root)
    return fields.metaworld(
        name, tasks=recipe.tasks, episodes=recipe[f"{name}_episodes"], root=recipe.data_root
    )


def summarize(
    recipe: ml_collections.ConfigDict, run: Run, results: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a run's entry in summary.json.

    Args:
      results: see `execute`.
    """
    questions = dict(results["scores"]["questions"])
    retention = questions.pop(BASE_DATA, {})
    etc = next(iter(questions.values()), {})
    success = results["scores"]["success"]
    return {
        "config": f"configs/{run.spec.stage}.py:{recipe.variant}",
        "init_from": run.parent.spec.name if run.parent else "",
        "steps": run.config.steps,
        "seconds": results["seconds"],
        "etc": {kind: scores["accuracy"] for kind, scores in etc.items()},
        "etc_baseline": {kind: scores["majority"] for kind, scores in etc.items()},
        "mm": mean_accuracy(retention) if retention else None,
        "success": success.get("right", {}),
        "interventions": success,
        "evaluation_seconds": results["evaluation_seconds"],
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
