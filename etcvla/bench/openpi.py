"""openpi's side of the model benchmark: its published JAX code as it is, in sizes of our choice.

The package is installed alone, into a folder that only the benchmark's openpi process reads; JAX, Flax and the rest are
those of the running environment, so both sides have the same. What openpi imports beside them (torch, for its other
implementation; image augmentation; run-time type checks) is replaced by empty modules: none of it is in what is
measured.
"""

from __future__ import annotations

import functools
import importlib
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import jaxtyping
import jaxtyping._decorator
import numpy as np
import optax

from etcvla.bench import ours
from etcvla.bench import policy as policy_bench
from etcvla.data import prompts
from etcvla.data.tokenizer import Tokenizer
from etcvla.models.flops import count
from etcvla.models.vla import VLAConfig

REQUIREMENTS = ("rlinf-openpi==0.1.1", "openpi-client==0.1.2", "einops==0.8.2")
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")


def install(folder: Path) -> None:
    """Downloads openpi's package into `folder`, unless it is there.

    Raises RuntimeError saying what could not be installed.
    """
    stamp = folder / "requirements.txt"
    if stamp.exists() and stamp.read_text().split() == list(REQUIREMENTS):
        return
    print(f"installing {' '.join(REQUIREMENTS)} into {folder}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    pip = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--target",
            str(folder),
            *REQUIREMENTS,
        ],
        capture_output=True,
        text=True,
    )
    if pip.returncode:
        said = [line for line in pip.stderr.splitlines() if line.startswith("ERROR")] or [
            pip.stderr.strip()[-300:]
        ]
        raise RuntimeError(
            f"could not install {' and '.join(REQUIREMENTS)} into {folder}; pip says: {' '.join(said)}\n"
            "The comparison with openpi needs them; --only=flops runs without"
        )
    stamp.write_text("\n".join(REQUIREMENTS))


def make_config(folder: Path, config: VLAConfig) -> Any:
    """openpi's `Pi0Config` of our `config`. Once a process, since it puts the sizes into openpi's modules."""
    for name in (
        "torch",
        "torch.nn",
        "torch.nn.functional",
        "safetensors",
        "augmax",
        "beartype",
        "openpi.models_pytorch.pi0_pytorch",
    ):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["torch"].Tensor = type("Tensor", (), {})
    sys.modules["beartype"].beartype = lambda fn: fn
    # openpi wraps a private function that jaxtyping no longer has, and checks shapes while tracing.
    jaxtyping._decorator._check_dataclass_annotations = None
    jaxtyping.config.update("jaxtyping_disable", True)
    sys.path.insert(0, str(folder))
    gemma, siglip, model, pi0_config = (
        importlib.import_module(f"openpi.models.{name}")
        for name in ("gemma", "siglip", "model", "pi0_config")
    )
    tower, size = config.siglip, config.siglip.image_size
    streams = {"gemma_2b": config.vlm, "gemma_300m": config.expert}
    gemma.get_config = lambda name: gemma.Config(
        **{
            field: getattr(streams[name], field)
            for field in ("width", "depth", "mlp_dim", "num_heads", "num_kv_heads", "head_dim")
        }
    )
    gemma.PALIGEMMA_VOCAB_SIZE = config.vocab_size
    siglip.decode_variant = lambda _: {
        "width": tower.width,
        "depth": tower.depth,
        "mlp_dim": tower.mlp_dim,
        "num_heads": tower.num_heads,
        "patch_size": (tower.patch, tower.patch),
    }
    model.IMAGE_RESOLUTION = (size, size)
    model.preprocess_observation.__kwdefaults__["image_resolution"] = (size, size)
    return pi0_config.Pi0Config(
        dtype=config.dtype,
        action_dim=config.action_dim,
        action_horizon=config.horizon,
        max_token_len=ours.TEXT_LEN,
    )


def rename(params: dict) -> dict:
    """Our parameters under openpi's names."""
    return {
        "PaliGemma": {name: params[name] for name in ("img", "llm")},
        **{name: value for name, value in params.items() if name not in ("img", "llm")},
    }


