"""A checkpoint that acts and answers: raw observation in, physical actions or text out.

All transforms come from the checkpoint. Neither config files nor datasets are needed.

From an observation to an action: `Policy.infer` (here) -> `observations.py` (images and state to a
batch) -> `prompting.py` (prompt) -> `model_calls.py` -> `etcvla/models/decode.py` (the model) ->
`observations.py` (chunk to physical actions).
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from etcvla.data import prompts
from etcvla.data.assets import Assets
from etcvla.errors import UserError
from etcvla.models.lora import merge
from etcvla.models.quantize import quantize_params
from etcvla.models.variants import config_from_dict
from etcvla.models.vla import VLA, Params, VLAConfig, init_params
from etcvla.policy.model_calls import ModelCalls
from etcvla.policy.observations import (
    Batch,
    Frames,
    Observation,
    ObservationTransforms,
    States,
    check_image,
    get_field,
    get_instruction,
)
from etcvla.policy.options import HEADS, PolicyOptions, trained_head
from etcvla.policy.prompting import Prompting
from etcvla.train import sharding
from etcvla.train.checkpoint import open_checkpoint

log = logging.getLogger(__name__)


class PolicyOutput(NamedTuple):
    """Output of a policy for B observations."""

    actions: np.ndarray  # float32[B, P, A] in the units of the dataset
    valid: np.ndarray  # bool[B]; False: the FAST tokens do not decode to a complete chunk
    subtasks: list[str]  # the subtasks that the policy wrote and acted on; [] if it writes none


class Policy:
    """A checkpoint's model with its transforms; `Policy.load` makes one from a folder.

    Args:
      params: parameters without LoRA adapters. They may be replaced later (`policy.params = ...`).
      num_cameras: cameras of a training row.
      mesh: devices of the parameters, if there are several; every process gets all results.

    Raises UserError if the assets do not fit the model or the model lacks the head.
    """

    def __init__(
        self,
        config: VLAConfig,
        params: Params | None,
        assets: Assets,
        num_cameras: int,
        options: PolicyOptions | None = None,
        mesh: Mesh | None = None,
    ):
        options = options or PolicyOptions()
        if options.head == "flow" and config.expert is None:
            raise UserError(
                "head 'flow' needs an action expert, and this model has none; use head 'fast'"
            )
        self.config = config
        self.params = params
        self.assets = assets
        self.num_cameras = num_cameras
        self.options = options
        self._transforms = ObservationTransforms(config, assets, num_cameras)
        self._prompting = Prompting(
            assets, subtask_question=options.subtask_question, text_len=options.text_len
        )
        self._model = ModelCalls(config, assets, options, mesh)

    @classmethod
    def load(cls, path: str, *, quantize: str | None = None, **options: Any) -> Policy:
        """Load the EMA parameters of a checkpoint.

        Args:
          path: a workdir, or the folder of one of its checkpoints.
          quantize: "int8" loads weights of eight bits, see `etcvla.models.quantize`.
          options: fields of `PolicyOptions`. The default of head is the head that the
            checkpoint's stage trained (flow before fast), and that of max_fast_tokens is the
            stage's. text_len=None means the text length of the stage's rows.

        Raises UserError if there is no checkpoint or an option is wrong.
        """
        checkpoint = open_checkpoint(path)
        meta = checkpoint.meta()
        config = config_from_dict(meta["model"])
        stage = meta["config"]
        if options.get("head") is None:
            options["head"] = trained_head(stage["loss"])
        if options.get("text_len", 0) is None:
            options["text_len"] = stage["data"]["text_len"]
        options.setdefault("max_fast_tokens", stage["data"]["max_targets"])
        options = PolicyOptions(**options)
        mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, jax.local_devices()[:1])
        shapes = jax.eval_shape(functools.partial(init_params, VLA(config)))
        params = checkpoint.ema(sharding.add_shardings(shapes, mesh))
        params = merge(params, config.adapters)  # separate adapters would cost time in every step
        if quantize:
            params = quantize_params(params, quantize)
        config = dataclasses.replace(config, lora=(), remat="none")
        assets = Assets.from_json(meta["assets"])
        return cls(config, params, assets, stage["data"]["num_cameras"], options)

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras that `act` needs, in order.

        Raises UserError for a checkpoint that was never trained on actions.
        """
        return self._transforms.cameras

    @property
    def head(self) -> str | None:
        """The head that acts, see `PolicyOptions`."""
        return self.options.head

    def check_can_act(self) -> None:
        """Raise UserError for a checkpoint whose last stage, or every stage, trained no actions."""
        if self.cameras and self.head is None:
            raise UserError(
                "the checkpoint's last stage trained no actions (loss.flow and loss.fast are 0); "
                "if an earlier stage did, choose the head: Policy.load(path, head=...), one of "
                f"{', '.join(HEADS)}"
            )

    def warm_up(self, batch_size: int, instructions: Sequence[str]) -> None:
        """Compile `act` for a batch size, and pad all later prompts to the longest of these.

        A single shape has a single program, so an action never depends on the other rows of its
        batch. Raises UserError as `infer` does.
        """
        self.check_can_act()
        # Very large numbers have the longest text as state bins.
        state = np.full(self.assets.action_spec["state_dim"], 1e6, np.float32)
        normalized = [self._transforms.normalized_state(state)] * len(instructions)
        self._prompting.reserve(self._prompting.actions(instructions, normalized))
        size = self.config.siglip.image_size
        observation = {
            "images": {name: np.zeros((size, size, 3), np.uint8) for name in self.cameras},
            "state": state,
            "instruction": max(instructions, key=len),
        }
        self.infer([observation] * batch_size, range(batch_size))

    def act(self, observations: Sequence[Observation], seeds: Sequence[Any]) -> np.ndarray:
        """Return the actions of `infer`, float32[B, P, A].

        FAST tokens that do not decode to a complete chunk become the normalised zero, as in
        openpi's pi0-FAST, and are logged. Use `infer` to handle them in another way.
        """
        output = self.infer(observations, seeds)
        if not output.valid.all():
            log.warning(
                "%d of %d sequences of FAST tokens do not decode to a complete chunk; the "
                "normalised zero (the middle of every action's range) replaces them",
                (~output.valid).sum(),
                len(output.valid),
            )
        return output.actions

    def infer(self, observations: Sequence[Observation], seeds: Sequence[Any]) -> PolicyOutput:
        """Return action chunks, whether they are valid, and the subtasks that the policy wrote.

        Args:
          observations: B of {"images": {camera: uint8[H, W, 3]}, "state": float[S],
            "instruction": str}; images of any size are stretched to the model's, as in training.
            The optional fields "prefix" and "delay" are for real-time chunking: the new chunk
            continues the actions float32[n, A] of the prefix (`ObservationTransforms.guide`).
          seeds: B seeds of the noise from which flow chunks are integrated, for
            `np.random.default_rng`. FAST tokens are greedy and ignore them.

        Raises UserError for an observation that lacks a field or a camera, or has a field of a
        wrong shape; for a prompt longer than text_len; and for a checkpoint that cannot act.
        """
        self.check_can_act()
        _check_counts(observations=len(observations), seeds=len(seeds))
        frames = [self.camera_images(get_field(item, "images")) for item in observations]
        batch = self._transforms.image_fields(frames, acting=True)
        states = [self._transforms.normalized_state(get_field(o, "state")) for o in observations]
        instructions = [get_instruction(observation) for observation in observations]
        guide = self._transforms.guide(observations)
        if guide is not None and self.head == "fast":
            raise UserError("real-time chunking (a prefix) needs head 'flow'; this policy has fast")
        image_cache = self._model.take_kept_cache(batch)
        subtasks = []
        questions = self._prompting.subtask_questions(instructions, states)
        if questions:
            image_cache = image_cache or self._model.cache_images(self.params, batch)
            asking = batch | self._prompting.text_fields(questions)
            subtasks = self._model.text(self.params, asking, image_cache=image_cache)
        segments = self._prompting.actions(instructions, states, subtasks)
        batch |= self._prompting.text_fields(segments)
        if self.head == "fast":
            chunks, valid = self._model.fast_chunks(self.params, batch, image_cache=image_cache)
        else:
            self._transforms.set_action_fields(batch, states)
            chunks = self._model.flow_chunks(
                self.params, batch, seeds, image_cache=image_cache, guide=guide
            )
            valid = np.ones(len(chunks), bool)
        actions = self._transforms.physical_actions(chunks, observations)
        return PolicyOutput(actions, valid, subtasks)

    def answer(self, images: Frames, questions: Sequence[str], *, max_new: int = 48) -> list[str]:
        """Return greedy answers of at most `max_new` tokens to B questions, one about each frame.

        Args:
          images: B lists of camera images uint8[H, W, 3].

        Raises UserError for a wrong image, for more images than the checkpoint has cameras, and
        for different numbers of frames and questions.
        """
        _check_counts(frames=len(images), questions=len(questions))
        frames = []
        for i, frame in enumerate(images):
            frames.append(
                [check_image(f"images[{i}][{j}]", image) for j, image in enumerate(frame)]
            )
        batch = self.model_batch(frames, self._prompting.questions(questions))
        return self._model.text(self.params, batch, max_new=max_new)

    def camera_images(self, images: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return an observation's images as training showed them: selected, ordered, upright."""
        return self._transforms.camera_images(images)

    def model_batch(
        self,
        frames: Frames,
        segments: Sequence[prompts.Segment],
        states: States | None = None,
    ) -> Batch:
        """Return the batch that the model reads.

        Args:
          frames: B lists of camera images uint8[H, W, 3].
          segments: B prompts.
          states: B raw states float[S], for acting.
        """
        batch = self._transforms.image_fields(frames) | self._prompting.text_fields(segments)
        if states is not None:
            normalized = [self._transforms.normalized_state(state) for state in states]
            self._transforms.set_action_fields(batch, normalized)
        return batch

    def action_prompts(self, instructions: Sequence[str], states: States) -> list[prompts.Segment]:
        """Return action prompts for raw states float[S]; the instruction is also the subtask."""
        normalized = [self._transforms.normalized_state(state) for state in states]
        return self._prompting.actions(instructions, normalized)


def _check_counts(**counts: int) -> None:
    """Raise UserError unless the two counts are equal and positive."""
    first, second = counts.values()
    if first != second or first == 0:
        first_name, second_name = counts
        raise UserError(
            f"{first} {first_name} and {second} {second_name}, expected one or more and as many of "
            "each"
        )
