"""The workload of the model benchmark, and this project's side of it.

Both sides have the same sizes, parameters and inputs: `TEXT_LEN` prompt tokens, a state token, and
chunks of `HORIZON` x `ACTION_DIM`. Flow matching is the only loss. Layers are scanned and fully
rematerialised, as in openpi.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from etcvla import batch as batch_lib
from etcvla.models import flow, variants
from etcvla.models.decode import sample_actions
from etcvla.models.vla import VLA, Params, VLAConfig, init_params
from etcvla.train.optim import make_optimizer
from etcvla.train.state import TrainState
from etcvla.train.step import StepSettings, train_step

# openpi's pi0.
TEXT_LEN = 48
HORIZON = 50
ACTION_DIM = 32
CAMERAS = 3
EULER_STEPS = 10

FLOW_TIME = 0.7  # flow time at which the sides' velocities are compared
STEPS = 30_000

# openpi's optimizer. The shape of the learning rate's decay has no influence on speed.
OPTIMIZER = ml_collections.ConfigDict(
    {
        "lr": ((0.0, 2.5e-5), (1.0, 2.5e-6)),
        "lr_multiple": ((".*", 1.0),),
        "weight_decay": ((".*", 1e-10),),
        "b1": 0.9,
        "b2": 0.95,
        "eps": 1e-8,
        "clip": 1.0,
        "ema": 0.99,
        "kind": "adamw",
        "mu_dtype": "float32",
        "nu_dtype": "float32",
    }
)


@dataclasses.dataclass(frozen=True)
class Workload:
    """Sizes and inputs that both sides share."""

    size: str  # a name in `etcvla.models.variants`
    vocab_size: int
    rows: int  # rows of a training batch; acting has one
    dtype: str
    seed: int = 0

    @property
    def config(self) -> VLAConfig:
        """Return pi0's config in this size."""
        return variants.make_config(
            self.size,
            expert="plain",
            vocab_size=self.vocab_size,
            state_dim=ACTION_DIM,
            action_dim=ACTION_DIM,
            horizon=HORIZON,
            state="token",
            insulate=False,
            image_attends_prompt=True,
            dtype=self.dtype,
            remat="full",
        )

    def params(self) -> Params:
        """Return random parameters.

        Parameters that a model initialises to zero are random too, so that the comparison of
        outputs covers them.
        """
        rng = np.random.default_rng(self.seed)
        shapes = jax.eval_shape(functools.partial(init_params, VLA(self.config)))

        def _draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
            return jnp.asarray(rng.standard_normal(leaf.shape, np.float32) / 24)

        return jax.tree.map(_draw, shapes)

    def batch(self, rows: int, cameras: int) -> dict[str, np.ndarray]:
        """Return a random batch with the fields of `etcvla.batch`.

        A batch with fewer cameras has the first cameras of one with more.
        """
        rng = np.random.default_rng(self.seed)
        size = self.config.siglip.image_size
        batch = batch_lib.zeros(
            B=rows, C=CAMERAS, H=size, W=size, L=TEXT_LEN, Q=ACTION_DIM, P=HORIZON, A=ACTION_DIM
        )
        images = rng.integers(0, 256, batch["images"].shape, np.uint8)
        batch["images"] = images[:, :cameras]
        batch["image_mask"] = np.ones((rows, cameras), bool)
        batch["tokens"] = rng.integers(4, self.vocab_size, batch["tokens"].shape, np.int32)
        for name in ("segment", "action_segment", "action_mask", "action_weight"):
            batch[name] = np.ones_like(batch[name])
        for name in ("state", "actions"):
            batch[name] = rng.standard_normal(batch[name].shape, np.float32)
        return batch

    def noise(self, rows: int) -> np.ndarray:
        """Return the noise float32[rows, P, A] from which chunks are sampled."""
        rng = np.random.default_rng(self.seed + 1)
        return rng.standard_normal((rows, HORIZON, ACTION_DIM), np.float32)


def make_settings(*, losses: tuple[str, ...] = ("flow",), max_targets: int = 1) -> StepSettings:
    """Return settings of a step with these losses, weight 1 each, and one noise sample."""
    weights = {name: ((0.0, float(name in losses)),) for name in ("text", "fast", "flow")}
    return StepSettings(
        seed=0,
        steps=STEPS,
        streams=("action",),
        max_targets=max_targets,
        noise_samples=1,
        form="objectives",
        shift=0,
        color=0.0,
        ema_decay=OPTIMIZER.ema,
        loc_offset=0,
        **weights,
    )


def make_step(model: VLA, params: Params, settings: StepSettings) -> tuple[Callable, Callable]:
    """Return the training step (state, batch) -> (state, metrics), and params -> initial state.

    Args:
      params: parameters or their shapes.
    """
    optimizer = make_optimizer(OPTIMIZER, STEPS, params)

    def _initial_state(params: Params) -> TrainState:
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            ema=jax.tree.map(jnp.copy, params),
            opt=optimizer.init(params),
        )

    step = functools.partial(train_step, model=model, optimizer=optimizer, settings=settings)
    return step, _initial_state


class OurModel:
    """This project's side: its training step and its action sampling."""

    def __init__(self, **fields: Any):
        workload = Workload(**fields)
        self.model = VLA(workload.config)
        self.rows = workload.rows
        self.batches = {}
        for rows in {1, self.rows}:
            for cameras in (2, CAMERAS):
                self.batches[rows, cameras] = jax.device_put(workload.batch(rows, cameras))
        self.noise = jnp.asarray(workload.noise(1))
        params = workload.params()
        step, initial_state = make_step(self.model, params, make_settings())
        self.state = jax.jit(initial_state, donate_argnums=0)(params)
        self._step = jax.jit(step, donate_argnums=0)
        self._sample = jax.jit(functools.partial(sample_actions, self.model, num_steps=EULER_STEPS))

    def velocity(self, cameras: int) -> list:
        """Return the velocity float[1, P, A] at `FLOW_TIME`, as nested lists."""

        def _predict(params: Params, batch: dict, noise: jax.Array) -> jax.Array:
            time = jnp.full((1, 1), FLOW_TIME)
            x_t, _ = flow.interpolate(batch["actions"], noise[:, None], time)
            _, velocity = self.model.apply({"params": params}, batch, None, x_t, time)
            return velocity[:, 0]

        batch = self.batches[1, cameras]
        return jax.jit(_predict)(self.state.params, batch, self.noise).tolist()

    def sample(self, cameras: int) -> list:
        """Sample one chunk float[1, P, A], as nested lists."""
        return self._sample(self.state.params, self.batches[1, cameras], self.noise).tolist()

    def train(self, cameras: int) -> float:
        """Run one training step and return its loss."""
        self.state, metrics = self._step(self.state, self.batches[self.rows, cameras])
        jax.block_until_ready(self.state)
        return float(metrics["loss"])
