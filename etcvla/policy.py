"""A checkpoint that acts, and answers: raw observation in, physical actions or words out.

All transforms come from the checkpoint. Nothing else is needed, neither config files nor datasets.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from etcvla import batch as batch_lib
from etcvla.data import prompts, rows
from etcvla.data.assets import Assets
from etcvla.data.norm_stats import normalize, unnormalize
from etcvla.models.variants import from_dict
from etcvla.models.vla import VLA, VLAConfig, decode_text, init_params, sample_actions
from etcvla.train import sharding
from etcvla.train.checkpoint import Checkpoints

_BUCKET = 16  # prompts are padded to a multiple of this many tokens, so that few shapes are compiled


class Policy:
    """See the module docstring. Make one by `load`.

    Args:
      num_steps: Euler steps of the action expert.
    """

    def __init__(self, config: VLAConfig, params: Any, assets: Assets, num_cameras: int, *, num_steps: int = 10):
        self.config, self.params, self.assets, self.num_cameras = config, params, assets, num_cameras
        model = VLA(config)
        self._sample = jax.jit(functools.partial(sample_actions, model, num_steps=num_steps))
        self._decode = jax.jit(functools.partial(decode_text, model, eos=assets.tokenizer.layout.eos),
                               static_argnames="max_new")

    @classmethod
    def load(cls, workdir: str, *, num_steps: int = 10) -> Policy:
        """The newest checkpoint's EMA parameters. Raises FileNotFoundError if there is none."""
        checkpoints = Checkpoints(workdir)
        meta = checkpoints.meta()
        config = from_dict(meta["model"])
        mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, jax.local_devices()[:1])
        abstract = jax.eval_shape(functools.partial(init_params, VLA(config)))
        abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract,
                                sharding.param_shardings(abstract, mesh))
        return cls(config, checkpoints.ema(abstract), Assets.from_json(meta["assets"]),
                   meta["config"]["data"]["num_cameras"], num_steps=num_steps)

    @property
    def cameras(self) -> tuple[str, ...]:
        """The views that `act` wants, in order. Raises ValueError for a checkpoint that has never seen actions."""
        if self.assets.action_spec is None:
            raise ValueError("this checkpoint cannot act: no stage before it was trained on actions")
        return tuple(self.assets.action_spec["cameras"])

    def act(self, observations: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> np.ndarray:
        """Action chunks in the dataset's own units.

        Args:
          observations: B of {"images": {camera: uint8[H, W, 3]}, "state": float[S], "instruction": str}.
          seeds: B seeds of the noise that the chunks are integrated from.

        Returns: float32[B, P, A].
        Raises ValueError for a missing camera, a state of another width or not finite, or a checkpoint without actions.
        """
        views = [self._views(observation["images"]) for observation in observations]
        texts, states = [], []
        for observation in observations:
            states.append(self._state(observation["state"]))
            texts.append(prompts.action(self.assets.tokenizer, observation["instruction"], state=states[-1],
                                        prompt=self.assets.action_spec["prompt"]))
        batch = self._batch(views, texts)
        width = self.assets.action_spec["action_dim"]
        batch["action_segment"][:] = 1
        batch["action_mask"][..., :width if self.assets.action_spec["mask_padding"] else None] = True
        for row, state in zip(batch["state"], states, strict=True):
            row[:len(state)] = state
        noise = np.stack([np.random.default_rng(seed).standard_normal(
            (self.config.horizon, self.config.action_dim), np.float32) for seed in seeds])
        chunks = np.asarray(self._sample(self.params, batch, noise))
        return unnormalize(chunks[..., :width], self.assets.action_stats, self.assets.norm_mode)

    def answer(self, images: Sequence[Sequence[np.ndarray]], questions: Sequence[str], *,
               max_new: int = 48) -> list[str]:
        """Greedy answers to B questions, each about the cameras uint8[H, W, 3] of one frame."""
        texts = [prompts.question(self.assets.tokenizer, question) for question in questions]
        tokens = np.asarray(self._decode(self.params, self._batch(images, texts), max_new=max_new))
        return [self._words(row) for row in tokens]

    def _words(self, tokens: np.ndarray) -> str:
        eos = self.assets.tokenizer.layout.eos
        end = np.flatnonzero(tokens == eos)
        return self.assets.tokenizer.decode(tokens[:end[0]] if len(end) else tokens).strip()

    def _views(self, images: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        lacking = [name for name in self.cameras if name not in images]
        if lacking:
            raise ValueError(f"observation has no camera {', '.join(lacking)}; it has {sorted(images)}")
        return [images[name] for name in self.cameras]

    def _state(self, state: np.ndarray) -> np.ndarray:
        expected = self.assets.action_spec["state_dim"]
        if np.shape(state) != (expected,) or not np.isfinite(state).all():
            raise ValueError(f"observation state {np.asarray(state).tolist()}: expected {expected} finite numbers "
                             f"({self.assets.action_spec['state']})")
        return normalize(np.asarray(state, np.float32), self.assets.state_stats, self.assets.norm_mode)

    def _batch(self, images: Sequence[Sequence[np.ndarray]], texts: Sequence[prompts.Segment]) -> dict:
        size = self.config.siglip.image_size
        length = -(-max(map(len, texts)) // _BUCKET) * _BUCKET
        batch = batch_lib.zeros(B=len(texts), C=self.num_cameras, H=size, W=size, L=length, S=self.config.state_dim,
                                P=self.config.horizon, A=self.config.action_dim)
        for i, (views, text) in enumerate(zip(images, texts, strict=True)):
            rows.put_images({name: value[i] for name, value in batch.items() if name.startswith("image")}, views)
            batch["tokens"][i, :len(text)] = text.prompt
            batch["segment"][i, :len(text)] = 1
        return batch