def train_step(
    state: tuple, batch: tuple, *, graph: nnx.GraphDef, optimizer: optax.GradientTransformation
) -> tuple:
    """openpi's update without augmentation: loss, gradient, AdamW, moving average.

    Args:
      state: step, params, ema, opt.  batch: observation, actions.

    Returns: state, metrics.
    """
    step, params, ema, opt = state
    key = jax.random.fold_in(jax.random.key(0), step)

    def loss_fn(params):
        return jnp.mean(nnx.merge(graph, params).compute_loss(key, *batch, train=False))

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, opt = optimizer.update(grads, opt, params)
    params = optax.apply_updates(params, updates)
    decay = ours.OPTIMIZER.ema
    ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, params)
    return (step + 1, params, ema, opt), {"loss": loss, "grad_norm": optax.global_norm(grads)}


def make_optimizer() -> optax.GradientTransformation:
    """As openpi makes it, from its own module's defaults."""
    optim = importlib.import_module("openpi.training.optimizer")
    return optim.create_optimizer(optim.AdamW(), optim.CosineDecaySchedule(warmup_steps=0))


def start(optimizer: optax.GradientTransformation, params: Any) -> tuple:
    """The state of `train_step` at step 0."""
    return jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optimizer.init(params)


class Counter:
    """Counts openpi's FLOPs, in a process of its own for what `make_config` does to modules."""

    def __init__(self, folder: str, **fields: Any):
        self.config = make_config(Path(folder), ours.Workload(**fields).config)

    def tflop(self) -> float:
        """TFLOP of one training sample."""
        graph, params = nnx.split(nnx.eval_shape(self.config.create, jax.random.key(0)))
        optimizer = make_optimizer()
        state = jax.eval_shape(functools.partial(start, optimizer), params)
        step = functools.partial(train_step, graph=graph, optimizer=optimizer)
        return count(step, state, self.config.inputs_spec(batch_size=1)).total() / 1e12


class OpenPIPolicy:
    """The jobs of the policy benchmark, done by openpi: its `Policy` with its transforms of ALOHA's observations.

    Its tokenizer, which it would download, is replaced by ours with its interface; so is the file format of statistics.
    """

    def __init__(self, folder: str, **fields: Any):
        workload = ours.Workload(**fields)
        config = make_config(Path(folder), workload.config)
        model = config.load(rename(workload.params()), remove_extra_params=False)
        self.size = workload.config.siglip.image_size
        self.policy = self._make_policy(model)

    def _make_policy(self, model: Any) -> Any:
        for name in ("openpi.models.tokenizer", "openpi.shared.normalize"):
            sys.modules[name] = _Hollow(name)
        transforms, aloha, policy = (
            importlib.import_module(f"openpi.{name}")
            for name in ("transforms", "policies.aloha_policy", "policies.policy")
        )
        stats = {
            name: types.SimpleNamespace(**policy_bench.stats(seed))
            for seed, name in enumerate(("state", "actions"))
        }
        return policy.Policy(
            model,
            sample_kwargs={"num_steps": ours.EULER_STEPS},
            transforms=[
                aloha.AlohaInputs(adapt_to_pi=False),
                transforms.Normalize(stats, use_quantiles=True),
                transforms.ResizeImages(self.size, self.size),
                transforms.TokenizePrompt(_Tokenizer()),
                transforms.PadStatesAndActions(ours.ACTION_DIM),
            ],
            output_transforms=[
                transforms.Unnormalize(stats, use_quantiles=True),
                aloha.AlohaOutputs(adapt_to_pi=False),
            ],
        )

    def _infer(self, number: int, observation: dict) -> dict:
        return self.policy.infer(observation, noise=policy_bench.noise(number))

    def actions(self, cameras: int) -> list:
        """The first chunk, float[P, WIDTH], as nested lists."""
        return np.asarray(
            self._infer(0, policy_bench.observe(cameras, 0, self.size))["actions"]
        ).tolist()

    def infer(self, cameras: int, first: int, count: int) -> list[float]:
        """Seconds of each of `count` answers."""
        numbered = [
            (i, policy_bench.observe(cameras, i, self.size)) for i in range(first, first + count)
        ]
        return policy_bench.timed(lambda pair: self._infer(*pair), numbered)


