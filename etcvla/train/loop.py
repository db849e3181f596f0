"""The trainer: one for all stages. What a stage is stands in its config."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from etcvla.models.variants import config_to_dict
from etcvla.models.vla import VLA, init_params
from etcvla.names import lookup
from etcvla.train import sharding
from etcvla.train.checkpoint import Checkpoints
from etcvla.train.hosts import Preempted, StopSignals, log_on_host0
from etcvla.train.initial import initial_state
from etcvla.train.monitor import MonitorOptions, TrainingMonitor
from etcvla.train.optim import FrozenRules, Optimizer, make_optimizer
from etcvla.train.stage import Stage
from etcvla.train.state import TrainState
from etcvla.train.step import StepSettings, train_step

# Config fields (regexes) that may change between a run and its resumption: they change nothing that is computed.
RESUMABLE = re.compile(
    r"log_every|save_every|keep|keep_every|workdir|init_from|init_rules|init_config|"
    r"datasets\.[^.]+\.(path|build)|data\.(threads|workers|prefetch)|mesh\..*|eval\..*"
)

PLAIN = MonitorOptions()


def train(
    config: ml_collections.ConfigDict,
    *,
    until: int | None = None,
    allow: Sequence[str] = (),
    options: MonitorOptions = PLAIN,
) -> dict[str, Any]:
    """Trains a stage, or takes it up where its workdir stands; a finished stage is left as it is.

    Args:
      until: stop (with a checkpoint) after this many steps, as a preempted run would.
      allow: config fields, or groups of them, in which a run that is taken up may differ from what it was.
      options: what it shows beside its lines.

    Returns: {"steps", "seconds" of this call with compilation, "metrics" of the last log line}.

    Raises ValueError if the workdir holds another stage's run, OSError if it cannot be written; FloatingPointError at a
    loss that is not finite; Preempted (a SystemExit) when told to stop, after saving.
    """
    began, checkpoints = time.time(), Checkpoints(config.workdir, config.keep, config.keep_every)
    if (done := checkpoints.latest()) is not None:
        check_resumable(config, checkpoints.meta()["config"], allow)
        if done >= config.steps:
            log_on_host0(
                f"{config.stage}: {config.workdir} is trained ({done} steps), nothing to do"
            )
            return {"steps": done, "seconds": 0.0, "metrics": {}}
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(config.batch_size, mesh, config.optim.microbatches)
    stage = Stage.open(config)
    if done is not None:
        check_data(stage, checkpoints.meta(), allow)
    optimizer, abstract = abstract_state(stage, mesh)

    @functools.cache
    def step_of(model: VLA, frozen: FrozenRules) -> Callable:
        return make_step(dataclasses.replace(stage, model=model), optimizer, abstract, frozen)

    begins = optimizer.frozen_at(done or 0)
    step_of(
        stage.model, begins
    )  # so that what is wrong with its settings is said before all compilation
    checkpoints.check_writable(abstract)
    with (
        StopSignals() as stop,
        TrainingMonitor(
            stage, mesh, options, step_of=lambda model: step_of(model, begins), state=abstract
        ) as watch,
    ):
        state = (
            initial_state(stage, optimizer, abstract)
            if done is None
            else checkpoints.restore(abstract)
        )
        if done is not None:
            log_on_host0(f"{config.stage}: taken up at step {int(state.step)} of {config.steps}")
        metrics = _run(
            stage,
            state,
            lambda step: step_of(stage.model, optimizer.frozen_at(step)),
            mesh,
            checkpoints,
            watch,
            stop,
            min(until or config.steps, config.steps),
        )
    return {"steps": until or config.steps, "seconds": time.time() - began, "metrics": metrics}


def _run(
    stage: Stage,
    state: TrainState,
    step_fn: Callable,
    mesh: Mesh,
    checkpoints: Checkpoints,
    watch: TrainingMonitor,
    stop: StopSignals,
    end: int,
) -> dict[str, float]:
    """Steps up to `end`; `step_fn` gives each step's function."""
    config, start = stage.config, int(state.step)
    meta, saved = checkpoint_meta(stage), start
    data = watch.batches(stage.batches(start, sharding.local_rows(config.batch_size, mesh)), start)
    try:
        for step in range(start, end):
            batch = next(data)
            stage.model.config.check_batch(batch)
            state, metrics = step_fn(step)(
                state, sharding.put_batch(batch, mesh, config.batch_size)
            )
            watch.step(step + 1, metrics)
            stopped = stop(step + 1)
            if (step + 1) % config.save_every == 0 or step + 1 == end or stopped:
                watch.flush()  # a loss that is not finite must not be saved
                checkpoints.save(state, meta)
                saved = step + 1
            if stopped:
                break
            watch.evaluate(step + 1, state.ema)
    finally:
        checkpoints.wait()  # whatever stops the run, the checkpoint before it must be whole
    if skipped := int(state.skipped):
        log_on_host0(f"{config.stage}: {skipped} steps were not finite and left out")
    if saved < end:
        log_on_host0(
            f"{config.stage}: told to stop; saved at step {saved} of {config.steps}. The same command goes on there"
        )
        raise Preempted
    return watch.last


