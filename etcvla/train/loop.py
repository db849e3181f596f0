"""The training loop, the same for all stages; the config says what a stage trains."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ml_collections

from etcvla.train import sharding
from etcvla.train.checkpoint import (
    CheckpointWriter,
    check_writable,
    find_checkpoint,
    set_aside_newer,
)
from etcvla.train.checkpoint_meta import checkpoint_meta
from etcvla.train.hosts import Preempted, StopSignals, log_on_host0
from etcvla.train.initial import initial_state
from etcvla.train.monitor import MonitorOptions, TrainingMonitor
from etcvla.train.resume import check_config, check_data
from etcvla.train.stage import Stage
from etcvla.train.state import TrainState
from etcvla.train.step_functions import StepFunctions

DEFAULT_OPTIONS = MonitorOptions()


def train(
    config: ml_collections.ConfigDict,
    *,
    until: int | None = None,
    allow: Sequence[str] = (),
    options: MonitorOptions = DEFAULT_OPTIONS,
) -> dict[str, Any]:
    """Train a stage, or resume it from the newest checkpoint in its workdir.

    A finished stage is left as it is.

    Args:
      until: save and stop after this many steps, as a preempted run does. None: train all steps.
      allow: config fields, or groups of fields, that may differ from those of the run that is
        resumed.
      options: what the run logs and shows besides its progress lines.

    Returns: {"steps", "seconds" of this call with compilation, "metrics" of the last log line}.

    Raises UserError if the workdir holds another run or is not writable, or if a loss is not
    finite; Preempted (a SystemExit) after a signal to stop, once the state is saved.
    """
    start_time = time.time()
    saved = find_checkpoint(config.workdir)
    if saved is not None:
        check_config(config, saved.meta()["config"], allow)
        if saved.step >= config.steps:
            log_on_host0(
                f"{config.stage}: {config.workdir} is trained ({saved.step} steps), nothing to do"
            )
            return {"steps": saved.step, "seconds": 0.0, "metrics": {}}

    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(config.batch_size, mesh, config.optim.microbatches)
    stage = Stage.open(config)
    if saved is not None:
        check_data(stage, saved.meta(), allow)
    steps = StepFunctions(stage, mesh)
    first_step = saved.step if saved is not None else 0
    steps.at(first_step)  # checks the settings of the step before anything is compiled
    check_writable(config.workdir, steps.abstract)

    with (
        StopSignals() as stop_signals,
        TrainingMonitor(stage, mesh, options, steps.count_flops) as monitor,
    ):
        if saved is not None:
            state = saved.train_state(steps.abstract)
            log_on_host0(f"{config.stage}: resumed at step {int(state.step)} of {config.steps}")
        else:
            state = initial_state(stage, steps.optimizer, steps.abstract)
        set_aside_newer(config.workdir, int(state.step))
        last_step = min(until or config.steps, config.steps)
        metrics = _train_steps(steps, state, last_step, monitor, stop_signals)
    seconds = time.time() - start_time
    return {"steps": until or config.steps, "seconds": seconds, "metrics": metrics}


def _train_steps(
    steps: StepFunctions,
    state: TrainState,
    last_step: int,
    monitor: TrainingMonitor,
    stop_signals: StopSignals,
) -> dict[str, float]:
    """Train up to `last_step` or a signal to stop; return the numbers of the last log line."""
    stage = steps.stage
    config = stage.config
    first_step = int(state.step)
    meta = checkpoint_meta(stage)
    checkpoints = CheckpointWriter(config.workdir, config.keep, config.keep_every)
    rows = sharding.local_rows(config.batch_size, steps.mesh)
    monitor.start(first_step)
    batches = monitor.time_waits(stage.batches(first_step, rows))
    saved_step = first_step
    try:
        for step in range(first_step + 1, last_step + 1):
            batch = next(batches)
            stage.model.config.check_batch(batch)
            device_batch = sharding.put_batch(batch, steps.mesh, config.batch_size)
            run_step = steps.at(step - 1)
            state, metrics = run_step(state, device_batch)
            monitor.step(step, batch, metrics)
            stop = stop_signals(step)
            if step % config.save_every == 0 or step == last_step or stop:
                monitor.flush()  # raises if a loss is not finite, which must not be saved
                checkpoints.save(state, meta)
                saved_step = step
            if stop:
                break
            monitor.evaluate(step, state.ema)
    finally:
        checkpoints.wait()  # complete the checkpoint that is being written, after an error too
    skipped = int(state.skipped)
    if skipped:
        log_on_host0(f"{config.stage}: skipped {skipped} steps that were not finite")
    if saved_step < last_step:
        log_on_host0(
            f"{config.stage}: Preempted; saved at step {saved_step} of {config.steps}. Rerun the "
            "same command to resume."
        )
        raise Preempted
    return monitor.last_line
