"""Evaluate a checkpoint of a recipe: acting in scenes, and held-out questions.

The results are in <workdir>/evaluation: scores.json, protocol.json, episodes.csv, language.json,
questions.csv, examples.json and pictures. If they exist already for the same checkpoint and
specification, nothing is run.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from PIL import Image

from etcvla import sims
from etcvla.data.rlds import RLDSDataset
from etcvla.data.rlds_layout import split_names
from etcvla.data.splits import check_disjoint
from etcvla.data.stage_dataset import StageDataset
from etcvla.eval import vqa
from etcvla.eval.benchmark import (
    describe_protocol,
    format_scores,
    score_groups,
    success_table,
)
from etcvla.eval.language import write_language
from etcvla.eval.results_log import ResultsLog
from etcvla.eval.rollouts import run_trials
from etcvla.eval.trials import EvalProtocol, TrialGrid, TrialResult
from etcvla.files import write_csv, write_json
from etcvla.policy import Policy
from etcvla.results_schema import BASE_DATA
from etcvla.train.checkpoint import open_checkpoint

EXAMPLES_PER_KIND = 8
QUESTION_COLUMNS = (
    "dataset",
    "kind",
    "question_type",
    "question",
    "answer",
    "prediction",
    "correct",
)


@dataclasses.dataclass(frozen=True)
class EvaluationSpec:
    """What to evaluate. Raises UserError as `TrialGrid`."""

    tasks: tuple[str, ...]
    scenes: tuple[str, ...]  # where to act; () for no acting
    interventions: tuple[str, ...]
    trials: int  # per task and scene under the intervention "right"
    intervention_trials: int  # per task and scene under other interventions
    videos: int  # trials with a video, per task, scene and intervention
    questions: int  # per kind and dataset
    # Name -> (path, cameras). `BASE_DATA` measures what a model retains of its VLM stage.
    datasets: Mapping[str, tuple[str, tuple[str, ...]]]
    protocol: EvalProtocol
    seed: int
    simulator: str = "metaworld"  # of the tasks and scenes
    conditions: tuple[str, ...] = ("",)  # keys of `sims.conditions.CONDITIONS`; "" for none

    def __post_init__(self):
        _ = self.grid  # checks its arguments

    @property
    def grid(self) -> TrialGrid:
        """The episodes."""
        counts = dict.fromkeys(self.interventions, self.intervention_trials)
        if "right" in counts:
            counts["right"] = self.trials
        return TrialGrid(
            self.simulator,
            self.scenes,
            self.tasks,
            counts,
            conditions=self.conditions,
            videos=self.videos,
        )


def evaluate(checkpoint_path: str, spec: EvaluationSpec) -> dict[str, Any]:
    """Evaluate a checkpoint and return the content of scores.json.

    Keys:
      step: of the checkpoint. spec: see `EvaluationSpec`. protocol: see `EvalProtocol`.
      etc: dataset -> kind -> scores of `vqa.score_by_kind`.
      mm: kind -> scores of the dataset `BASE_DATA`.
      groups: see `benchmark.score_groups`. success: see `benchmark.success_table`.
      seconds: wall time of the evaluation.

    Args:
      checkpoint_path: a workdir, or the folder of one of its checkpoints.
    """
    start = time.time()
    checkpoint = open_checkpoint(checkpoint_path)
    out = checkpoint.workdir / "evaluation"
    request = {"step": checkpoint.step, "spec": dataclasses.asdict(spec)}
    request = json.loads(json.dumps(request))
    previous = _read_scores(out)
    if all(previous.get(key) == value for key, value in request.items()):
        print(f"{checkpoint_path} is evaluated, nothing to do", flush=True)
        return previous
    out.mkdir(parents=True, exist_ok=True)
    policy = Policy.load(checkpoint_path)
    scores = {
        **request,
        "protocol": dataclasses.asdict(spec.protocol),
        **_score_questions(policy, spec, out),
    }
    if spec.scenes:
        results = _act(checkpoint_path, policy, spec, request, out)
        scores["groups"] = score_groups(results)
        scores["success"] = success_table(scores["groups"])
        print("\n".join(format_scores(scores["groups"])), flush=True)
    scores["seconds"] = time.time() - start
    write_json(out / "scores.json", scores)
    return scores


def _read_scores(out: epath.Path) -> dict:
    path = out / "scores.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _act(
    checkpoint_path: str,
    policy: Policy,
    spec: EvaluationSpec,
    request: Mapping,
    out: epath.Path,
) -> list[TrialResult]:
    simulator = sims.get(spec.simulator)
    description = describe_protocol(
        checkpoint_path, policy, spec.protocol, spec.grid, simulator.versions()
    )
    results_log = ResultsLog(out, {**request, **description}, replace=True)
    policy.warm_up(spec.protocol.rows, [simulator.instruction(task) for task in spec.tasks])
    results = run_trials(
        policy,
        spec.grid.trials(),
        spec.protocol,
        label=f"{checkpoint_path}: acting",
        results_log=results_log,
    )
    write_language(out, results)
    return results


def _score_questions(policy: Policy, spec: EvaluationSpec, out: epath.Path) -> dict:
    """Return "etc" and "mm" of scores.json; write examples.json and questions.csv."""
    scores: dict[str, Any] = {"etc": {}}
    examples = []
    lines = []
    for name, (path, cameras) in spec.datasets.items():
        held_out, training = open_splits(path, cameras[: policy.num_cameras])
        questions = vqa.draw_questions(held_out, per_kind=spec.questions, seed=spec.seed)
        answered = vqa.answer_questions(policy, questions)
        lines += [_question_line(name, question) for question in answered]
        by_kind = vqa.score_by_kind(answered, vqa.sample_items(training))
        parts = []
        for kind, kind_scores in by_kind.items():
            parts.append(
                f"{kind} {kind_scores['accuracy']:.0%} (majority {kind_scores['majority']:.0%})"
            )
            of_kind = [question for question in answered if question.item.kind == kind]
            for question in vqa.spread_evenly(of_kind, EXAMPLES_PER_KIND):
                examples.append((name, question))
        print(f"{name}: {', '.join(parts)}", flush=True)
        if name == BASE_DATA:
            scores["mm"] = by_kind
        else:
            scores["etc"][name] = by_kind
    _write_examples(out, examples)
    write_csv(out / "questions.csv", QUESTION_COLUMNS, lines)
    return scores


def _question_line(dataset: str, question: vqa.Question) -> tuple[str, ...]:
    """Return the line of questions.csv, in the order of `QUESTION_COLUMNS`."""
    item = question.item
    correct = str(int(question.correct))
    fields = (item.kind, item.question_type, item.question, item.answer, question.prediction)
    return (dataset, *fields, correct)


def open_splits(path: str, cameras: Sequence[str]) -> tuple[StageDataset, StageDataset]:
    """Return the held-out split of a dataset and its training split.

    If there is no training split, the held-out split takes its place: in a dataset of held-out
    appearances nothing was trained on.

    Raises UserError if the dataset is missing or its splits share an episode.
    """
    held_out = StageDataset(RLDSDataset(path, "val"), cameras)
    if "train" not in split_names(held_out.dataset.directory):
        return held_out, held_out
    training = StageDataset(RLDSDataset(path, "train"), cameras)
    check_disjoint(training.dataset, held_out.dataset)
    return held_out, training


def _write_examples(out: epath.Path, examples: Sequence[tuple[str, vqa.Question]]) -> None:
    """Write examples.json, and the first image of each example."""
    (out / "examples").mkdir(exist_ok=True)
    rows = []
    for i, (name, question) in enumerate(examples):
        image = f"examples/{i:04d}.png"
        Image.fromarray(question.images[0]).save(out / image)
        rows.append(
            {
                "dataset": name,
                "image": image,
                "instruction": question.instruction,
                "kind": question.item.kind,
                "question_type": question.item.question_type,
                "question": question.item.question,
                "answer": question.item.answer,
                "prediction": question.prediction,
                "correct": question.correct,
            }
        )
    write_json(out / "examples.json", rows)