def make_step(
    stage: Stage, optimizer: Optimizer, abstract: TrainState, frozen: FrozenRules | None = None
):
    """The stage's step, jitted: (state, batch) -> (state, metrics). It takes the state's memory, and leaves the new one
    where `abstract` says.

    Args:
      frozen: the rules of `optim.lr_multiple` that rest; None: those of the stage's first step.
    """
    settings = StepSettings.from_config(
        stage.config, stage.assets.tokenizer.layout.loc.offset
    ).replace(frozen=optimizer.frozen_at(0) if frozen is None else frozen)
    mesh = abstract.step.sharding.mesh
    step = functools.partial(train_step, model=stage.model, optimizer=optimizer, settings=settings)

    def on_mesh(state, batch):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return step(state, batch)

    # Metrics lie everywhere: each process logs, or stops, by itself.
    places = jax.tree.map(lambda x: x.sharding, abstract), NamedSharding(mesh, PartitionSpec())
    options = sharding.TPU_OPTIONS if mesh.devices.flat[0].platform == "tpu" else None
    return jax.jit(on_mesh, donate_argnums=0, out_shardings=places, compiler_options=options)


def abstract_state(stage: Stage, mesh: Mesh) -> tuple[Optimizer, TrainState]:
    """The optimizer, and the training state as shapes with shardings."""
    params = jax.eval_shape(functools.partial(init_params, stage.model))
    optimizer = make_optimizer(stage.config.optim, stage.config.steps, params)
    opt, count = jax.eval_shape(optimizer.init, params), jax.ShapeDtypeStruct((), jnp.int32)
    where, everywhere = sharding.param_shardings(params, mesh), NamedSharding(mesh, PartitionSpec())
    state = TrainState(step=count, params=params, ema=params, opt=opt, skipped=count)
    places = TrainState(
        step=everywhere,
        params=where,
        ema=where,
        opt=sharding.opt_shardings(opt, params, where),
        skipped=everywhere,
    )
    return optimizer, jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, places
    )


def checkpoint_meta(stage: Stage) -> dict:
    """The JSON of a checkpoint: everything that a policy needs beside the parameters, and where they came from."""
    config = stage.config
    own, lineage = Checkpoints(config.workdir), []
    if own.latest() is not None:  # the parent may be gone, or trained anew
        lineage = own.meta()["lineage"]
    elif config.init_from:
        parent = Checkpoints(config.init_from)
        lineage = (
            [{"released": config.init_from}]
            if parent.latest() is None
            else [*parent.meta()["lineage"], {"workdir": config.init_from, "step": parent.latest()}]
        )
    return {
        "config": json.loads(config.to_json_best_effort()),
        "model": config_to_dict(stage.model.config),
        "assets": stage.assets.to_json(),
        "lineage": lineage,
        "data": data_of(stage),
    }


def data_of(stage: Stage) -> dict[str, dict[str, int]]:
    """How much each dataset holds: with more or less in it, the same plan would draw other frames."""
    return {
        name: {"episodes": source.dataset.num_episodes, "frames": source.dataset.num_frames}
        for name, source in stage.datasets.items()
    }


def check_resumable(
    config: ml_collections.ConfigDict, saved: Mapping, allow: Sequence[str] = ()
) -> None:
    """Raises ValueError listing the fields in which a workdir's run differs from the config."""
    now = json.loads(config.to_json_best_effort())
    for name in allow:
        if not any(_within(key, name) for key, _ in _flatten(now)):
            lookup(dict(_flatten(now)), name, "config field in --allow")
    _refuse(config.workdir, "a run of another config", saved, now, allow)


def check_data(stage: Stage, meta: Mapping, allow: Sequence[str] = ()) -> None:
    """Raises ValueError listing datasets that hold another number of frames than when the workdir's run began."""
    _refuse(
        stage.config.workdir,
        "a run on other data",
        *({"datasets": data} for data in (meta.get("data", data_of(stage)), data_of(stage))),
        allow,
    )


def _refuse(workdir: str, what: str, saved: Mapping, now: Mapping, allow: Sequence[str]) -> None:
    old, new = (dict(_flatten(tree)) for tree in (saved, now))
    differs = [
        key
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
        and not RESUMABLE.fullmatch(key)
        and not any(_within(key, name) for name in allow)
    ]
    if differs:
        lines = [f"  {key}: {old.get(key)!r} there, {new.get(key)!r} here" for key in differs]
        raise ValueError(
            f"{workdir} holds {what}; choose another --config.workdir, delete it, or go on all the same "
            f"with --allow={','.join(differs)}\n" + "\n".join(lines)
        )


def _within(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}.")


def _flatten(tree: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
