"""The training loop, the same for all stages; the config says what a stage trains."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from etcvla.models.vla import VLA, init_params
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
from etcvla.train.optim import FrozenRules, Optimizer, make_optimizer
from etcvla.train.resume import check_config, check_data
from etcvla.train.stage import Stage
from etcvla.train.state import TrainState
from etcvla.train.step import StepSettings, train_step
from etcvla.train.usage import step_flops

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


class StepFunctions:
    """The jitted training steps of a stage.

    `optim.lr_multiple` may freeze parameters during a part of the training. Each set of frozen
    rules has a step of its own, which is compiled when it is first used.
    """

    def __init__(self, stage: Stage, mesh: Mesh):
        self.stage = stage
        self.mesh = mesh
        self.optimizer, self.abstract = abstract_state(stage, mesh)
        self._functions: dict[tuple[VLA, FrozenRules], Callable] = {}

    def at(self, step: int, model: VLA | None = None) -> Callable:
        """Return the function that is used after `step` steps.

        Args:
          model: replaces the stage's model.
        """
        model = model or self.stage.model
        frozen = self.optimizer.frozen_at(step)
        if (model, frozen) not in self._functions:
            self._functions[model, frozen] = make_step(
                self.stage, self.optimizer, self.abstract, model=model, frozen=frozen
            )
        return self._functions[model, frozen]

    def count_flops(self, batch: Mapping[str, np.ndarray], step: int) -> int:
        """Return the FLOPs that the step after `step` steps needs, with a global batch like this.

        What rematerialization repeats does not count.
        """
        abstract_batch = sharding.abstract_batch(batch, self.mesh, self.stage.config.batch_size)
        return step_flops(
            lambda model: self.at(step, model), self.stage.model, self.abstract, abstract_batch
        )


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


def make_step(
    stage: Stage,
    optimizer: Optimizer,
    abstract: TrainState,
    *,
    model: VLA | None = None,
    frozen: FrozenRules | None = None,
) -> Callable:
    """Return the stage's jitted training step: (state, batch) -> (state, metrics).

    It reuses the memory of the old state; the new state has the shardings of `abstract`.

    Args:
      model: replaces the stage's model.
      frozen: the rules of `optim.lr_multiple` that are frozen; None: those of the stage's first
        step.
    """
    settings = StepSettings.from_config(
        stage.config, stage.assets.tokenizer.layout.loc.offset
    ).replace(frozen=optimizer.frozen_at(0) if frozen is None else frozen)
    mesh = abstract.step.sharding.mesh
    step = functools.partial(
        train_step, model=model or stage.model, optimizer=optimizer, settings=settings
    )

    def _step_on_mesh(state, batch):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return step(state, batch)

    state_shardings = jax.tree.map(lambda x: x.sharding, abstract)
    # Metrics are replicated: each process logs them, or stops on them, by itself.
    metric_sharding = NamedSharding(mesh, PartitionSpec())
    options = sharding.TPU_OPTIONS if mesh.devices.flat[0].platform == "tpu" else None
    return jax.jit(
        _step_on_mesh,
        donate_argnums=0,
        out_shardings=(state_shardings, metric_sharding),
        compiler_options=options,
    )


def abstract_state(stage: Stage, mesh: Mesh) -> tuple[Optimizer, TrainState]:
    """Return the optimizer, and the training state as ShapeDtypeStructs with shardings."""
    params = jax.eval_shape(functools.partial(init_params, stage.model))
    optimizer = make_optimizer(stage.config.optim, stage.config.steps, params)
    opt = jax.eval_shape(optimizer.init, params)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    param_shardings = sharding.param_shardings(params, mesh)
    replicated = NamedSharding(mesh, PartitionSpec())
    state = TrainState(step=count, params=params, ema=params, opt=opt, skipped=count)
    shardings = TrainState(
        step=replicated,
        params=param_shardings,
        ema=param_shardings,
        opt=sharding.opt_shardings(opt, params, param_shardings),
        skipped=replicated,
    )
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
    )
    return optimizer, abstract
