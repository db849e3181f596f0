"""Evaluate one checkpoint on a benchmark, or on the scenes and questions of a recipe.

    python launch/evaluate.py --checkpoint=runs/tiny/objective_bridge --suite=metaworld_mt10 \\
        --trials=10 --perturb=none,camera:2 --out=scores/mt10
    python launch/evaluate.py --checkpoint=RUN --suite=tabletop --scenes=A0,C0 --trials=100 \\
        --language_control
    python launch/evaluate.py --checkpoint=runs/tiny/objective_bridge --scenes=source,target

With --suite it writes protocol.json, episodes.csv (one line per episode; an interrupted evaluation
resumes), scores.json and, on the tabletop, language.json to --out. Without, it writes the same and
examples of answers to <workdir>/evaluation. docs/evaluate.md explains the files.
"""

import sys
from collections.abc import Sequence

from absl import flags

from configs import common as fields
from etcvla import sims
from etcvla.errors import UserError
from etcvla.eval import benchmark, language
from etcvla.eval.evaluate import EvaluationSpec, evaluate
from etcvla.eval.trials import EvalProtocol
from etcvla.results_schema import BASE_DATA, INTERVENTIONS
from etcvla.sims import conditions, perturbations, suites
from launch import common

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Workdir (its newest checkpoint) or checkpoint to evaluate.", required=True
)
_SUITE = flags.DEFINE_string("suite", "", f"Benchmark: {', '.join(suites.names())}.")
_OUT = flags.DEFINE_string(
    "out", "", "Folder of a suite's results; default: <workdir>/evaluation/<suite>."
)
_PERTURB = flags.DEFINE_list(
    "perturb",
    ["none"],
    "With --suite: perturbations to run one after another, none or AXIS:STRENGTH with the axes "
    f"{', '.join(perturbations.AXES)} and the strengths 1, 2, 3.",
)
_PYTHON = flags.DEFINE_string(
    "simulator_python", sys.executable, "With --suite: the interpreter that has the simulator."
)
_ENSEMBLE = flags.DEFINE_float(
    "ensemble",
    None,
    "Temporal ensembling with the weights exp(-m i) of this m; see --replan_steps.",
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "Pixels; default: those of the suite, else 96."
)
_HEAD = flags.DEFINE_string(
    "head", None, "With --suite: action head, flow or fast; default: the one that was trained."
)
_TASKS = flags.DEFINE_list("tasks", None, "Tasks by name, or by number in a suite; default: all.")
_SCENES = flags.DEFINE_list(
    "scenes",
    None,
    "Scenes to act in; default: that of the suite, else source. Without --suite, an empty list "
    "means to ask questions only.",
)
_CONDITIONS = flags.DEFINE_list(
    "conditions",
    ["none"],
    f"Conditions to act in one after another: none, {', '.join(conditions.CONDITIONS)}.",
)
_INTERVENTIONS = flags.DEFINE_list(
    "interventions", ["right"], f"What the policy gets: {', '.join(INTERVENTIONS)}."
)
_LANGUAGE_CONTROL = flags.DEFINE_bool(
    "language_control",
    False,
    "With the suite of a simulator whose trials share layouts: play each layout with the "
    f"interventions {', '.join(language.INTERVENTIONS)}, and write language.json.",
)
_TRIALS = flags.DEFINE_integer(
    "trials", 10, "Episodes per task, scene, intervention and condition."
)
_VIDEOS = flags.DEFINE_integer("videos", 1, "Trials of those that are kept as GIF.")
_QUESTIONS = flags.DEFINE_integer("questions", 96, "Held-out questions per kind and dataset.")
_DATASETS = flags.DEFINE_list(
    "datasets",
    [BASE_DATA, "source"],
    "Datasets of the questions: tabletop_vqa, shapes, demos, etc, ood, source, target, or the "
    "folder of a dataset with the cameras front and wrist.",
)
_DATA_ROOT = flags.DEFINE_string("data_root", "data", "Folder of the embedded datasets.")
_MAX_STEPS = flags.DEFINE_integer(
    "max_steps",
    None,
    "Control steps before an episode counts as failed; default: those of the suite, else 250.",
)
_REPLAN_STEPS = flags.DEFINE_integer(
    "replan_steps", 5, "Control steps between two queries; 0: execute every chunk to its end."
)
_WORKERS = flags.DEFINE_integer("workers", 4, "Simulator processes.")
_ENVIRONMENTS = flags.DEFINE_integer(
    "environments",
    None,
    "Environments of each process; all environments share one batch of the policy. Default: those "
    "of the suite, else 1.",
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Seed of the choice of questions and, with --suite, of the policy's noise."
)


