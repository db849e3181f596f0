"""Train and evaluate all stages of a recipe, and write the report.

    python launch/recipe.py --config=configs/recipe.py[:metaworld|:mt10] [--config.FIELD=VALUE ...]
    python launch/recipe.py --config=configs/recipe.py --dry

Start the same command twice to train two arms in parallel. Runs that are already trained or
evaluated are kept. Writes <workdir>/summary.json and <workdir>/report.html.
"""

from __future__ import annotations

import dataclasses
import pathlib
import resource
import time
from collections.abc import Mapping
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from configs import common as fields
from etcvla.errors import UserError
from etcvla.eval.vqa import mean_accuracy
from etcvla.files import write_json
from etcvla.pages.report import write_report
from etcvla.provenance import git_commit, run_versions
from etcvla.results_schema import BASE_DATA
from etcvla.study import claims, costs, execute, tables
from etcvla.study.config import Cell, RunSpec, StudySpec
from etcvla.study.runs import Graph, Run, make_graph
from etcvla.study.worker import work
from launch import common

_CONFIG = config_flags.DEFINE_config_file("config", "configs/recipe.py", "Config file of a recipe.")
_DRY = flags.DEFINE_bool(
    "dry",
    False,
    "Print FLOPs, action rows and ETC segments of each run and the runs before it, and stop.",
)
CONTROL_SUFFIX = "_action_only"


def main(_: list[str]) -> None:
    """Run the recipe, or print its costs."""
    recipe = _CONFIG.value
    start = time.time()
    study = recipe_study(recipe)
    if _DRY.value:
        print(tables.costs_table(costs.cell_costs(recipe_graph(study))))
        return
    workdir = pathlib.Path(recipe.workdir)
    datasets = execute.used_datasets(recipe_graph(study))
    execute.build_missing(datasets, workdir / "datasets")
    graph = recipe_graph(study)
    work(graph, lambda run: execute.execute(run, study, common.train_with_parents))
    claim = claims.claim(workdir / "report")
    if claim is None:
        print(f"another worker writes {workdir}/report.html", flush=True)
    else:
        with claim:
            write_json(workdir / "summary.json", summarize(recipe, graph, start))
            print(f"\nsummary: {workdir}/summary.json")
            print(f"report:  {write_report(workdir)}", flush=True)
    missing = [run.spec.name for run in graph.runs.values() if run.result() is None]
    if missing:
        raise UserError(
            f"{', '.join(missing)}: without results; read {workdir}/*/attempts/*.log, then delete "
            "the folders `attempts` to try again"
        )


def recipe_graph(study: StudySpec) -> Graph:
    """Return the graph of a recipe's runs, whose folders have the runs' names."""
    return make_graph(study, common.load_stage, named_folders=True)


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
        matched="flops",
        base=recipe.base,
        datasets={name: (embedded_dataset(recipe, name),) for name in recipe.episodes},
        general=(BASE_DATA,),
        eval=settings,
    )


def recipe_runs(recipe: ml_collections.ConfigDict) -> dict[str, RunSpec]:
    """Return the recipe's runs by name in order, followed by those of the control arm if it is on.

    The control arm starts from the same VLM, has no ETC, and spends the FLOPs of the stages that do
    not act on actions as well.
    """
    runs = {}
    for name in recipe.order:
        steps = recipe.steps[name]
        changes = (("steps", steps),) if steps else ()
        runs[name] = RunSpec(name, **recipe.runs[name], changes=changes)
    if recipe.arms.action_only:
        runs |= _control_runs(recipe, runs)
    return runs


def _control_runs(
    recipe: ml_collections.ConfigDict, runs: Mapping[str, RunSpec]
) -> dict[str, RunSpec]:
    """Return the runs of the control arm by name."""
    controls = {}
    init = runs[recipe.order[0]].init
    flops = 0
    for name, run in runs.items():
        config = _stage_config(recipe, run)
        flops += costs.run_costs(config, ()).flops
        if not run.scenes:
            continue
        stage, _, _ = run.stage.partition("+")
        control = dataclasses.replace(
            run, name=name + CONTROL_SUFFIX, stage=stage, init=init, changes=(("steps", 1),)
        )
        changes = fields.action_only(_stage_config(recipe, control))
        control = dataclasses.replace(control, changes=(*changes.items(), ("steps", 1)))
        step_flops = costs.run_costs(_stage_config(recipe, control), ()).flops
        steps = round(flops / step_flops)
        controls[control.name] = dataclasses.replace(
            control, changes=(*changes.items(), ("steps", steps))
        )
        init = control.name
        flops = 0
    return controls


def _stage_config(recipe: ml_collections.ConfigDict, run: RunSpec) -> ml_collections.ConfigDict:
    """Return the config of a run's stage before it has a parent."""
    stage, plus, options = run.stage.partition("+")
    changes = (*run.changes, ("init_from", ""))
    return common.load_stage(f"configs/{stage}.py", recipe.variant + plus + options, changes)


def embedded_dataset(recipe: ml_collections.ConfigDict, name: str) -> dict[str, Any]:
    """Return an embedded dataset of the recipe's simulator: `BASE_DATA`, a role or a scene."""
    options = {"episodes": recipe.episodes[name], "root": recipe.data_root}
    if name == BASE_DATA:
        return fields.tabletop_vqa(**options)
    if recipe.eval.simulator == "tabletop":
        return fields.tabletop("demos" if name == "target" else name, **options)
    return fields.metaworld(name, tasks=recipe.tasks, **options)


def summarize(recipe: ml_collections.ConfigDict, graph: Graph, start: float) -> dict[str, Any]:
    """Return the content of summary.json: the runs that are finished, in the recipe's order.

    Args:
      start: time of the recipe's start, seconds since 1970.
    """
    stages = {}
    for run in graph.runs.values():
        results = run.result()
        if results:
            stages[run.spec.name] = summarize_run(recipe, run, results)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {
        "recipe": recipe.name,
        "runs": list(stages),
        "stages": stages,
        "seconds": time.time() - start,
        "peak_memory_gib": max(own, children) / 2**20,
        "versions": run_versions(),
        "seeds": {"recipe": recipe.seed},
        "commit": git_commit(),
    }


def summarize_run(
    recipe: ml_collections.ConfigDict, run: Run, results: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a run's entry in summary.json.

    Args:
      results: see `execute.execute`.
    """
    questions = dict(results["scores"]["questions"])
    retention = questions.pop(BASE_DATA, {})
    etc = next(iter(questions.values()), {})
    success = results["scores"]["success"]
    stage, plus, options = run.spec.stage.partition("+")
    return {
        "config": f"configs/{stage}.py:{recipe.variant}{plus}{options}",
        "init_from": run.parent.spec.name if run.parent else recipe.base,
        "control": run.spec.name.endswith(CONTROL_SUFFIX),
        "steps": run.config.steps,
        "flops": results["flops"],
        "action_rows": results["action_rows"],
        "seconds": results["seconds"],
        "etc": {kind: scores["accuracy"] for kind, scores in etc.items()},
        "etc_baseline": {kind: scores["majority"] for kind, scores in etc.items()},
        "mm": mean_accuracy(retention) if retention else None,
        "success": success.get("right", {}),
        "interventions": success,
        "evaluation_seconds": results["evaluation_seconds"],
    }


if __name__ == "__main__":
    common.run(main)
