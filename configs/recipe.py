"""A recipe: all stages in a row, each evaluated, with one report.

    python launch/recipe.py --config=configs/recipe.py
    python launch/recipe.py --config=configs/recipe.py:mt10
    python launch/recipe.py --config=configs/recipe.py --config.arms.action_only=True

The first is what `make demo` runs (runs/demo/report.html), the second has the ten tasks of MT10,
the third adds the control arm.

Demo: under half an hour on two cores from nothing; six tasks, source and target scene. The control
arm trains on actions alone, from the same VLM, for as many steps as stages 1, 2 and 3 took.
"""

from __future__ import annotations

from typing import Any

import ml_collections

from configs import common
from etcvla.errors import UserError
from etcvla.results_schema import BASE_DATA

STAGES = ("vlm_pretrain", "distribution_bridge", "objective_bridge", "retentive_adapt")
INTERVENTIONS = ("right", "wrong_instruction", "blank_image")

VARIANTS: dict[str, dict[str, Any]] = {
    "demo": {
        "tasks": common.METAWORLD_TASKS,
    },
    "mt10": {
        "tasks": common.MT10_TASKS,
        "steps.distribution_bridge": 800,
        "steps.objective_bridge": 2000,
        "steps.retentive_adapt": 700,
    },
}


def run(
    stage: str,
    init: str,
    *,
    questions: tuple[str, ...],
    scenes: tuple[str, ...] = (),
    interventions: tuple[str, ...] = ("right",),
) -> dict[str, Any]:
    """Return one training run of a recipe.

    Args:
      stage: name of its config file, without ".py".
      init: name of the run whose checkpoint it starts from; "": none.
      questions: datasets whose held-out questions it answers (`BASE_DATA` measures retention).
      scenes: scenes in which it acts.
      interventions: what the policy gets there (etcvla/eval/trials.py lists them).
    """
    return {
        "stage": stage,
        "init": init,
        "questions": questions,
        "scenes": scenes,
        "interventions": interventions,
    }


RUNS = {
    "vlm_pretrain": run("vlm_pretrain", "", questions=(BASE_DATA,)),
    "distribution_bridge": run(
        "distribution_bridge", "vlm_pretrain", questions=(BASE_DATA, "source")
    ),
    "objective_bridge": run(
        "objective_bridge",
        "distribution_bridge",
        questions=(BASE_DATA, "source"),
        scenes=("source", "target"),
        interventions=INTERVENTIONS,
    ),
    "retentive_adapt": run(
        "retentive_adapt",
        "objective_bridge",
        questions=(BASE_DATA, "source", "target"),
        scenes=("source", "target"),
    ),
}


def get_config(variant: str = "demo") -> ml_collections.ConfigDict:
    """Return the recipe's config. Raises UserError for an unknown variant."""
    if variant not in VARIANTS:
        raise UserError(
            f"configs/recipe.py: unknown variant {variant!r}; choose from {', '.join(VARIANTS)}"
        )
    c = ml_collections.ConfigDict()
    c.name = variant
    c.workdir = f"runs/{variant}"  # one folder per run, summary.json and report.html
    c.variant = "tiny"  # variant of the stages' configs
    c.seed = 0  # of every stage and of the choice of evaluation questions
    c.data_root = "data"  # folder of the embedded datasets
    c.tasks = ()  # Meta-World tasks
    c.source_episodes = common.DEFAULT_EPISODES["source"]  # demonstrations per task, source scene
    c.target_episodes = common.DEFAULT_EPISODES["target"]  # the same, target scene

    c.order = STAGES  # order of the runs
    c.runs = ml_collections.ConfigDict(RUNS)
    # Steps of each stage; 0: those of the stage's config.
    c.steps = ml_collections.ConfigDict(dict.fromkeys(STAGES, 0))

    c.arms = ml_collections.ConfigDict()
    # Also train and evaluate a control on actions alone with the same number of steps.
    c.arms.action_only = False

    c.eval = ml_collections.ConfigDict()
    c.eval.simulator = "metaworld"  # of the tasks
    c.eval.trials = 10  # held-out layouts per task and scene
    c.eval.intervention_trials = 5  # the same for each intervention other than "right"
    c.eval.max_steps = 250  # control steps before an episode counts as failed
    c.eval.replan_steps = 5  # control steps between two queries of the policy
    c.eval.workers = 4  # simulator processes
    c.eval.questions = 96  # questions per kind and dataset
    c.eval.videos = 1  # trials per task, scene and intervention that are kept as GIF
    c.lock()
    common.override(c, VARIANTS[variant])
    return c