def main(_: list[str]) -> None:
    """Evaluate on a suite if one is given, else as a recipe does."""
    if _SUITE.value:
        evaluate_suite()
    else:
        evaluate_scenes()


def evaluate_suite() -> None:
    """Run a benchmark and print its table."""
    suite = suites.find(_SUITE.value, _PYTHON.value)
    protocol = EvalProtocol(
        max_steps=_MAX_STEPS.value or suite.max_steps,
        replan_steps=_REPLAN_STEPS.value,
        workers=_WORKERS.value,
        environments=_ENVIRONMENTS.value or suite.environments,
        image_size=_IMAGE_SIZE.value or suite.image_size,
        ensemble=_ENSEMBLE.value,
        seed=_SEED.value,
    )
    interventions = tuple(_INTERVENTIONS.value)
    if _LANGUAGE_CONTROL.value:
        if sims.get(suite.simulator).trials_per_layout == 1:
            raise UserError(
                f"--language_control: in {suite.name} a layout has one trial, so no two trials "
                "differ in the named object alone; choose --suite=tabletop"
            )
        interventions = language.INTERVENTIONS
    chosen = benchmark.Benchmark(
        suite,
        suite.select_tasks(_TASKS.value or ()),
        _TRIALS.value,
        protocol,
        interventions=interventions,
        conditions=_names(_CONDITIONS.value),
        perturbations=_names(_PERTURB.value),
        scenes=tuple(_SCENES.value or ()),
        videos=_VIDEOS.value,
    )
    out = _OUT.value or f"{_CHECKPOINT.value}/evaluation/{suite.name}"
    scores = benchmark.run_benchmark(
        _CHECKPOINT.value, chosen, out, head=_HEAD.value, python=_PYTHON.value
    )
    print("\n".join(benchmark.format_scores(scores["groups"])))
    print(f"scores: {out}/scores.json", flush=True)


def _names(values: Sequence[str]) -> tuple[str, ...]:
    """Return the values of a flag with "" for "none"."""
    return tuple("" if value == "none" else value for value in values)


def evaluate_scenes() -> None:
    """Act in scenes and answer held-out questions, as a recipe's evaluation does."""
    protocol = EvalProtocol(
        max_steps=_MAX_STEPS.value or 250,
        replan_steps=_REPLAN_STEPS.value,
        workers=_WORKERS.value,
        environments=_ENVIRONMENTS.value or 1,
        image_size=_IMAGE_SIZE.value or 96,
        ensemble=_ENSEMBLE.value,
    )
    spec = EvaluationSpec(
        tasks=tuple(_TASKS.value or fields.METAWORLD_TASKS),
        scenes=("source",) if _SCENES.value is None else tuple(_SCENES.value),
        conditions=_names(_CONDITIONS.value),
        interventions=tuple(_INTERVENTIONS.value),
        trials=_TRIALS.value,
        intervention_trials=_TRIALS.value,
        videos=_VIDEOS.value,
        questions=_QUESTIONS.value,
        datasets=common.question_datasets(_DATASETS.value, _DATA_ROOT.value),
        protocol=protocol,
        seed=_SEED.value,
    )
    evaluate(_CHECKPOINT.value, spec)


if __name__ == "__main__":
    common.run(main)
