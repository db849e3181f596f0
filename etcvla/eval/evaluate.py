"""Evaluates a checkpoint: acting in closed loop, held-out questions, and pictures of both.

Everything goes to <workdir>/evaluation; what is there already for the same checkpoint and protocol is not done again.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from PIL import Image

from etcvla import sims
from etcvla.data.rlds import RLDSDataset
from etcvla.data.rlds_layout import split_names
from etcvla.data.splits import check_disjoint
from etcvla.data.stage_dataset import StageDataset
from etcvla.eval import benchmark, rollouts, vqa
from etcvla.eval.benchmark import wrong_instruction
from etcvla.eval.results_log import ResultsLog, write
from etcvla.eval.trials import EvalProtocol, Trial
from etcvla.policy import Policy
from etcvla.results_schema import INTERVENTIONS
from etcvla.train.checkpoint import open_checkpoint

EXAMPLES_PER_KIND = 8


@dataclasses.dataclass(frozen=True)
class EvaluationSpec:
    """What to evaluate."""

    tasks: tuple[str, ...]
    scenes: tuple[str, ...]  # where to act; () to not act
    interventions: tuple[str, ...]
    trials: int  # a task and scene under "right"
    intervention_trials: int  # the same under other interventions
    videos: int  # trials a task, scene and intervention to video
    questions: int  # a kind and dataset
    datasets: Mapping[
        str, tuple[str, tuple[str, ...]]
    ]  # name -> path, cameras; "shapes" is the retention metric
    protocol: EvalProtocol
    seed: int
    simulator: str = "metaworld"  # of the tasks and scenes

    def __post_init__(self):
        unknown = set(self.interventions) - set(INTERVENTIONS)
        if unknown:
            raise ValueError(
                f"unknown intervention {', '.join(sorted(unknown))}; choose from {tuple(INTERVENTIONS)}"
            )


def evaluate(workdir: str, spec: EvaluationSpec) -> dict:
    """Evaluates the newest checkpoint of `workdir` and returns what scores.json holds."""
    out = epath.Path(workdir) / "evaluation"
    asked = json.loads(
        json.dumps({"step": open_checkpoint(workdir).step, "spec": dataclasses.asdict(spec)})
    )
    done = out / "scores.json"
    if (
        done.exists()
        and {k: v for k, v in json.loads(done.read_text()).items() if k in asked} == asked
    ):
        print(f"{workdir} is evaluated, nothing to do", flush=True)
        return json.loads(done.read_text())
    out.mkdir(parents=True, exist_ok=True)
    began, policy = time.time(), Policy.load(workdir)
    scores = {**asked, "protocol": dataclasses.asdict(spec.protocol), **_ask(policy, spec, out)}
    if spec.scenes:
        simulator = sims.get(spec.simulator)
        results_log = ResultsLog(
            out,
            {
                **asked,
                **benchmark.describe_protocol(
                    workdir,
                    policy,
                    spec.protocol,
                    trials=spec.trials,
                    scenes=spec.scenes,
                    fixed=False,
                    simulator=simulator.versions(),
                ),
            },
            replace=True,
        )
        policy.warm_up(spec.protocol.workers, [simulator.instruction(task) for task in spec.tasks])
        results = rollouts.evaluate(
            policy, trials(spec), spec.protocol, what=f"{workdir}: acting", results_log=results_log
        )
        print("\n".join(rollouts.rates(results)), flush=True)
        scores |= {"success": rollouts.table(results), "groups": benchmark.score_groups(results)}
    scores["seconds"] = time.time() - began
    write(done, json.dumps(scores, indent=2))
    return scores


def trials(spec: EvaluationSpec) -> Sequence[Trial]:
    """All episodes of a spec."""
    return [
        Trial(
            spec.simulator,
            scene,
            task,
            i,
            intervention,
            wrong_instruction(spec.simulator, task, spec.tasks)
            if intervention == "wrong_instruction"
            else "",
            video=i < spec.videos,
        )
        for intervention in spec.interventions
        for scene in spec.scenes
        for task in spec.tasks
        for i in range(spec.trials if intervention == "right" else spec.intervention_trials)
    ]


def _ask(policy: Policy, spec: EvaluationSpec, out: epath.Path) -> dict:
    """Scores of the held-out questions: {"etc": by dataset and kind, "mm": by kind}; writes examples.json."""
    scores, examples = {"etc": {}}, []
    for name, (path, cameras) in spec.datasets.items():
        cameras = cameras[: policy.num_cameras]
        held_out, training = open_splits(path, cameras)
        answered = vqa.answer_all(
            policy, vqa.draw_questions(held_out, per_kind=spec.questions, seed=spec.seed)
        )
        by_kind = vqa.scores(answered, vqa.items_of(training))
        print(
            f"{name}: "
            + ", ".join(
                f"{kind} {s['accuracy']:.0%} (majority {s['majority']:.0%})"
                for kind, s in by_kind.items()
            ),
            flush=True,
        )
        if name == "shapes":
            scores["mm"] = by_kind
        else:
            scores["etc"][name] = by_kind
        examples += [(name, question) for kind in by_kind for question in _pick(answered, kind)]
    _write_examples(out, examples)
    return scores


def open_splits(path: str, cameras: Sequence[str]) -> tuple[StageDataset, StageDataset]:
    """What is asked and what could be learnt by heart; for looks that are held out altogether both are the former.

    Raises FileNotFoundError if there is no such dataset, ValueError if the splits share an episode.
    """
    held_out = StageDataset(RLDSDataset(path, "val"), cameras)
    if "train" not in split_names(held_out.dataset.directory):
        return held_out, held_out
    training = StageDataset(RLDSDataset(path, "train"), cameras)
    check_disjoint(training.dataset, held_out.dataset)
    return held_out, training


def _pick(answered: Sequence[vqa.Question], kind: str) -> list[vqa.Question]:
    of_kind = [question for question in answered if question.item.kind == kind]
    chosen = np.linspace(0, len(of_kind) - 1, min(EXAMPLES_PER_KIND, len(of_kind))).astype(int)
    return [of_kind[i] for i in chosen]


def _write_examples(out: epath.Path, examples: Sequence[tuple[str, vqa.Question]]) -> None:
    (out / "examples").mkdir(exist_ok=True)
    rows = []
    for i, (name, q) in enumerate(examples):
        image = f"examples/{i:04d}.png"
        Image.fromarray(q.images[0]).save(out / image)
        rows.append(
            {
                "dataset": name,
                "image": image,
                "instruction": q.instruction,
                "kind": q.item.kind,
                "question_type": q.item.question_type,
                "question": q.item.question,
                "answer": q.item.answer,
                "prediction": q.prediction,
                "correct": q.correct,
            }
        )
    (out / "examples.json").write_text(json.dumps(rows, indent=1))
