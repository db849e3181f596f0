"""What each run and cell of a study costs, and whether the arms of a contrast match in it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence

import ml_collections

from etcvla.aot.compile import useful_flops
from etcvla.data.stage_dataset import ACTION_KIND
from etcvla.errors import UserError
from etcvla.study.config import StudySpec
from etcvla.study.runs import Graph
from etcvla.train import sharding
from etcvla.train.stage import make_plan

TOLERANCE = 0.01  # largest relative difference of two arms that count as matched


@dataclasses.dataclass(frozen=True)
class TrainingCosts:
    """What training consumes.

    Attributes:
      flops: of all steps, multiplications and additions, without what is rematerialized.
      action_rows: rows with actions.
      etc_segments: ETC questions with their answers, in rows of their own or beside actions.
    """

    flops: int
    action_rows: int
    etc_segments: int

    def __add__(self, other: TrainingCosts) -> TrainingCosts:
        return TrainingCosts(
            self.flops + other.flops,
            self.action_rows + other.action_rows,
            self.etc_segments + other.etc_segments,
        )


def run_costs(config: ml_collections.ConfigDict, general: Sequence[str]) -> TrainingCosts:
    """Return the costs of a stage, which follow from its config alone.

    Args:
      general: datasets whose questions are not ETC.
    """
    plan = make_plan(config)
    rows = plan.counts.sum(axis=0)
    action_rows = 0
    etc_segments = 0
    for stream, count in zip(plan.streams, rows.tolist(), strict=True):
        segments = stream.extra_segments
        if stream.kind == ACTION_KIND:
            action_rows += count
        else:
            segments += 1
        if stream.dataset not in general:
            etc_segments += count * segments
    flops = config.steps * _step_flops(config)
    return TrainingCosts(flops, action_rows, etc_segments)


_FLOPS: dict[str, int] = {}  # the part of a config that a step depends on, as JSON -> its FLOPs


def _step_flops(config: ml_collections.ConfigDict) -> int:
    """Return the FLOPs of a stage's first step.

    Tracing a step takes seconds, and many runs of a study have the same one.
    """
    fields = json.loads(config.to_json_best_effort())
    groups = ("model", "data", "loss", "optim", "augment", "batch_size")
    key = json.dumps([fields[name] for name in groups])
    if key not in _FLOPS:
        _FLOPS[key] = useful_flops(config, sharding.make_mesh(config.mesh))
    return _FLOPS[key]


def cell_costs(graph: Graph) -> dict[str, TrainingCosts]:
    """Return the costs of each cell: those of all its runs, for its first seed."""
    by_run = {}
    costs = {}
    for (cell, _), runs in graph.cells.items():
        if cell in costs:
            continue
        total = TrainingCosts(0, 0, 0)
        for run in runs:
            if run.key not in by_run:
                by_run[run.key] = run_costs(run.config, graph.study.general)
            total += by_run[run.key]
        costs[cell] = total
    return costs


def check_matched(study: StudySpec, costs: Mapping[str, TrainingCosts]) -> None:
    """Raise UserError if the arms of a contrast differ in what is to be matched.

    Args:
      costs: of each cell; contrasts of other cells are not checked.
    """
    for contrast in study.contrasts:
        if contrast.a not in costs or contrast.b not in costs:
            continue
        matched = contrast.matched or study.matched
        ours = getattr(costs[contrast.a], matched)
        theirs = getattr(costs[contrast.b], matched)
        if abs(ours - theirs) <= TOLERANCE * max(ours, theirs):
            continue
        raise UserError(
            f"contrast {contrast.name!r}: {contrast.a} has {ours:,} {matched} and {contrast.b} "
            f"{theirs:,}, which differ by more than {TOLERANCE:.0%}; multiply the steps of "
            f"{contrast.b} by {ours / max(theirs, 1):.3f}"
        )
