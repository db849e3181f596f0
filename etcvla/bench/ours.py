"""pi0 as the model benchmark computes it, and our side of the comparison.

Both sides have the same sizes, parameters and inputs: a batch with `TEXT_LEN` tokens of prompt, a state token, and
chunks of `HORIZON` x `ACTION_DIM`; flow matching is the only loss, and layers are scanned and wholly rematerialised, as
openpi has it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from etcvla import batch as batch_lib
from etcvla.models import flow, variants
from etcvla.models.decode import sample_actions
from etcvla.models.vla import VLA, VLAConfig, init_params
from etcvla.train.optim import make_optimizer
from etcvla.train.state import TrainState
from etcvla.train.step import StepSettings, train_step

TEXT_LEN, HORIZON, ACTION_DIM = 48, 50, 32  # openpi's pi0
CAMERAS, EULER_STEPS = 3, 10
TIME = 0.7  # at which both sides' velocities are compared

# openpi's optimizer. Both sides have warmed up and fall by a cosine or a line: of no consequence for speed.
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
STEPS = 30_000


@dataclasses.dataclass(frozen=True)
class Workload:
    """What both sides compute."""

    size: str  # a name in `etcvla.models.variants`
    vocab_size: int
    rows: int  # of a training batch; acting has one
    dtype: str
    seed: int = 0

    @property
    def config(self) -> VLAConfig:
        """pi0 in this size."""
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

    def params(self) -> dict:
        """Noise, also where a model starts from zero: the sides' agreement would say less otherwise."""
        rng = np.random.default_rng(self.seed)
        shapes = jax.eval_shape(functools.partial(init_params, VLA(self.config)))
        return jax.tree.map(
            lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape, np.float32) / 24), shapes
        )

    def batch(self, rows: int, cameras: int) -> dict[str, np.ndarray]:
        """Noise, in the fields of `etcvla.batch`. Fewer cameras are the first ones of more."""
        rng, size = np.random.default_rng(self.seed), self.config.siglip.image_size
        batch = batch_lib.zeros(
            B=rows, C=CAMERAS, H=size, W=size, L=TEXT_LEN, S=ACTION_DIM, P=HORIZON, A=ACTION_DIM
        )
        batch |= {
            "images": rng.integers(0, 256, batch["images"].shape, np.uint8)[:, :cameras],
            "image_mask": np.ones((rows, cameras), bool),
            "tokens": rng.integers(4, self.vocab_size, batch["tokens"].shape, np.int32),
            "segment": np.ones_like(batch["segment"]),
            "action_segment": np.ones_like(batch["action_segment"]),
            "state": rng.standard_normal(batch["state"].shape, np.float32),
            "actions": rng.standard_normal(batch["actions"].shape, np.float32),
            "action_mask": np.ones_like(batch["action_mask"]),
        }
        return batch

    def noise(self, rows: int) -> np.ndarray:
        """float32[rows, P, A]."""
        return np.random.default_rng(self.seed + 1).standard_normal(
            (rows, HORIZON, ACTION_DIM), np.float32
        )


def settings(*, losses: tuple[str, ...] = ("flow",), max_targets: int = 1) -> StepSettings:
    """Of a step with these losses, each with weight 1, and one noise sample a chunk."""
    points = {name: ((0.0, float(name in losses)),) for name in ("text", "fast", "flow")}
    return StepSettings(
        seed=0,
        steps=STEPS,
        streams=("action",),
        max_targets=max_targets,
        noise_samples=1,
        shift=0,
        color=0.0,
        ema_decay=OPTIMIZER.ema,
        loc_offset=0,
        **points,
    )


def make_step(model: VLA, params: Any, options: StepSettings):
    """(train_step of (state, batch), initial state of params); params may be shapes."""
    optimizer = make_optimizer(OPTIMIZER, STEPS, params)

    def start(params):
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            ema=jax.tree.map(jnp.copy, params),
            opt=optimizer.init(params),
        )

    return functools.partial(train_step, model=model, optimizer=optimizer, settings=options), start


class OurModel:
    """The jobs of the benchmark, done by this project: its training step and its sampling as they are."""

    def __init__(self, **fields: Any):
        workload = Workload(**fields)
        self.model, self.rows = VLA(workload.config), workload.rows
        self.batches = {
            (rows, cameras): jax.device_put(workload.batch(rows, cameras))
            for rows in {1, self.rows}
            for cameras in (2, CAMERAS)
        }
        self.noise = jnp.asarray(workload.noise(1))
        params = workload.params()
        step, start = make_step(self.model, params, settings())
        self.state = jax.jit(start, donate_argnums=0)(params)
        self._step = jax.jit(step, donate_argnums=0)
        self._sample = jax.jit(functools.partial(sample_actions, self.model, num_steps=EULER_STEPS))

    def velocity(self, cameras: int) -> list:
        """float[1, P, A] at `TIME`, as nested lists."""

        def predict(params, batch, noise):
            time = jnp.full((1, 1), TIME)
            x_t, _ = flow.interpolate(batch["actions"], noise[:, None], time)
            return self.model.apply({"params": params}, batch, None, x_t, time)[1][:, 0]

        return jax.jit(predict)(self.state.params, self.batches[1, cameras], self.noise).tolist()

    def sample(self, cameras: int) -> list:
        """float[1, P, A]: one chunk, as nested lists."""
        return self._sample(self.state.params, self.batches[1, cameras], self.noise).tolist()

    def train(self, cameras: int) -> float:
        """One step; returns the loss."""
        self.state, metrics = self._step(self.state, self.batches[self.rows, cameras])
        return float(jax.block_until_ready((self.state, metrics))[1]["loss"])
