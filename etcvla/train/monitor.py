"""Everything that a run shows, behind one object that the trainer tells what it does.

Nothing here changes what is computed: the trainer's batches, parameters and random numbers are only looked at.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from etcvla.data.plan import Plan
from etcvla.models.vla import VLA
from etcvla.train import sharding, usage
from etcvla.train.log import Logger, WandB, find_wandb
from etcvla.train.profiler import Profiler, parse_window
from etcvla.train.stage import Stage
from etcvla.train.state import TrainState


class Evaluation(Protocol):
    """What is asked of the parameters at the stage's points; see `etcvla.eval.in_loop`."""

    def __call__(self, params: Any) -> Mapping[str, float]: ...


@dataclasses.dataclass(frozen=True)
class MonitorOptions:
    """What a run shows beside its lines. No part of its config: nothing of it changes what is computed."""

    wandb: str = ""  # project of Weights & Biases; "" for none
    profile: str = ""  # START:STOP, steps under the profiler
    evaluation: Callable[[Stage, Mesh], Evaluation] | None = (
        None  # makes what the config's eval.at_progress call for
    )
    # Draws the first batch, arguments (batch, stage, title), as uint8[height, width, 3]; None: no picture.
    draw_first_batch: Callable[[Mapping[str, np.ndarray], Stage, str], np.ndarray] | None = None


class TrainingMonitor:
    """Shows a run: lines, TensorBoard, the first batch, evaluations at points, a profile.

    Args:
      step_of: a model's training step (that of the stage's own is the one that is run), to count FLOPs; state: the
        abstract state that it takes.

    Nothing is written before `batches`. Raises ValueError for malformed points or a malformed window, and where nobody
    said how to evaluate.
    """

    def __init__(
        self,
        stage: Stage,
        mesh: Mesh,
        options: MonitorOptions,
        *,
        step_of: Callable[[VLA], Callable],
        state: TrainState,
    ):
        config = stage.config
        self._stage, self._mesh, self._options, self._step_of, self._state = (
            stage,
            mesh,
            options,
            step_of,
            state,
        )
        self._window = parse_window(options.profile)
        self._due = evaluations_due(config.eval.at_progress, config.steps)
        if self._due and options.evaluation is None:
            raise ValueError(
                "eval.at_progress are set, but train() was not told how to evaluate: pass "
                "MonitorOptions(evaluation=etcvla.eval.in_loop.make_evaluation), or set eval.at_progress=()"
            )
        self._evaluation = options.evaluation(stage, mesh) if self._due else None
        self._planned = np.cumsum(stage.plan.weights, axis=0)
        self._first: Mapping[str, np.ndarray] | None = None
        self._tokens: list[float] = []  # a row, in each batch since the last line
        self._flops = 0
        if options.wandb:
            find_wandb()
        self._open = contextlib.ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._open.close()

    @property
    def last(self) -> dict[str, float]:
        """The numbers of the last line."""
        return self._logger.last

    def batches(
        self, data: Iterator[Mapping[str, np.ndarray]], start: int
    ) -> Iterator[Mapping[str, np.ndarray]]:
        """The same batches, timed, counted, and the first one noted; `start` steps are done already."""
        config, tokens = self._stage.config, self._stage.model.config.siglip.tokens
        more = (
            [
                WandB(
                    self._options.wandb,
                    f"{config.stage}:{config.variant}",
                    config.workdir,
                    json.loads(config.to_json_best_effort()),
                )
            ]
            if self._options.wandb and jax.process_index() == 0
            else []
        )
        self._logger = self._open.enter_context(
            Logger(
                config.workdir,
                config.stage,
                config.steps,
                config.log_every,
                start=start,
                facts=self._facts,
                more=more,
            )
        )
        self._profiler = self._open.enter_context(Profiler(config.workdir, self._window, start))
        return self._counted(self._logger.waiting(data), tokens)

    def _counted(self, data, tokens):
        for batch in data:
            self._tokens.append(usage.tokens(batch, tokens))
            if not self._flops and self._first is None:
                self._first = batch
            yield batch

    def step(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """After a step was dispatched. Raises FloatingPointError as of `Logger.step`."""
        first, self._first = self._first, None
        if first is not None:  # while the device is busy
            self._flops = self._count_flops(first)
        try:
            self._logger.step(step, metrics)
        finally:  # a second's work, no part of the first step; and a loss that is not finite wants it most
            draw = self._options.draw_first_batch
            if draw and first is not None and step == 1 and jax.process_index() == 0:
                title = f"{self._stage.config.stage}: the first batch as loaded, not yet augmented"
                with self._logger.pause():
                    self._logger.picture(step, "first_batch", draw(first, self._stage, title))
        with self._logger.pause():
            self._profiler.step(step, metrics)

    def flush(self) -> None:
        """Writes what is pending; raises FloatingPointError where it is not finite."""
        self._logger.flush()

    def evaluate(self, step: int, params: Any) -> None:
        """Evaluates parameters where a knot is due."""
        if step in self._due:
            self._logger.flush()
            with self._logger.pause():
                self._logger.held_out(step, self._evaluation(params))

    def _count_flops(self, batch: Mapping[str, np.ndarray]) -> int:
        rows = NamedSharding(
            self._mesh, sharding.BATCH
        )  # as the step has it, or it would be traced once more
        shapes = {
            name: jax.ShapeDtypeStruct(
                (self._stage.config.batch_size, *x.shape[1:]), x.dtype, sharding=rows
            )
            for name, x in batch.items()
        }
        return usage.step_flops(self._step_of, self._stage.model, self._state, shapes)

    def _facts(self, step: int, rate: float) -> dict[str, float]:
        tokens, self._tokens = (
            float(np.mean(self._tokens or [0])) * self._stage.config.batch_size,
            [],
        )
        return {
            "run/tokens_per_second": tokens * rate,
            **usage.utilization(self._flops, rate),
            **usage.memory(),
            **mixture(self._stage.plan, self._planned, step),
        }


def evaluations_due(points: Any, steps: int) -> set[int]:
    """The steps after which points of a stage's progress are reached. Raises ValueError for what is no such points."""
    if not all(isinstance(knot, (int, float)) and 0 < knot <= 1 for knot in points):
        raise ValueError(
            f"eval.at_progress is {points!r}, expected shares of the stage's steps in (0, 1], as (0.5, 1.0)"
        )
    return {max(1, round(knot * steps)) for knot in points}


def mixture(plan: Plan, planned: np.ndarray, step: int) -> dict[str, float]:
    """Each stream's share of the rows of the first `step` steps, as drawn and as the weights have it, and how many
    rows the farthest stream is from its schedule.

    Args:
      planned: float64[steps, streams], the plan's weights, summed over the steps.
    """
    drawn, planned = (
        plan.before[step - 1] + plan.counts[step - 1],
        plan.batch_size * planned[step - 1],
    )
    out = {"mixture/rows_off": float(np.abs(drawn - planned).max())}
    for name, shares in {"drawn": drawn, "planned": planned}.items():
        out |= {
            f"mixture/{stream.name}/{name}": float(share / (plan.batch_size * step))
            for stream, share in zip(plan.streams, shares, strict=True)
        }
    return out
