"""Do one run of a study: build its data, train it, evaluate it, and summarize the results."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections

from etcvla.errors import UserError
from etcvla.eval.evaluate import evaluate
from etcvla.files import write_json
from etcvla.provenance import git_commit, run_versions
from etcvla.results_schema import BASE_DATA
from etcvla.study import claims
from etcvla.study.claims import DEFAULT_TIMING, Timing
from etcvla.study.config import StudySpec
from etcvla.study.costs import run_costs
from etcvla.study.runs import Graph, Run
from etcvla.study.word_scores import word_scores
from etcvla.study.worker import POLL_SECONDS
from etcvla.train.stage import build_dataset, has_dataset

# Trains or resumes a stage; returns {"seconds", ...} as `etcvla.train.loop.train`.
Train = Callable[[ml_collections.ConfigDict], Mapping[str, Any]]


def execute(run: Run, study: StudySpec, train: Train) -> dict[str, Any]:
    """Train and evaluate a run, or what is missing of it, and return its results.

    Keys:
      seconds, evaluation_seconds: wall time.
      flops, action_rows, etc_segments: see `TrainingCosts`.
      scores: see `summarize_scores`; "words": see `word_scores`.
      metrics: the last value of each metric in the training log.
      embedding_drift: 1 - the cosine of the rows of words that no answer uses to the stage's start.
      commit, versions: of the code.
    """
    seconds = train_run(run.config, train)
    scores = evaluate(str(run.folder), run.evaluation)
    metrics = last_metrics(run.folder)
    cosine = metrics.get("embedding/cosine_others")
    return {
        "seconds": seconds,
        "evaluation_seconds": scores["seconds"],
        **dataclasses.asdict(run_costs(run.config, study.general)),
        "scores": {**summarize_scores(scores), "words": _words(run, study)},
        "metrics": metrics,
        "embedding_drift": None if cosine is None else 1 - cosine,
        "commit": git_commit(),
        "versions": run_versions(),
    }


def _words(run: Run, study: StudySpec) -> dict[str, Any]:
    """Return the scores of answers by their words, which only the tabletop sorts into tiers."""
    if study.eval.simulator != "tabletop":
        return {}
    return word_scores(run.folder / "evaluation", study.rotation(run.seed))


def train_run(config: ml_collections.ConfigDict, train: Train) -> float:
    """Train a run unless it is finished; return its training time over all attempts, seconds."""
    record = pathlib.Path(config.workdir) / "training.json"
    seconds = 0.0
    if record.exists():
        seconds = json.loads(record.read_text())["seconds"]
    seconds += train(config)["seconds"]
    write_json(record, {"seconds": seconds})
    return seconds


def summarize_scores(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scores of a run from the content of its scores.json.

    Keys:
      questions: dataset -> kind -> {"accuracy", "majority", "count"}; `BASE_DATA` has `mm` there.
      success: intervention -> scene -> task -> [successes, trials].
    """
    by_dataset = dict(scores["etc"])
    if "mm" in scores:
        by_dataset[BASE_DATA] = scores["mm"]
    questions = {}
    for name, by_kind in by_dataset.items():
        questions[name] = {}
        for kind, kind_scores in by_kind.items():
            kept = {field: kind_scores[field] for field in ("accuracy", "majority", "count")}
            questions[name][kind] = kept
    return {"questions": questions, "success": scores.get("success", {})}


def last_metrics(folder: pathlib.Path) -> dict[str, float]:
    """Return the last value of each metric in a run's training log; {} without a log."""
    path = folder / "metrics.jsonl"
    latest = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        latest |= json.loads(line)
    return latest


def build_missing(
    datasets: Sequence[Mapping[str, Any]],
    folder: pathlib.Path,
    *,
    timing: Timing = DEFAULT_TIMING,
    poll_seconds: float = POLL_SECONDS,
) -> None:
    """Build missing datasets; wait for those that another worker builds.

    Args:
      datasets: config entries of datasets.
      folder: gets a folder of claims for each of them.

    Raises UserError if a dataset cannot be built, or failed too often.
    """
    for dataset in datasets:
        path = dataset["path"]
        work = folder / path.strip("/").replace("/", "-")
        while not has_dataset(path):
            if not dataset["build"]:
                raise UserError(f"dataset {path} does not exist and has no build command")
            claim = claims.claim(work, timing)
            if claim is not None:
                with claim:
                    build_dataset(work.name, dataset)
            elif claims.state(work, timing) == "failed":
                raise UserError(
                    f"the build of {path} failed {claims.RETRIES + 1} times; read its output, then "
                    f"delete {work} to try again"
                )
            else:
                time.sleep(poll_seconds)


def used_datasets(graph: Graph) -> list[Mapping[str, Any]]:
    """Return the config entries of all datasets that runs train on or answer questions of."""
    by_path = {}
    for run in graph.runs.values():
        entries = [graph.study.dataset(name, run.seed) for name in run.spec.questions]
        for stream in run.config.streams.values():
            entries.append(run.config.datasets[stream.dataset])
        for entry in entries:
            by_path[entry["path"]] = entry
    return list(by_path.values())
