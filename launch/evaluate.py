"""Evaluates one checkpoint: on a benchmark, or as a recipe does (the demo's scenes, and held-out questions).

    python launch/evaluate.py --checkpoint=runs/tiny/objective_bridge --suite=metaworld_mt10 --trials=10 \\
        --perturb=none,camera:2 --out=scores/mt10
    python launch/evaluate.py --checkpoint=runs/tiny/objective_bridge --domains=source,target --trials=10

The first writes protocol.json, episodes.csv (a line an episode; what is interrupted goes on) and scores.json into
--out, the second the same and examples into <checkpoint>/evaluation. docs/evaluation.md explains them.
"""

import sys

from absl import flags

from configs import common as fields
from etcvla.eval import benchmark
from etcvla.eval.evaluate import EvaluationSpec, evaluate
from etcvla.eval.trials import EvalProtocol
from etcvla.sims import perturbations, suites
from launch import common

_WORKDIR = flags.DEFINE_string(
    "checkpoint", None, "The run whose newest checkpoint is evaluated.", required=True
)
flags.DEFINE_alias("workdir", "checkpoint")
_SUITE = flags.DEFINE_string("suite", "", f"A benchmark: {', '.join(suites.NAMES)}.")
_OUT = flags.DEFINE_string(
    "out", "", "Where its scores go; <checkpoint>/evaluation/<suite> by default."
)
_PERTURB = flags.DEFINE_list(
    "perturb",
    ["none"],
    f"With a suite, each in turn: none, or AXIS:STRENGTH of the axes "
    f"{', '.join(perturbations.AXES)} and the strengths 1, 2, 3.",
)
_PYTHON = flags.DEFINE_string(
    "simulator_python", sys.executable, "With a suite: the Python that has its simulator."
)
_ENSEMBLE = flags.DEFINE_float(
    "ensemble", None, "Temporal ensembling, with weights exp(-m i) of this m; see --replan_steps."
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "Pixels; by default 96, or what the suite has."
)
_HEAD = flags.DEFINE_string(
    "head", None, "With a suite: how to act, flow or fast; by default what was trained."
)
_TASKS = flags.DEFINE_list(
    "tasks", None, "Tasks to act in: of a suite names or numbers, all by default."
)
_SCENES = flags.DEFINE_list("scenes", ["source"], "Scenes to act in; empty to only ask questions.")
_CONDITIONS = flags.DEFINE_list(
    "interventions", ["right"], "right, wrong_instruction, blank_image."
)
_TRIALS = flags.DEFINE_integer("trials", 10, "Held-out layouts a task, scene and intervention.")
_FILMS = flags.DEFINE_integer("videos", 1, "How many of them are kept as GIF.")
_QUESTIONS = flags.DEFINE_integer("questions", 96, "Held-out questions a kind and dataset.")
_DATASETS = flags.DEFINE_list(
    "datasets",
    ["shapes", "source"],
    "Where questions come from: shapes, source, target, or "
    "the directory of a set with the cameras front and wrist, such as held-out looks.",
)
_DATA_ROOT = flags.DEFINE_string("data_root", "data", "Where the embedded datasets lie.")
_MAX_STEPS = flags.DEFINE_integer(
    "max_steps",
    None,
    "Control steps before an episode counts as failed; by default 250, or what the suite has.",
)
_REPLAN = flags.DEFINE_integer(
    "replan_steps", 5, "Control steps between looks; 0 is every chunk to its end (open loop)."
)
_WORKERS = flags.DEFINE_integer("workers", 4, "Simulator processes.")
_SEED = flags.DEFINE_integer(
    "seed", 0, "Of the choice of questions; with a suite, of the policy's noise."
)


def main(_):
    play() if _SUITE.value else demo()


def play() -> None:
    """A benchmark."""
    suite = suites.find(_SUITE.value, _PYTHON.value)
    protocol = EvalProtocol(
        max_steps=_MAX_STEPS.value or suite.max_steps,
        replan_steps=_REPLAN.value,
        workers=_WORKERS.value,
        image_size=_IMAGE_SIZE.value or suite.image_size,
        ensemble=_ENSEMBLE.value,
        seed=_SEED.value,
    )
    asked = benchmark.Benchmark(
        suite,
        suite.some(_TASKS.value or ()),
        _TRIALS.value,
        protocol,
        tuple(_CONDITIONS.value),
        tuple("" if name == "none" else name for name in _PERTURB.value),
        _FILMS.value,
    )
    out = _OUT.value or f"{_WORKDIR.value}/evaluation/{suite.name}"
    scores = benchmark.run_benchmark(
        _WORKDIR.value, asked, out, head=_HEAD.value, python=_PYTHON.value
    )
    print(
        "\n".join(benchmark.format_scores(scores["groups"])) + f"\nscores: {out}/scores.json",
        flush=True,
    )


def demo() -> None:
    """What a recipe evaluates."""
    known = common.question_sets(_DATASETS.value, _DATA_ROOT.value)
    evaluate(
        _WORKDIR.value,
        EvaluationSpec(
            tasks=tuple(_TASKS.value or fields.METAWORLD_TASKS),
            scenes=tuple(_SCENES.value),
            interventions=tuple(_CONDITIONS.value),
            trials=_TRIALS.value,
            control_trials=_TRIALS.value,
            videos=_FILMS.value,
            questions=_QUESTIONS.value,
            datasets=known,
            protocol=EvalProtocol(
                max_steps=_MAX_STEPS.value or 250,
                replan_steps=_REPLAN.value,
                workers=_WORKERS.value,
                image_size=_IMAGE_SIZE.value or 96,
                ensemble=_ENSEMBLE.value,
            ),
            seed=_SEED.value,
        ),
    )


if __name__ == "__main__":
    common.run(main)
