"""Transforms from raw observations to a model batch, and from model chunks to physical actions.

Axes: B batch, C cameras, P action horizon, A action width, S state width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from etcvla import batch as batch_lib
from etcvla.data import rows
from etcvla.data.assets import Assets
from etcvla.data.norm_stats import normalize, unnormalize
from etcvla.errors import UserError
from etcvla.models import flow
from etcvla.models.vla import VLAConfig

Batch = dict[str, np.ndarray]
Observation = Mapping[str, Any]
Frames = Sequence[Sequence[np.ndarray]]  # images uint8[H, W, 3] of the cameras of each frame
States = Sequence[np.ndarray]  # float[S] each


@dataclasses.dataclass(frozen=True)
class ObservationTransforms:
    """The transforms of one checkpoint, which are those that training applied.

    Attributes:
      config: sizes of the model.
      assets: normalisation statistics, the robot's adapter and the meaning of actions.
      num_cameras: C, cameras of a training row.
    """

    config: VLAConfig
    assets: Assets
    num_cameras: int

    def __post_init__(self):
        _check_sizes(self.config, self.assets)

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras that acting needs, in order.

        Raises UserError for a checkpoint that was never trained on actions.
        """
        if self.assets.action_spec is None:
            raise UserError(
                "this checkpoint cannot act: none of its stages was trained on actions; use a "
                "checkpoint of a stage with an action stream"
            )
        return tuple(self.assets.action_spec["cameras"])

    def camera_images(self, images: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return an observation's images uint8[H, W, 3] in the order and orientation of training.

        Raises UserError for a missing camera or a wrong image.
        """
        missing = [name for name in self.cameras if name not in images]
        if missing:
            raise UserError(
                f"observation has no camera {', '.join(missing)}; it has {sorted(images)}"
            )
        selected = []
        for name in self.cameras:
            image = check_image(f"observation image {name!r}", images[name])
            selected.append(self.assets.adapter.rotate(name, image))
        return selected

    def image_fields(self, frames: Frames, *, acting: bool = False) -> Batch:
        """Return a batch of B frames that has images only; every other field is zero.

        Args:
          frames: images of any size, which are stretched to the model's, as in training.
          acting: drop absent cameras from the batch where the model does not count them.
        """
        config = self.config
        cameras = max(len(images) for images in frames)
        if cameras > self.num_cameras:
            raise UserError(
                f"a frame has {cameras} images, but the checkpoint was trained on "
                f"{self.num_cameras} cameras; pass at most that many"
            )
        if not acting or config.count_absent_cameras:
            cameras = self.num_cameras
        size = config.siglip.image_size
        batch = batch_lib.zeros(
            B=len(frames),
            C=cameras,
            H=size,
            W=size,
            L=0,
            Q=config.state_dim,
            P=config.horizon,
            A=config.action_dim,
        )
        for i, images in enumerate(frames):
            rows.put_images({name: field[i] for name, field in batch.items()}, images)
        return batch

    def normalized_state(self, state: np.ndarray) -> np.ndarray:
        """Return a raw state float[S] in model units, float32[S].

        Raises UserError for a state of another width or with numbers that are not finite.
        """
        spec = self.assets.action_spec
        width = spec["state_dim"]
        if np.shape(state) != (width,) or not np.isfinite(state).all():
            raise UserError(
                f"observation state {np.asarray(state).tolist()}: expected {width} finite numbers "
                f"({spec['state']})"
            )
        state = np.asarray(state, np.float32)
        return normalize(state, self.assets.state_stats, self.assets.norm_mode)

    def set_action_fields(self, batch: Batch, states: States) -> None:
        """Write normalised states and the mask of the unpadded action dimensions into a batch."""
        spec = self.assets.action_spec
        width = spec["action_dim"] if spec["mask_padding"] else None
        batch["action_segment"][:] = 1
        batch["action_mask"][..., :width] = True
        for row, state in zip(batch["state"], states, strict=True):
            row[: len(state)] = state

    def guide(self, observations: Sequence[Observation]) -> flow.Guide | None:
        """Return the actions that new chunks must continue; None if no observation has a prefix.

        An observation's "prefix" holds the actions float32[n, A] that the robot is executing from
        this step on, its "delay" the number of them that it will have executed when the new chunk
        arrives. Rows without a prefix have weight 0.
        """
        if not any("prefix" in observation for observation in observations):
            return None
        shape = (len(observations), self.config.horizon, self.config.action_dim)
        guide = flow.Guide(np.zeros(shape, np.float32), np.zeros(shape[:2], np.float32))
        for i, observation in enumerate(observations):
            if "prefix" in observation:
                prefix = self._normalized_actions(observation["prefix"], observation["state"])
                steps, width = prefix.shape
                guide.actions[i, :steps, :width] = prefix
                delay = get_field(observation, "delay")
                guide.weight[i] = flow.soft_mask(self.config.horizon, delay, steps)
        return guide

    def _normalized_actions(self, actions: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Return physical actions float32[n, A] in model units: the inverse of `physical_actions`.

        Args:
          state: the robot's raw state float[S] at the first action.
        """
        actions = np.asarray(actions, np.float32)
        width = self.assets.action_spec["action_dim"]
        horizon = self.config.horizon
        right_shape = actions.ndim == 2 and actions.shape[1] == width
        if not right_shape or not 0 < len(actions) <= horizon or not np.isfinite(actions).all():
            raise UserError(
                f"observation prefix float{list(actions.shape)}: expected 1 to {horizon} actions "
                f"of {width} finite numbers"
            )
        adapter = self.assets.adapter
        actions = adapter.to_relative(adapter.from_robot(actions), np.asarray(state, np.float32))
        return normalize(actions, self.assets.action_stats, self.assets.norm_mode)

    def physical_actions(
        self, chunks: np.ndarray, observations: Sequence[Observation]
    ) -> np.ndarray:
        """Return normalised chunks float32[B, P, A] in the units of the robot.

        Args:
          observations: B raw observations; relative actions are added to their states.
        """
        states = [np.asarray(observation["state"], np.float32) for observation in observations]
        chunks = unnormalize(chunks, self.assets.action_stats, self.assets.norm_mode)
        return self.assets.adapter.to_robot(chunks, np.stack(states))


def get_field(observation: Observation, field: str) -> Any:
    """Return a field of an observation; raise UserError if it is missing."""
    if field not in observation:
        raise UserError(f"observation has no {field!r}; it has {sorted(observation)}")
    return observation[field]


def get_instruction(observation: Observation) -> str:
    """Return an observation's instruction; raise UserError if it is missing or not text."""
    instruction = get_field(observation, "instruction")
    if not isinstance(instruction, str):
        raise UserError(f"observation instruction is {type(instruction).__name__}, expected text")
    return instruction


def check_image(name: str, image: Any) -> np.ndarray:
    """Return the image as an array; raise UserError if it is not uint8[H, W, 3]."""
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UserError(f"{name} is {image.dtype}{list(image.shape)}, expected uint8[H, W, 3]")
    return image


def _check_sizes(config: VLAConfig, assets: Assets) -> None:
    """Raise UserError if the assets need more room than the model has."""
    limits = {"the tokenizer's vocabulary": (assets.tokenizer.layout.vocab_size, config.vocab_size)}
    spec = assets.action_spec
    if spec is not None:
        for name in ("action_dim", "state_dim"):
            limits[f"action_spec.{name}"] = (spec[name], getattr(config, name))
        if spec["horizon"] != config.horizon:
            raise UserError(
                f"action_spec.horizon is {spec['horizon']}, but the model's chunks have "
                f"{config.horizon} steps"
            )
    for name, (size, limit) in limits.items():
        if size > limit:
            raise UserError(f"{name} is {size}, but the model has room for at most {limit}")