class _Hollow(types.ModuleType):
    """A module whose names are there, and nothing else."""

    def __getattr__(self, name: str) -> type:
        return object


class _Tokenizer:
    """Our tokenizer as openpi's `PaligemmaTokenizer`: padded ids and which of them are real."""

    def __init__(self):
        self.tokenizer = Tokenizer.load()

    def tokenize(self, prompt: str, state: None = None) -> tuple[np.ndarray, np.ndarray]:
        ids = prompts.action(self.tokenizer, prompt, prompt="pi0").prompt
        there = np.arange(ours.TEXT_LEN) < len(ids)
        return np.pad(np.array(ids, np.int32), (0, ours.TEXT_LEN - len(ids))), there


class OpenPI:
    """The jobs of the benchmark, done by openpi. With two cameras its third is masked: it has always three."""

    def __init__(self, folder: str, **fields: Any):
        workload = ours.Workload(**fields)
        self.config, self.rows = make_config(Path(folder), workload.config), workload.rows
        self.batches = {
            (rows, cameras): self._inputs(workload.batch(rows, ours.CAMERAS), cameras)
            for rows in {1, self.rows}
            for cameras in (2, ours.CAMERAS)
        }
        self.noise = jnp.asarray(workload.noise(1))
        model = self.config.load(rename(workload.params()), remove_extra_params=False)
        self.graph, params = nnx.split(model)
        del model
        optimizer = make_optimizer()
        self.state = jax.jit(functools.partial(start, optimizer), donate_argnums=0)(params)
        self._step = jax.jit(
            functools.partial(train_step, graph=self.graph, optimizer=optimizer), donate_argnums=0
        )
        self._sample = jax.jit(
            lambda params, observation, noise: nnx.merge(self.graph, params).sample_actions(
                jax.random.key(0), observation, num_steps=ours.EULER_STEPS, noise=noise
            )
        )

    def _inputs(self, batch: dict[str, np.ndarray], cameras: int) -> tuple:
        observation_type = importlib.import_module("openpi.models.model").Observation
        observation = observation_type.from_dict(
            {
                "image": {name: batch["images"][:, i] for i, name in enumerate(CAMERAS)},
                "image_mask": {
                    name: np.full(len(batch["images"]), i < cameras)
                    for i, name in enumerate(CAMERAS)
                },
                "state": batch["state"],
                "tokenized_prompt": batch["tokens"],
                "tokenized_prompt_mask": batch["segment"] > 0,
            }
        )
        return jax.device_put((observation, batch["actions"]))

    def velocity(self, cameras: int) -> list:
        """float[1, P, A] at `ours.TIME`, as nested lists: the middle of openpi's loss, with noise and time given."""
        make_mask = importlib.import_module("openpi.models.pi0").make_attn_mask

        def predict(params, observation, actions, noise):
            model = nnx.merge(self.graph, params)
            prefix, prefix_there, prefix_ar = model.embed_prefix(observation)
            x_t = ours.TIME * noise + (1 - ours.TIME) * actions
            suffix, suffix_there, suffix_ar, cond = model.embed_suffix(
                observation, x_t, jnp.full((1,), ours.TIME)
            )
            there = jnp.concatenate([prefix_there, suffix_there], axis=1)
            mask = make_mask(there, jnp.concatenate([prefix_ar, suffix_ar]))
            (_, hidden), _ = model.PaliGemma.llm(
                [prefix, suffix],
                mask=mask,
                positions=jnp.cumsum(there, axis=1) - 1,
                adarms_cond=[None, cond],
            )
            return model.action_out_proj(hidden[:, -ours.HORIZON :])

        return jax.jit(predict)(self.state[1], *self.batches[1, cameras], self.noise).tolist()

    def sample(self, cameras: int) -> list:
        """float[1, P, A]: one chunk, as nested lists."""
        return self._sample(self.state[1], self.batches[1, cameras][0], self.noise).tolist()

    def train(self, cameras: int) -> float:
        """One step; returns the loss."""
        self.state, metrics = self._step(self.state, self.batches[self.rows, cameras])
        return float(jax.block_until_ready((self.state, metrics))[1]["loss"])
