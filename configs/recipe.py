"""All stages in a row, evaluated, with a report.

    python launch/recipe.py --config=configs/recipe.py          # what `make demo` runs: runs/demo/report.html
    python launch/recipe.py --config=configs/recipe.py:mt10     # the same with the ten tasks of MT10
    python launch/recipe.py --config=configs/recipe.py --config.arms.action_only=True   # with the control arm

Demo: under half an hour on two cores from nothing; six tasks, source and target scene. The control arm trains on
actions alone for as many steps as stages 1, 2 and 3 took, from the same VLM.
"""

import ml_collections

from configs import common

STAGES = ("vlm_pretrain", "distribution_bridge", "objective_bridge", "retentive_adapt")


def run(
    stage: str,
    init: str,
    *,
    vqa: tuple[str, ...],
    scenes: tuple[str, ...] = (),
    interventions: tuple[str, ...] = ("right",),
) -> dict:
    """One training run of a recipe.

    Args:
      stage: the config file that it takes, without ".py". init: the run that it starts from, "" for none.
      vqa: datasets whose held-out questions it is asked ("shapes" is the retention metric).
      scenes: where it acts; interventions: what it is shown there (etcvla/eval/rollouts.py lists them).
    """
    return {
        "stage": stage,
        "init": init,
        "vqa": vqa,
        "scenes": scenes,
        "interventions": interventions,
        "action_only": False,
        "steps": 0,
    }


def get_config(variant: str = "demo") -> ml_collections.ConfigDict:
    """Raises ValueError for an unknown variant."""
    if variant not in ("demo", "mt10"):
        raise ValueError(f"configs/recipe.py: no variant {variant!r}; choose from demo, mt10")
    c = ml_collections.ConfigDict()
    c.name = variant
    c.workdir = f"runs/{variant}"  # a folder a run in it, and summary.json and report.html
    c.variant = "tiny"  # of the stages' configs
    c.seed = 0  # of every stage and of the evaluation's questions
    c.data_root = "data"  # where the embedded datasets are built
    c.tasks = common.METAWORLD_TASKS if variant == "demo" else common.MT10_TASKS
    c.source_episodes = 30  # demonstrations a task in the source scene
    c.target_episodes = 10  # and in the target scene

    c.order = STAGES  # of the runs
    c.runs = ml_collections.ConfigDict(
        {
            "vlm_pretrain": run("vlm_pretrain", "", vqa=("shapes",)),
            "distribution_bridge": run(
                "distribution_bridge", "vlm_pretrain", vqa=("shapes", "source")
            ),
            "objective_bridge": run(
                "objective_bridge",
                "distribution_bridge",
                vqa=("shapes", "source"),
                scenes=("source", "target"),
                interventions=("right", "wrong_instruction", "blank_image"),
            ),
            "retentive_adapt": run(
                "retentive_adapt",
                "objective_bridge",
                vqa=("shapes", "source", "target"),
                scenes=("source", "target"),
            ),
        }
    )
    c.steps = ml_collections.ConfigDict(
        dict.fromkeys(STAGES, 0)
    )  # overrides a stage's steps; 0 keeps them
    if variant == "mt10":
        c.steps.distribution_bridge = 800
        c.steps.objective_bridge = 2000
        c.steps.retentive_adapt = 700

    c.arms = ml_collections.ConfigDict()
    c.arms.action_only = (
        False  # also train on actions alone with the same budget of steps, and evaluate
    )

    c.eval = ml_collections.ConfigDict()
    c.eval.trials = 10  # held-out layouts a task and scene
    c.eval.control_trials = 5  # the same, under the interventions that are not "right"
    c.eval.max_steps = 250  # control steps before an episode counts as failed
    c.eval.replan_steps = 5  # control steps between looks
    c.eval.workers = 4  # simulator processes
    c.eval.questions = 96  # a kind and dataset
    c.eval.videos = 1  # trials a task, scene and intervention that are kept as GIF
    return c.lock()
