"""Show a training run: log lines, the first batch, held-out evaluations and a profile.

Nothing here changes what is computed: batches, parameters and random numbers are only read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from etcvla.data.plan import Plan
from etcvla.errors import UserError
from etcvla.train import usage
from etcvla.train.log import MetricsLogger
from etcvla.train.profiler import Profiler, parse_window
from etcvla.train.sinks import WandB, import_wandb
from etcvla.train.stage import Stage

Batch = Mapping[str, np.ndarray]


class Evaluation(Protocol):
    """Evaluates parameters during training; see `etcvla.eval.in_loop`."""

    def __call__(self, params: Any) -> Mapping[str, float]:
        """Return results by name."""


@dataclasses.dataclass(frozen=True)
class MonitorOptions:
    """What a run shows besides its progress lines.

    This is not part of the config, because it does not change what is computed.
    """

    wandb: str = ""  # project of Weights & Biases; "": none
    profile: str = ""  # START:STOP, steps to profile
    # Makes the evaluation that runs at the config's eval.at_progress.
    evaluation: Callable[[Stage, Mesh], Evaluation] | None = None
    # Draws the first batch, arguments (batch, stage, title), as uint8[height, width, 3].
    draw_first_batch: Callable[[Batch, Stage, str], np.ndarray] | None = None


class TrainingMonitor:
    """Shows a run. The training loop calls `start` once, and then `step` and `evaluate` in each
    step.

    Nothing is written before `start`.

    Args:
      count_flops: returns the FLOPs of a step, from its batch and the number of steps before it.

    Raises UserError if `eval.at_progress` or the profile's window is malformed, if the options lack
    the evaluation, or if wandb is not installed.
    """

    def __init__(
        self,
        stage: Stage,
        mesh: Mesh,
        options: MonitorOptions,
        count_flops: Callable[[Batch, int], int],
    ):
        self._stage = stage
        self._options = options
        self._count_flops = count_flops
        self._flops: int | None = None  # of a step; counted in the first one
        self._tokens_per_row: list[float] = []  # one entry per step since the last line
        self._cumulative_weights = np.cumsum(stage.plan.row_shares, axis=0)  # [steps, streams]
        self._profile_window = parse_window(options.profile)
        self._evaluation = None
        self._evaluation_steps = evaluation_steps(stage.config.eval.at_progress, stage.config.steps)
        if self._evaluation_steps:
            if options.evaluation is None:
                raise UserError(
                    "eval.at_progress is set, but there is no evaluation: pass "
                    "MonitorOptions(evaluation=etcvla.eval.in_loop.make_evaluation) to train(), or "
                    "set eval.at_progress=()"
                )
            self._evaluation = options.evaluation(stage, mesh)
        if options.wandb:
            import_wandb()
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> TrainingMonitor:
        return self

    def __exit__(self, *error: object) -> None:
        self._resources.__exit__(*error)

    def start(self, start: int) -> None:
        """Open the log files and the profiler; `start` steps are done already."""
        config = self._stage.config
        sinks = []
        if self._options.wandb and jax.process_index() == 0:
            name = f"{config.stage}:{config.variant}"
            config_json = json.loads(config.to_json_best_effort())
            sinks.append(WandB(self._options.wandb, name, config.workdir, config_json))
        logger = MetricsLogger(config, start=start, extra_numbers=self._extra_numbers, sinks=sinks)
        self._logger = self._resources.enter_context(logger)
        profiler = Profiler(config.workdir, self._profile_window, start)
        self._profiler = self._resources.enter_context(profiler)

    def time_waits(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the same batches, and log the share of time spent waiting for them."""
        return self._logger.timer.time_waits(batches)

    def step(self, step: int, batch: Batch, metrics: Mapping[str, jax.Array]) -> None:
        """Take the metrics of a step that was just dispatched, the `step`-th from 1.

        Raises UserError if a loss is not finite, as `MetricsLogger.flush`.
        """
        image_tokens = self._stage.model.config.siglip.tokens
        self._tokens_per_row.append(usage.tokens_per_row(batch, image_tokens))
        if self._flops is None:  # counted while the device is busy
            self._flops = self._count_flops(batch, step - 1)
        try:
            self._logger.step(step, metrics)
        finally:
            # Drawing takes a second that must not count as part of the first step, hence after it.
            # The picture is most useful if the first loss is not finite, hence `finally`.
            if step == 1:
                self._draw_first_batch(batch)
        with self._logger.timer.pause():
            self._profiler.step(step, metrics)

    def flush(self) -> None:
        """Log the pending metrics. Raises UserError if a loss is not finite."""
        self._logger.flush()

    def evaluate(self, step: int, params: Any) -> None:
        """Evaluate the parameters if an evaluation is due after `step` steps."""
        if step in self._evaluation_steps:
            self._logger.flush()
            with self._logger.timer.pause():
                self._logger.log_held_out(step, self._evaluation(params))

    @property
    def last_line(self) -> dict[str, float]:
        """The numbers of the last log line."""
        return self._logger.last_line

    def _draw_first_batch(self, batch: Batch) -> None:
        draw = self._options.draw_first_batch
        if draw is None or jax.process_index() != 0:
            return
        title = f"{self._stage.config.stage}: the first batch as loaded, before augmentation"
        with self._logger.timer.pause():
            self._logger.log_image(1, "first_batch", draw(batch, self._stage, title))

    def _extra_numbers(self, step: int, rate: float) -> dict[str, float]:
        tokens_per_step = float(np.mean(self._tokens_per_row)) * self._stage.config.batch_size
        self._tokens_per_row = []
        return {
            "run/tokens_per_second": tokens_per_step * rate,
            **usage.utilization(self._flops, rate),
            **usage.memory(),
            **mixture_numbers(self._stage.plan, self._cumulative_weights, step),
        }


def evaluation_steps(at_progress: Sequence[float], steps: int) -> set[int]:
    """Return the steps after which to evaluate. Raises UserError if `at_progress` is malformed."""
    for progress in at_progress:
        if not isinstance(progress, (int, float)) or not 0 < progress <= 1:
            raise UserError(
                f"eval.at_progress is {at_progress!r}, expected shares of the stage's steps in "
                "(0, 1], as (0.5, 1.0)"
            )
    return {max(1, round(progress * steps)) for progress in at_progress}


def mixture_numbers(plan: Plan, cumulative_weights: np.ndarray, step: int) -> dict[str, float]:
    """Return each stream's share of the rows of the first `step` steps, drawn and planned.

    `mixture/max_row_error` is the largest difference of both over the streams, in rows.

    Args:
      cumulative_weights: float64[steps, streams], the plan's weights summed over the steps.
    """
    rows = plan.batch_size * step
    drawn = plan.before[step - 1] + plan.counts[step - 1]
    planned = plan.batch_size * cumulative_weights[step - 1]
    numbers = {"mixture/max_row_error": float(np.abs(drawn - planned).max())}
    for i, stream in enumerate(plan.streams):
        numbers[f"mixture/{stream.name}/row_share"] = float(drawn[i] / rows)
        numbers[f"mixture/{stream.name}/planned_row_share"] = float(planned[i] / rows)
    return numbers
