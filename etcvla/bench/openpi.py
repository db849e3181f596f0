"""openpi's side of the benchmarks: its published JAX code, unchanged, in sizes of our choice.

The package is installed alone, into a folder that only the benchmark's openpi process reads. JAX,
Flax and the other libraries are those of the running environment, so both sides share them.
Packages that openpi imports but does not use in what is measured (torch for its other
implementation, image augmentation, run-time type checks) are replaced by empty modules.
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
from etcvla.errors import UserError
from etcvla.models.flops import count
from etcvla.models.vla import VLAConfig

REQUIREMENTS = ("rlinf-openpi==0.1.1", "openpi-client==0.1.2", "einops==0.8.2")
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
REPLACED_MODULES = (
    "torch",
    "torch.nn",
    "torch.nn.functional",
    "safetensors",
    "augmax",
    "beartype",
    "openpi.models_pytorch.pi0_pytorch",
)
GEMMA_FIELDS = ("width", "depth", "mlp_dim", "num_heads", "num_kv_heads", "head_dim")


def install(folder: Path) -> None:
    """Install openpi's package into `folder` unless it is there.

    Raises UserError with pip's message if it cannot be installed.
    """
    stamp = folder / "requirements.txt"
    if stamp.exists() and stamp.read_text().split() == list(REQUIREMENTS):
        return
    print(f"installing {' '.join(REQUIREMENTS)} into {folder}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--target", str(folder), *REQUIREMENTS]
    pip = subprocess.run(command, capture_output=True, text=True)
    if pip.returncode:
        errors = [line for line in pip.stderr.splitlines() if line.startswith("ERROR")]
        message = " ".join(errors) or pip.stderr.strip()[-300:]
        raise UserError(
            f"could not install {' and '.join(REQUIREMENTS)} into {folder}; pip says: {message}\n"
            "The comparison with openpi needs them; --only=flops runs without"
        )
    stamp.write_text("\n".join(REQUIREMENTS))


def make_config(folder: Path, config: VLAConfig) -> Any:
    """Return openpi's `Pi0Config` with the sizes of our `config`.

    Call it once per process: openpi keeps sizes in its modules, which are changed here.
    """
    _replace_modules()
    sys.path.insert(0, str(folder))
    gemma = importlib.import_module("openpi.models.gemma")
    siglip = importlib.import_module("openpi.models.siglip")
    model = importlib.import_module("openpi.models.model")
    pi0_config = importlib.import_module("openpi.models.pi0_config")

    def _gemma_config(name: str) -> Any:
        stream = {"gemma_2b": config.vlm, "gemma_300m": config.expert}[name]
        return gemma.Config(**{field: getattr(stream, field) for field in GEMMA_FIELDS})

    tower = config.siglip
    tower_config = {
        "width": tower.width,
        "depth": tower.depth,
        "mlp_dim": tower.mlp_dim,
        "num_heads": tower.num_heads,
        "patch_size": (tower.patch, tower.patch),
    }
    resolution = (tower.image_size, tower.image_size)
    gemma.get_config = _gemma_config
    gemma.PALIGEMMA_VOCAB_SIZE = config.vocab_size
    siglip.decode_variant = lambda _: tower_config
    model.IMAGE_RESOLUTION = resolution
    model.preprocess_observation.__kwdefaults__["image_resolution"] = resolution
    return pi0_config.Pi0Config(
        dtype=config.dtype,
        action_dim=config.action_dim,
        action_horizon=config.horizon,
        max_token_len=ours.TEXT_LEN,
    )


def _replace_modules() -> None:
    """Replace the modules that openpi imports but does not need here by empty ones."""
    for name in REPLACED_MODULES:
        sys.modules[name] = types.ModuleType(name)
    sys.modules["torch"].Tensor = type("Tensor", (), {})
    sys.modules["beartype"].beartype = lambda fn: fn
    # openpi wraps a private function that jaxtyping no longer has, and checks shapes in tracing.
    jaxtyping._decorator._check_dataclass_annotations = None
    jaxtyping.config.update("jaxtyping_disable", True)


def rename(params: dict[str, Any]) -> dict[str, Any]:
    """Return our parameters under openpi's names."""
    renamed = dict(params)
    renamed["PaliGemma"] = {"img": renamed.pop("img"), "llm": renamed.pop("llm")}
    return renamed


