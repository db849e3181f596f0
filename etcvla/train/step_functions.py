"""Build the jitted training steps of a stage."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from etcvla.models import flops
from etcvla.models.vla import VLA, init_params
from etcvla.train import sharding
from etcvla.train.optim import FrozenRules, Optimizer, make_optimizer
from etcvla.train.stage import Stage
from etcvla.train.state import TrainState
from etcvla.train.step import StepSettings, train_step


class StepFunctions:
    """The jitted training steps of a stage.

    `optim.lr_multiple` may freeze parameters during a part of the training. Each set of frozen
    rules has a step of its own, which is compiled when it is first used.
    """

    def __init__(self, stage: Stage, mesh: Mesh):
        self.stage = stage
        self.mesh = mesh
        self.optimizer, self.abstract = abstract_state(stage, mesh)
        self._functions: dict[FrozenRules, Callable] = {}

    def at(self, step: int) -> Callable:
        """Return the function that is used after `step` steps."""
        frozen = self.optimizer.frozen_at(step)
        if frozen not in self._functions:
            self._functions[frozen] = self._jit_step(self.stage.model, frozen)
        return self._functions[frozen]

    def _jit_step(self, model: VLA, frozen: FrozenRules) -> Callable:
        """Jit (state, batch) -> (state, metrics), which reuses the memory of the old state."""
        loc_offset = self.stage.assets.tokenizer.layout.loc.offset
        settings = StepSettings.from_config(self.stage.config, loc_offset)
        settings = settings.replace(frozen=frozen, token_rows=self.stage.token_rows)
        step = functools.partial(
            train_step, model=model, optimizer=self.optimizer, settings=settings
        )

        def _step_on_mesh(state, batch):
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                return step(state, batch)

        state_shardings = jax.tree.map(lambda x: x.sharding, self.abstract)
        # Metrics are replicated: each process logs them, or stops on them, by itself.
        metric_sharding = NamedSharding(self.mesh, PartitionSpec())
        on_tpu = self.mesh.devices.flat[0].platform == "tpu"
        return jax.jit(
            _step_on_mesh,
            donate_argnums=0,
            out_shardings=(state_shardings, metric_sharding),
            compiler_options=sharding.TPU_OPTIONS if on_tpu else None,
        )

    def count_flops(self, batch: Mapping[str, np.ndarray], step: int) -> int:
        """Return the FLOPs that the step after `step` steps needs, with a global batch like this.

        What rematerialization repeats does not count.
        """
        config = self.stage.model.config
        if config.remat == "none":
            function = self.at(step)  # JAX has traced it already
        else:
            model = VLA(dataclasses.replace(config, remat="none"))
            function = self._jit_step(model, self.optimizer.frozen_at(step))
        shapes = sharding.abstract_batch(batch, self.mesh, self.stage.config.batch_size)
        return flops.count(function, self.abstract, shapes).total()


def abstract_state(stage: Stage, mesh: Mesh) -> tuple[Optimizer, TrainState]:
    """Return the optimizer, and the training state as ShapeDtypeStructs with shardings."""
    params = jax.eval_shape(functools.partial(init_params, stage.model))
    optimizer = make_optimizer(stage.config.optim, stage.config.steps, params)
    opt = jax.eval_shape(optimizer.init, params)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    param_shardings = sharding.param_shardings(params, mesh)
    replicated = NamedSharding(mesh, PartitionSpec())
    rows_shape = (len(stage.token_rows.measured), stage.model.config.vlm.width)
    state = TrainState(
        step=count,
        params=params,
        ema=params,
        opt=opt,
        skipped=count,
        start_rows=jax.ShapeDtypeStruct(rows_shape, jnp.float32),
    )
    shardings = TrainState(
        step=replicated,
        params=param_shardings,
        ema=param_shardings,
        opt=sharding.opt_shardings(opt, params, param_shardings),
        skipped=replicated,
        start_rows=NamedSharding(mesh, PartitionSpec(None, "fsdp")),
    )
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
    )
    return optimizer, abstract
