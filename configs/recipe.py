"""A recipe: all stages in a row from the shipped base model, each evaluated, with one report.

    python launch/recipe.py --config=configs/recipe.py              # the demo, on the tabletop
    python launch/recipe.py --config=configs/recipe.py:metaworld    # six tasks of Meta-World
    python launch/recipe.py --config=configs/recipe.py:mt10         # ten tasks, MT10
    python launch/recipe.py --config=configs/recipe.py --dry        # what the runs cost

`make demo` runs the first command with two workers and writes runs/demo/report.html. The demo acts
on all tiers of words (etcvla/sims/tabletop/words.py), and has a control arm: actions alone, from
the same base model, with as many FLOPs as stages 1, 2 and 3 took.
`--config.arms.action_only=True` adds this arm to the other recipes.
"""

from __future__ import annotations

from typing import Any

import ml_collections

from configs import common
from etcvla.errors import UserError
from etcvla.results_schema import BASE_DATA
from etcvla.results_schema import INTERVENTIONS as ALL_INTERVENTIONS
from etcvla.sims.tabletop.words import TIERS
from etcvla.study.config import BASE

ORDER = ("distribution_bridge", "objective_bridge", "retentive_adapt")
TABLETOP_SCENES = tuple(f"{tier}0" for tier in TIERS)
METAWORLD_SCENES = ("source", "target")


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
      stage: name of its config file, without ".py"; options of the variant follow after "+".
      init: name of the run that it starts from, or `BASE`.
      questions: datasets whose held-out questions it answers (`BASE_DATA` measures retention).
      scenes: scenes in which it acts.
      interventions: what the policy gets there (etcvla/results_schema.py lists them).
    """
    return {
        "stage": stage,
        "init": init,
        "questions": questions,
        "scenes": scenes,
        "interventions": interventions,
    }


TABLETOP_RUNS = {
    "distribution_bridge": run("distribution_bridge+replay", BASE, questions=(BASE_DATA, "etc")),
    "objective_bridge": run(
        "objective_bridge+replay",
        "distribution_bridge",
        questions=(BASE_DATA, "etc"),
        scenes=TABLETOP_SCENES,
    ),
    "retentive_adapt": run(
        "retentive_adapt+ood+replay",
        "objective_bridge",
        questions=(BASE_DATA, "etc"),
        scenes=TABLETOP_SCENES,
        interventions=tuple(ALL_INTERVENTIONS),
    ),
}
METAWORLD_RUNS = {
    "distribution_bridge": run("distribution_bridge", BASE, questions=(BASE_DATA, "source")),
    "objective_bridge": run(
        "objective_bridge",
        "distribution_bridge",
        questions=(BASE_DATA, "source"),
        scenes=METAWORLD_SCENES,
        interventions=("right", "wrong_instruction", "blank_image"),
    ),
    "retentive_adapt": run(
        "retentive_adapt",
        "objective_bridge",
        questions=(BASE_DATA, "source", "target"),
        scenes=METAWORLD_SCENES,
    ),
}

METAWORLD = {
    "variant": "tiny",
    "runs": METAWORLD_RUNS,
    "episodes": {BASE_DATA: 0, **common.DEFAULT_EPISODES},
    "eval.simulator": "metaworld",
    "eval.trials": 10,
    "eval.intervention_trials": 5,
    "eval.max_steps": 250,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "demo": {
        "variant": "tabletop",
        "runs": TABLETOP_RUNS,
        "episodes": {BASE_DATA: 3000, "demos": 600, "etc": 300, "target": 200, "ood": 100},
        "steps.distribution_bridge": 400,
        "steps.objective_bridge": 1100,
        "steps.retentive_adapt": 250,
        "arms.action_only": True,
        "tasks": ("touch",),
        "eval.simulator": "tabletop",
        "eval.trials": 300,
        "eval.intervention_trials": 100,
        "eval.max_steps": 30,
        "eval.workers": 2,
    },
    "metaworld": {
        **METAWORLD,
        "tasks": common.METAWORLD_TASKS,
    },
    "mt10": {
        **METAWORLD,
        "tasks": common.MT10_TASKS,
        "steps.distribution_bridge": 800,
        "steps.objective_bridge": 2000,
        "steps.retentive_adapt": 700,
    },
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
    c.variant = ""  # variant of the stages' configs
    c.seed = 0  # of every stage and of the choice of evaluation questions
    # Weights that the first stage and the control arm start from, as `init_from` of a stage.
    c.base = "base"
    c.data_root = "data"  # folder of the embedded datasets
    # Training episodes (Meta-World: per task) of each dataset; 0: the dataset's default.
    c.episodes = ml_collections.ConfigDict()
    c.tasks = ()  # tasks of the simulator

    c.order = ORDER  # order of the runs
    c.runs = ml_collections.ConfigDict()  # name -> `run`
    # Steps of each run; 0: those of the stage's config.
    c.steps = ml_collections.ConfigDict(dict.fromkeys(ORDER, 0))

    c.arms = ml_collections.ConfigDict()
    # Also train and evaluate a control on actions alone with the same number of FLOPs.
    c.arms.action_only = False

    c.eval = ml_collections.ConfigDict()
    c.eval.simulator = ""  # of the tasks
    c.eval.trials = 0  # held-out layouts per task and scene; tabletop: five trials per layout
    c.eval.intervention_trials = 0  # the same for each intervention other than "right"
    c.eval.max_steps = 0  # control steps before an episode counts as failed
    c.eval.replan_steps = 5  # control steps between two queries of the policy
    c.eval.workers = 4  # simulator processes
    c.eval.questions = 96  # questions per kind and dataset
    c.eval.videos = 1  # trials per task, scene and intervention that are kept as GIF
    c.lock()
    common.override(c, VARIANTS[variant])
    return c