def train_step(
    state: tuple, batch: tuple, *, graph: nnx.GraphDef, optimizer: optax.GradientTransformation
) -> tuple[tuple, dict[str, jax.Array]]:
    """Run openpi's update without augmentation: loss, gradient, AdamW, moving average.

    Args:
      state: step, params, ema, optimizer state.
      batch: observation, actions.

    Returns: state, metrics.
    """
    step, params, ema, opt = state
    key = jax.random.fold_in(jax.random.key(0), step)

    def _loss(params: Any) -> jax.Array:
        return jnp.mean(nnx.merge(graph, params).compute_loss(key, *batch, train=False))

    loss, grads = jax.value_and_grad(_loss)(params)
    updates, opt = optimizer.update(grads, opt, params)
    params = optax.apply_updates(params, updates)
    decay = ours.OPTIMIZER.ema
    ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, params)
    return (step + 1, params, ema, opt), {"loss": loss, "grad_norm": optax.global_norm(grads)}


def make_optimizer() -> optax.GradientTransformation:
    """Return openpi's optimizer with its defaults."""
    optim = importlib.import_module("openpi.training.optimizer")
    return optim.create_optimizer(optim.AdamW(), optim.CosineDecaySchedule(warmup_steps=0))


def initial_state(optimizer: optax.GradientTransformation, params: Any) -> tuple:
    """Return the state of `train_step` at step 0."""
    return jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optimizer.init(params)


class Counter:
    """Count openpi's FLOPs, in a process of its own because `make_config` changes modules."""

    def __init__(self, folder: str, **fields: Any):
        self.config = make_config(Path(folder), ours.Workload(**fields).config)

    def tflop(self) -> float:
        """Return the TFLOP of one training sample."""
        graph, params = nnx.split(nnx.eval_shape(self.config.create, jax.random.key(0)))
        optimizer = make_optimizer()
        state = jax.eval_shape(functools.partial(initial_state, optimizer), params)
        step = functools.partial(train_step, graph=graph, optimizer=optimizer)
        return count(step, state, self.config.inputs_spec(batch_size=1)).total() / 1e12


