"""A checkpoint that acts, and answers: raw observation in, physical actions or words out.

All transforms come from the checkpoint. Nothing else is needed, neither config files nor datasets.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from etcvla import batch as batch_lib
from etcvla import schedule
from etcvla.data import prompts, rows
from etcvla.data.assets import Assets
from etcvla.data.norm_stats import normalize, unnormalize
from etcvla.etc.question_types import clean_instruction
from etcvla.models import flow
from etcvla.models.decode import ImageCache, cache_images, decode_text, sample_with_image_cache
from etcvla.models.lora import merge
from etcvla.models.quantize import quantize_params
from etcvla.models.variants import config_from_dict
from etcvla.models.vla import VLA, VLAConfig, init_params
from etcvla.train import sharding
from etcvla.train.checkpoint import Checkpoints

HEADS = ("flow", "fast")
_BUCKET = (
    16  # prompts are padded to a multiple of this many tokens, so that few shapes are compiled
)
log = logging.getLogger(__name__)


class PolicyOutput(NamedTuple):
    """What a policy does about B observations."""

    actions: np.ndarray  # float32[B, P, A] as the dataset has stored them
    valid: np.ndarray  # bool[B]; False where FAST tokens made no whole chunk: the actions are the normalised zero then
    subtasks: list[
        str
    ]  # what was written to be done now, and acted on; [] for a prompt without subtasks


class Policy:
    """See the module docstring. Make one by `load`.

    Args:
      num_steps: Euler steps of the action expert.
      head: "flow" acts by the action expert, "fast" by FAST tokens; None cannot act.
      max_fast: FAST tokens a chunk, at most.
      subtask: a question with {instruction}, as "the robot should {instruction}. what should it do now?". The policy
        answers it first, and acts on the answer: as the subtask where the checkpoint's prompt speaks of one, else in
        the instruction's place; on the instruction where the answer is empty. None asks as the prompt does, if it has
        subtasks. The images are encoded once for both, as far as the model's masks allow it (`decode.ImageCache`).
      text_len: tokens to which every prompt is padded, so that one shape is compiled; 0 takes what a prompt needs.
      keep_image_cache: keeps what the model saw until other images come. Where the same come again, with another prompt or
        state, it acts on that: exactly as if it had looked anew, up to rounding.
      mesh: where the parameters lie, if on more than one device; each process then gets all of what is decided.

    Raises ValueError if the assets do not fit the model.
    """

    def __init__(
        self,
        config: VLAConfig,
        params: Any,
        assets: Assets,
        num_cameras: int,
        *,
        num_steps: int = 10,
        head: str | None = "flow",
        max_fast: int = 256,
        subtask: str | None = None,
        text_len: int = 0,
        keep_image_cache: bool = False,
        mesh: Mesh | None = None,
    ):
        self.config, self.params, self.assets, self.num_cameras = (
            config,
            params,
            assets,
            num_cameras,
        )
        self.head, self.max_fast, self.subtask, self.num_steps = head, max_fast, subtask, num_steps
        self.text_len, self._room = (
            text_len,
            0,
        )  # _room: tokens that every prompt is padded to, at least
        self.keep_image_cache, self._kept = keep_image_cache, None
        if subtask is not None and "{instruction}" not in subtask:
            raise ValueError(f"subtask {subtask!r} does not say where the {{instruction}} stands")
        _check_fit(config, assets)
        if head == "flow" and config.expert is None:
            raise ValueError(
                "head 'flow' needs an action expert, and this model has none; head 'fast' does without"
            )
        # A released embedding table may have rows that mean nothing.
        self._known = np.zeros(config.vocab_size, bool)
        for span in assets.tokenizer.layout.ranges.values():
            self._known[span.offset : span.stop] = True
        model, everywhere = VLA(config), mesh and NamedSharding(mesh, PartitionSpec())
        self._cache_images = jax.jit(functools.partial(cache_images, model))
        self._sample = jax.jit(
            functools.partial(sample_with_image_cache, model, num_steps=num_steps),
            out_shardings=(everywhere, None),
            donate_argnames="image_cache" if keep_image_cache else None,
        )
        self._decode = jax.jit(
            functools.partial(decode_text, model, eos=assets.tokenizer.layout.eos),
            static_argnames="max_new",
            out_shardings=everywhere,
        )

    @classmethod
    def load(
        cls,
        workdir: str,
        *,
        head: str | None = None,
        text_len: int | None = 0,
        quantize: str | None = None,
        **options: Any,
    ) -> Policy:
        """The newest checkpoint's EMA parameters.

        Args:
          head: None is the one that the checkpoint's stage trained: the flow's, else FAST's.
          text_len: as of the class; None: as the stage's rows have it.
          quantize: "int8" for weights of eight bits, see `etcvla.models.quantize`.
          options: as of the class.

        Raises FileNotFoundError if there is no checkpoint, ValueError for an unknown head.
        """
        if head not in (None, *HEADS):
            raise ValueError(f"head {head!r} is not one of {', '.join(HEADS)}")
        checkpoints = Checkpoints(workdir)
        meta = checkpoints.meta()
        config, stage = config_from_dict(meta["model"]), meta["config"]
        mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, jax.local_devices()[:1])
        abstract = sharding.placed(
            jax.eval_shape(functools.partial(init_params, VLA(config))), mesh
        )
        params = merge(
            checkpoints.ema(abstract), config.adapters
        )  # beside the weights they would cost time
        if quantize:
            params = quantize_params(params, quantize)
        head = head or trained_head(stage["loss"])
        return cls(
            dataclasses.replace(config, lora=(), remat="none"),
            params,
            Assets.from_json(meta["assets"]),
            stage["data"]["num_cameras"],
            head=head,
            max_fast=stage["data"]["max_targets"],
            text_len=stage["data"]["text_len"] if text_len is None else text_len,
            **options,
        )

    @property
    def cameras(self) -> tuple[str, ...]:
        """The views that `act` wants, in order. Raises ValueError for a checkpoint that has never seen actions."""
        if self.assets.action_spec is None:
            raise ValueError(
                "this checkpoint cannot act: no stage before it was trained on actions"
            )
        return tuple(self.assets.action_spec["cameras"])

    def warm_up(self, batch_size: int, instructions: Sequence[str]) -> None:
        """Compiles acting on so many observations at once, for these instructions; prompts are padded to the longest of
        them from now on.

        With one shape there is one program, so that an action never depends on what else is in the batch.
        Raises as `infer`.
        """
        self.check_acting()
        state = np.full(
            self.assets.action_spec["state_dim"], 1e6, np.float32
        )  # the longest there is, as text
        prompt, size = self.assets.action_spec["prompt"], self.config.siglip.image_size
        texts = [
            prompts.action(
                self.assets.tokenizer, text, prompt=prompt, state=self._state(state), subtask=text
            )
            for text in instructions
        ]
        self._room = max(self._room, *(-(-len(text) // _BUCKET) * _BUCKET for text in texts))
        blank = {
            "images": {name: np.zeros((size, size, 3), np.uint8) for name in self.cameras},
            "state": state,
            "instruction": max(instructions, key=len),
        }
        self.infer([blank] * batch_size, range(batch_size))

    def act(self, observations: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> np.ndarray:
        """`infer`'s actions alone. FAST tokens that make no chunk are logged, and act as the normalised zero.

        So they do in openpi's pi0-FAST. Who would rather wait there than move on calls `infer`, which tells.
        """
        decision = self.infer(observations, seeds)
        if not decision.valid.all():
            log.warning(
                "%d of %d sequences of FAST tokens make no whole chunk; in their place stands the normalised "
                "zero, the middle of every action's range",
                (~decision.valid).sum(),
                len(decision.valid),
            )
        return decision.actions

    def infer(
        self, observations: Sequence[Mapping[str, Any]], seeds: Sequence[int]
    ) -> PolicyOutput:
        """Action chunks, whether they could be read, and the subtasks that they are for.

        Args:
          observations: B of {"images": {camera: uint8[H, W, 3]}, "state": float[S], "instruction": str}; images of any
            size, which are stretched as in training. With "prefix", the actions float32[n, A] that are being executed
            from here on, and "delay", how many of them will have been before this chunk is there, the chunk goes on
            from them (real-time chunking, `flow.Guide`).
          seeds: B seeds of the noise that the flow's chunks are integrated from; FAST tokens are greedy and need none.

        Raises ValueError for an observation that lacks a field or a camera, an image that is no uint8[H, W, 3], a state
        of another width or not finite, a prefix that is no part of a chunk, a prompt longer than `text_len`, and a
        checkpoint without actions.
        """
        self.check_acting()
        if len(observations) != len(seeds) or not len(seeds):
            raise ValueError(
                f"{len(observations)} observations and {len(seeds)} seeds, expected one or more of each"
            )
        batch = self._images(
            [self.camera_images(_get(observation, "images")) for observation in observations],
            acting=True,
        )
        states = [self._state(_get(observation, "state")) for observation in observations]
        tasks = [_words(_get(observation, "instruction")) for observation in observations]
        guide = self._guide(observations)
        image_cache, subtasks = self._think(batch, tasks, states, self._remembered(batch))
        batch |= self._texts(self._told(tasks, states, subtasks))
        chunks, valid = (
            self._fast(batch, image_cache)
            if self.head == "fast"
            else self._flow(batch, states, seeds, image_cache, guide)
        )
        chunks = unnormalize(chunks, self.assets.action_stats, self.assets.norm_mode)
        told = np.stack(
            [np.asarray(observation["state"], np.float32) for observation in observations]
        )
        return PolicyOutput(self.assets.adapter.to_robot(chunks, told), valid, subtasks)

    def answer(
        self, images: Sequence[Sequence[np.ndarray]], questions: Sequence[str], *, max_new: int = 48
    ) -> list[str]:
        """Greedy answers to B questions, each about the cameras uint8[H, W, 3] of one frame.

        Raises ValueError for an image that is none, more images than the checkpoint has cameras, or numbers of frames
        and questions that differ.
        """
        if len(images) != len(questions) or not len(images):
            raise ValueError(
                f"{len(images)} frames and {len(questions)} questions, expected one or more of each"
            )
        frames = [
            [_image(f"images[{i}][{j}]", view) for j, view in enumerate(views)]
            for i, views in enumerate(images)
        ]
        asked = [prompts.question(self.assets.tokenizer, question) for question in questions]
        return self._answer(self._images(frames), asked, max_new=max_new)

    def inputs(
        self,
        images: Sequence[Sequence[np.ndarray]],
        texts: Sequence[prompts.Segment],
        states: Sequence[np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """What the model reads of B frames: uint8[H, W, 3] a camera, a prompt and, to act, a state float[S]."""
        batch = self._images(images) | self._texts(texts)
        if states is not None:
            self._set_states(batch, [self._state(state) for state in states])
        return batch

    def action_prompts(
        self, tasks: Sequence[str], states: Sequence[np.ndarray]
    ) -> list[prompts.Segment]:
        """The prompts that tell a robot in states float[S] to do its task; a subtask is as the task."""
        return self._told(tasks, [self._state(state) for state in states], [])

    def _answer(self, batch, texts, *, max_new=48, image_cache=None) -> list[str]:
        batch = batch | self._texts(texts)
        tokens = self._decode(
            self.params, batch, max_new=max_new, allowed=self._known, image_cache=image_cache
        )
        return [
            self.assets.tokenizer.decode(self._written(row)).strip() for row in np.asarray(tokens)
        ]

    def _remembered(self, batch) -> ImageCache | None:
        """The look at these very images, if it is kept. Its buffers are the next one's, so it is forgotten here."""
        kept, self._kept = self._kept, None
        same = kept and all(np.array_equal(kept[0][name], batch[name]) for name in kept[0])
        return kept[1] if same else None

    def _remember(self, batch, image_cache: ImageCache) -> None:
        if self.keep_image_cache:
            self._kept = {name: batch[name] for name in ("images", "image_mask")}, image_cache

    def _think(self, batch, tasks, states, image_cache) -> tuple[ImageCache | None, list[str]]:
        """The look that the action shares, and every row's subtask; `look` and [] without subtasks."""
        tokenizer, prompt = self.assets.tokenizer, self.assets.action_spec["prompt"]
        if self.subtask is not None:
            asked = [
                prompts.question(
                    tokenizer, self.subtask.replace("{instruction}", clean_instruction(task))
                )
                for task in tasks
            ]
        elif prompts.find_format(prompt).subtask:
            asked = [
                prompts.subtask(tokenizer, task, prompt=prompt, state=state)
                for task, state in zip(tasks, states, strict=True)
            ]
        else:
            return image_cache, []
        image_cache = image_cache or self._cache_images(
            self.params, batch["images"], batch["image_mask"]
        )
        return image_cache, self._answer(batch, asked, image_cache=image_cache)

    def _told(self, tasks, states, subtasks) -> list[prompts.Segment]:
        """The action prompts. A format that speaks of no subtask is given it as the task."""
        prompt = self.assets.action_spec["prompt"]
        both = bool(prompts.find_format(prompt).subtask)
        now = [subtask or task for subtask, task in zip(subtasks or tasks, tasks, strict=True)]
        return [
            prompts.action(
                self.assets.tokenizer,
                task if both else subtask,
                prompt=prompt,
                state=state,
                subtask=subtask,
            )
            for task, subtask, state in zip(tasks, now, states, strict=True)
        ]

    def _written(self, tokens: np.ndarray) -> np.ndarray:
        """Without eos and what follows it."""
        end = np.flatnonzero(tokens == self.assets.tokenizer.layout.eos)
        return tokens[: end[0]] if len(end) else tokens

    def _flow(self, batch, states, seeds, image_cache, guide) -> tuple[np.ndarray, np.ndarray]:
        """Normalised chunks float32[B, P, A] by the action expert; all are valid."""
        width = self.assets.action_spec["action_dim"]
        self._set_states(batch, states)
        noise = np.stack(
            [
                np.random.default_rng(seed).standard_normal(
                    (self.config.horizon, self.config.action_dim), np.float32
                )
                for seed in seeds
            ]
        )
        chunks, image_cache = self._sample(
            self.params, batch, noise, image_cache=image_cache, guide=guide
        )
        self._remember(batch, image_cache)
        return np.asarray(chunks)[..., :width], np.ones(len(chunks), bool)

    def _set_states(self, batch, states) -> None:
        """Makes a batch one of actions, from normalised states."""
        width = (
            self.assets.action_spec["action_dim"]
            if self.assets.action_spec["mask_padding"]
            else None
        )
        batch["action_segment"][:] = 1
        batch["action_mask"][..., :width] = True
        for row, state in zip(batch["state"], states, strict=True):
            row[: len(state)] = state

    def _guide(self, observations) -> flow.Guide | None:
        """What the chunks of those observations with a prefix go on from; None if none has one."""
        if not any("prefix" in observation for observation in observations):
            return None
        if self.head == "fast":
            raise ValueError(
                "FAST tokens cannot go on from a prefix: real-time chunking needs the head 'flow'"
            )
        horizon, width = self.config.horizon, self.assets.action_spec["action_dim"]
        guide = flow.Guide(
            np.zeros((len(observations), horizon, self.config.action_dim), np.float32),
            np.zeros((len(observations), horizon), np.float32),
        )
        for i, observation in enumerate(observations):
            if "prefix" in observation:
                prefix = self._prefix(observation["prefix"], observation["state"])
                guide.actions[i, : len(prefix), :width] = prefix
                guide.weight[i] = flow.soft_mask(horizon, _get(observation, "delay"), len(prefix))
        return guide

    def _prefix(self, actions: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Actions float32[n, A] of the robot's as the model makes them."""
        actions, width = np.asarray(actions, np.float32), self.assets.action_spec["action_dim"]
        if (
            actions.ndim != 2
            or actions.shape[1] != width
            or not 0 < len(actions) <= self.config.horizon
            or (not np.isfinite(actions).all())
        ):
            raise ValueError(
                f"observation prefix float{list(actions.shape)}: expected 1 to {self.config.horizon} "
                f"actions of {width} finite numbers"
            )
        adapter = self.assets.adapter
        told = adapter.to_relative(adapter.from_robot(actions), np.asarray(state, np.float32))
        return normalize(told, self.assets.action_stats, self.assets.norm_mode)

    def _fast(self, batch, image_cache) -> tuple[np.ndarray, np.ndarray]:
        """Normalised chunks by greedy FAST tokens, zeros where they make no whole chunk, and which of them do."""
        tokenizer, fast, prompt = (
            self.assets.tokenizer,
            self.assets.fast,
            self.assets.action_spec["prompt"],
        )
        allowed = np.zeros(self.config.vocab_size, bool)
        allowed[prompts.action_vocabulary(tokenizer, prompt=prompt, fast_vocab=fast.vocab_size)] = (
            True
        )
        tokens = np.asarray(
            self._decode(
                self.params, batch, max_new=self.max_fast, allowed=allowed, image_cache=image_cache
            )
        )
        return fast.decode_batch(
            [prompts.read_action(tokenizer, self._written(row), prompt=prompt) for row in tokens]
        )

    def check_acting(self) -> None:
        """Raises ValueError for a checkpoint that has never seen actions, or whose last stage taught none."""
        if self.cameras and self.head is None:
            raise ValueError(
                "this checkpoint's last stage trained no actions (loss.flow and loss.fast are 0); if a "
                f"stage before it did, say how to act: Policy.load(workdir, head=...), one of {HEADS}"
            )

    def camera_images(self, images: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """An observation's images as the model was shown them in training. Raises ValueError as `infer`."""
        lacking = [name for name in self.cameras if name not in images]
        if lacking:
            raise ValueError(
                f"observation has no camera {', '.join(lacking)}; it has {sorted(images)}"
            )
        return [
            self.assets.adapter.rotate(name, _image(f"observation image {name!r}", images[name]))
            for name in self.cameras
        ]

    def _state(self, state: np.ndarray) -> np.ndarray:
        expected = self.assets.action_spec["state_dim"]
        if np.shape(state) != (expected,) or not np.isfinite(state).all():
            raise ValueError(
                f"observation state {np.asarray(state).tolist()}: expected {expected} finite numbers "
                f"({self.assets.action_spec['state']})"
            )
        return normalize(
            np.asarray(state, np.float32), self.assets.state_stats, self.assets.norm_mode
        )

    def _images(
        self, frames: Sequence[Sequence[np.ndarray]], *, acting: bool = False
    ) -> dict[str, np.ndarray]:
        """A batch of these images, and nothing else in it yet; for acting, of the cameras alone that there are."""
        most, config = max(map(len, frames)), self.config
        if most > self.num_cameras:
            raise ValueError(
                f"{most} images of one frame; the checkpoint was trained on {self.num_cameras} cameras"
            )
        size = config.siglip.image_size
        cameras = most if acting and not config.count_absent_cameras else self.num_cameras
        batch = batch_lib.zeros(
            B=len(frames),
            C=cameras,
            H=size,
            W=size,
            L=0,
            S=config.state_dim,
            P=config.horizon,
            A=config.action_dim,
        )
        for i, views in enumerate(frames):
            rows.put_images({name: batch[name][i] for name in ("images", "image_mask")}, views)
        return batch

    def _texts(self, texts: Sequence[prompts.Segment]) -> dict[str, np.ndarray]:
        """The batch's text: one prompt a row."""
        longest = max(map(len, texts))
        if self.text_len and longest > self.text_len:
            raise ValueError(
                f"a prompt has {longest} tokens, more than the {self.text_len} that this policy was made "
                "for (text_len): say it in fewer words"
            )
        length = self.text_len or max(self._room, -(-longest // _BUCKET) * _BUCKET)
        tokens = np.zeros((len(texts), length), np.int32)
        for row, text in zip(tokens, texts, strict=True):
            row[: len(text)] = text.prompt
        present = np.arange(tokens.shape[1]) < np.array([[len(text)] for text in texts])
        return {
            "tokens": tokens,
            "segment": present.astype(np.int32),
            "target": np.zeros_like(present),
        }


def trained_head(loss: Mapping[str, Any]) -> str | None:
    """The head that a stage with these loss weights teaches: the flow's, else FAST's, else none."""
    return next((name for name in HEADS if schedule.is_nonzero(loss[name])), None)


def _check_fit(config: VLAConfig, assets: Assets) -> None:
    """Raises ValueError naming what is larger than the model has room for."""
    spec = assets.action_spec or {"action_dim": 0, "state_dim": 0, "horizon": config.horizon}
    sizes = {
        "the tokenizer's vocabulary": (assets.tokenizer.layout.vocab_size, config.vocab_size),
        "action_spec.action_dim": (spec["action_dim"], config.action_dim),
        "action_spec.state_dim": (spec["state_dim"], config.state_dim),
    }
    for name, (found, room) in sizes.items():
        if found > room:
            raise ValueError(f"{name} is {found}, but the model was made for at most {room}")
    if spec["horizon"] != config.horizon:
        raise ValueError(
            f"action_spec.horizon is {spec['horizon']}, but the model's chunks have {config.horizon} "
            "steps"
        )


def _get(observation: Mapping[str, Any], field: str) -> Any:
    if field not in observation:
        raise ValueError(f"observation has no {field!r}; it has {sorted(observation)}")
    return observation[field]


def _words(instruction: Any) -> str:
    if not isinstance(instruction, str):
        raise ValueError(f"observation instruction is {type(instruction).__name__}, expected text")
    return instruction


def _image(name: str, image: Any) -> np.ndarray:
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"{name} is {image.dtype}{list(image.shape)}, expected uint8[H, W, 3]")
    return image