class OpenPIPolicy:
    """openpi's side of the policy benchmark: its `Policy` with its transforms for ALOHA.

    Its tokenizer, which it would download, is replaced by ours behind its interface, and so is the
    file format of its statistics.
    """

    def __init__(self, folder: str, **fields: Any):
        workload = ours.Workload(**fields)
        config = make_config(Path(folder), workload.config)
        model = config.load(rename(workload.params()), remove_extra_params=False)
        self.size = workload.config.siglip.image_size
        self.policy = self._make_policy(model)

    def _make_policy(self, model: Any) -> Any:
        for name in ("openpi.models.tokenizer", "openpi.shared.normalize"):
            sys.modules[name] = _EmptyModule(name)
        transforms = importlib.import_module("openpi.transforms")
        aloha = importlib.import_module("openpi.policies.aloha_policy")
        policy = importlib.import_module("openpi.policies.policy")
        stats = {
            "state": types.SimpleNamespace(**policy_bench.stats(0)),
            "actions": types.SimpleNamespace(**policy_bench.stats(1)),
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

    def _infer(self, number: int, observation: dict[str, Any]) -> dict[str, Any]:
        return self.policy.infer(observation, noise=policy_bench.noise(number))

    def actions(self, cameras: int) -> list:
        """Return the first chunk, float[P, WIDTH], as nested lists."""
        result = self._infer(0, policy_bench.observe(cameras, 0, self.size))
        return np.asarray(result["actions"]).tolist()

    def infer(self, cameras: int, first: int, count: int) -> list[float]:
        """Return the seconds of each of `count` calls."""
        numbered = []
        for number in range(first, first + count):
            numbered.append((number, policy_bench.observe(cameras, number, self.size)))
        return policy_bench.time_calls(lambda pair: self._infer(*pair), numbered)


class _EmptyModule(types.ModuleType):
    """A module in which every name exists."""

    def __getattr__(self, name: str) -> type:
        return object


class _Tokenizer:
    """Our tokenizer behind the interface of openpi's `PaligemmaTokenizer`."""

    def __init__(self):
        self.tokenizer = Tokenizer.load()

    def tokenize(self, prompt: str, state: None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return padded ids int32[TEXT_LEN] and a mask of the real ones."""
        ids = prompts.action(self.tokenizer, prompt, prompt="pi0").prompt
        padding = (0, ours.TEXT_LEN - len(ids))
        mask = np.arange(ours.TEXT_LEN) < len(ids)
        return np.pad(np.array(ids, np.int32), padding), mask


class OpenPI:
    """openpi's side of the model benchmark. It has three cameras; with two, the third is masked."""

    def __init__(self, folder: str, **fields: Any):
        workload = ours.Workload(**fields)
        self.config = make_config(Path(folder), workload.config)
        self.rows = workload.rows
        self.batches = {}
        for rows in {1, self.rows}:
            for cameras in (2, ours.CAMERAS):
                batch = workload.batch(rows, ours.CAMERAS)
                self.batches[rows, cameras] = self._inputs(batch, cameras)
        self.noise = jnp.asarray(workload.noise(1))
        model = self.config.load(rename(workload.params()), remove_extra_params=False)
        self.graph, params = nnx.split(model)
        del model
        optimizer = make_optimizer()
        start = functools.partial(initial_state, optimizer)
        self.state = jax.jit(start, donate_argnums=0)(params)
        step = functools.partial(train_step, graph=self.graph, optimizer=optimizer)
        self._step = jax.jit(step, donate_argnums=0)
        self._sample = jax.jit(self._sample_actions)

    def _sample_actions(self, params: Any, observation: Any, noise: jax.Array) -> jax.Array:
        model = nnx.merge(self.graph, params)
        return model.sample_actions(
            jax.random.key(0), observation, num_steps=ours.EULER_STEPS, noise=noise
        )

    def _inputs(self, batch: dict[str, np.ndarray], cameras: int) -> tuple:
        """Return (observation, actions) as openpi has them."""
        images = {}
        masks = {}
        for i, name in enumerate(CAMERAS):
            images[name] = batch["images"][:, i]
            masks[name] = np.full(len(batch["images"]), i < cameras)
        observation_type = importlib.import_module("openpi.models.model").Observation
        observation = observation_type.from_dict(
            {
                "image": images,
                "image_mask": masks,
                "state": batch["state"],
                "tokenized_prompt": batch["tokens"],
                "tokenized_prompt_mask": batch["segment"] > 0,
            }
        )
        return jax.device_put((observation, batch["actions"][:, 0]))

    def velocity(self, cameras: int) -> list:
        """Return the velocity float[1, P, A] at `ours.FLOW_TIME`, as nested lists.

        These are the steps of openpi's loss with noise and time given.
        """
        make_mask = importlib.import_module("openpi.models.pi0").make_attn_mask

        def _predict(params: Any, observation: Any, actions: jax.Array, noise: jax.Array):
            model = nnx.merge(self.graph, params)
            prefix, prefix_mask, prefix_ar = model.embed_prefix(observation)
            x_t = ours.FLOW_TIME * noise + (1 - ours.FLOW_TIME) * actions
            time = jnp.full((1,), ours.FLOW_TIME)
            suffix, suffix_mask, suffix_ar, cond = model.embed_suffix(observation, x_t, time)
            token_mask = jnp.concatenate([prefix_mask, suffix_mask], axis=1)
            mask = make_mask(token_mask, jnp.concatenate([prefix_ar, suffix_ar]))
            (_, hidden), _ = model.PaliGemma.llm(
                [prefix, suffix],
                mask=mask,
                positions=jnp.cumsum(token_mask, axis=1) - 1,
                adarms_cond=[None, cond],
            )
            return model.action_out_proj(hidden[:, -ours.HORIZON :])

        return jax.jit(_predict)(self.state[1], *self.batches[1, cameras], self.noise).tolist()

    def sample(self, cameras: int) -> list:
        """Sample one chunk float[1, P, A], as nested lists."""
        observation, _ = self.batches[1, cameras]
        return self._sample(self.state[1], observation, self.noise).tolist()

    def train(self, cameras: int) -> float:
        """Run one training step and return its loss."""
        self.state, metrics = self._step(self.state, self.batches[self.rows, cameras])
        jax.block_until_ready(self.state)
        return float(metrics["loss"])
