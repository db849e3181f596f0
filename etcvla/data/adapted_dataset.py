"""The view of a dataset by an adapter."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from etcvla.data.adapters import (
    ACTION,
    INSTRUCTION,
    STATE,
    STEP_FILTERS,
    Adapter,
    find_adapter,
)
from etcvla.data.cache import Entry
from etcvla.data.episodes import NO_BUFFERS, Episodes, PendingImages
from etcvla.data.rlds import RLDSDataset
from etcvla.data.rlds_layout import Feature
from etcvla.errors import UserError
from etcvla.names import lookup


class AdaptedDataset(Episodes):
    """A dataset as an adapter reads it.

    Features that the adapter does not name (annotation, ETC) keep their names.

    Raises UserError if the dataset lacks a feature that the adapter names, or no step is left.
    """

    def __init__(self, dataset: RLDSDataset, adapter: Adapter):
        self.dataset = dataset
        self.adapter = adapter
        self.directory = dataset.directory
        self.split = dataset.split
        self.damaged = dataset.damaged
        self.whole_records = dataset.whole_records
        self._stored_names = {f"observation/{name}": path for name, path in adapter.cameras.items()}
        self.features = self._make_features()
        self.cache = dataset.cache.below(adapter.digest)
        # The episodes kept and their lengths, int64[E]; of each frame its step in the stored
        # episode, int64[N], and whether a chunk may begin at it, bool[N].
        _, (self._episodes, lengths, self._steps, self._may_start) = self.cache.get(
            "steps", self._filter
        )
        self.set_lengths(lengths)

    def __reduce__(self):
        return AdaptedDataset, (self.dataset, self.adapter)

    def _make_features(self) -> dict[str, Feature]:
        adapter = self.adapter
        adapted = {}
        for name, stored_name in self._stored_names.items():
            adapted[name] = dataclasses.replace(self._stored_feature(stored_name), name=name)
        adapted[STATE] = self._vector_feature(STATE, adapter.state)
        adapted[ACTION] = self._vector_feature(ACTION, adapter.action)
        instruction = self._stored_feature(adapter.instruction[0])
        adapted[INSTRUCTION] = dataclasses.replace(instruction, name=INSTRUCTION)
        replaced = {
            *self._stored_names.values(),
            *adapter.state,
            *adapter.action,
            *adapter.instruction,
        }
        features = {}
        for name, feature in self.dataset.features.items():
            is_other_camera = bool(adapter.cameras) and feature.kind == "image"
            if name not in replaced and not is_other_camera:
                features[name] = feature
        return features | adapted

    def _vector_feature(self, name: str, stored_names: Sequence[str]) -> Feature:
        """Return the feature of stored features that are concatenated to a vector."""
        stored = [self._stored_feature(stored_name) for stored_name in stored_names]
        return dataclasses.replace(
            stored[0],
            name=name,
            shape=(sum(feature.width for feature in stored),),
            kind="tensor",
            dtype=np.dtype(np.float32),
            doc="; ".join(feature.doc for feature in stored if feature.doc),
        )

    def _stored_feature(self, name: str) -> Feature:
        try:
            return self.dataset.feature(name)
        except UserError as error:
            raise UserError(f"the dataset's adapter does not fit: {error}") from error

    def _filter(self) -> Entry:
        """Select episodes and steps. Returns: the arrays that `__init__` names."""
        adapter = self.adapter
        drop = lookup(STEP_FILTERS, adapter.step_filter, "step_filter of an adapter")
        episodes = []
        steps = []
        may_start = []
        for episode, length in enumerate(self.dataset.lengths.tolist()):
            actions = self._vector(adapter.action, episode, 0, length)
            episode_steps = np.flatnonzero(~drop(actions, adapter.motion_dims))
            if len(episode_steps) and self._keeps(episode):
                episodes.append(episode)
                steps.append(episode_steps)
                is_idle = adapter.is_idle(adapter.from_robot(actions))
                may_start.append(~is_idle[episode_steps])
        if not episodes:
            raise UserError(
                f"{self.directory}, split {self.split}: the adapter's filters leave no steps; "
                "use another adapter or split"
            )
        lengths = [len(episode_steps) for episode_steps in steps]
        arrays = [
            np.array(episodes),
            np.array(lengths),
            np.concatenate(steps),
            np.concatenate(may_start),
        ]
        return {}, arrays

    def _keeps(self, episode: int) -> bool:
        """Return whether the episode filter keeps an episode."""
        if self.adapter.episode_filter is None:
            return True
        name, pattern = self.adapter.episode_filter
        metadata = self.dataset.metadata(episode)
        if name not in metadata:
            raise UserError(
                f"{self.directory} has no episode_metadata/{name}, by which its adapter selects "
                "episodes; use another adapter"
            )
        return re.fullmatch(pattern, str(metadata[name])) is not None

    def _vector(self, names: Sequence[str], episode: int, start: int, stop: int) -> np.ndarray:
        """Read stored features and concatenate them, float32[T, A]."""
        values = self.dataset.steps(episode, start, stop, names)
        columns = [values[name].reshape(stop - start, -1) for name in names]
        return np.concatenate(columns, axis=1).astype(np.float32)

    def steps(
        self,
        episode: int,
        start: int,
        stop: int,
        names: Sequence[str],
        buffers: Mapping[str, np.ndarray] = NO_BUFFERS,
        pending: PendingImages | None = None,
    ) -> dict[str, np.ndarray | list]:
        """Read steps; see `Episodes.steps`. Actions are not relative yet: only a chunk's are."""
        first_frame = int(self.starts[episode])
        kept = self._steps[first_frame + start : first_frame + stop]
        stored_episode = int(self._episodes[episode])
        first = int(kept[0])
        last = int(kept[-1]) + 1
        kept = kept - first  # rows of what is read

        stored_names = []
        for name in names:
            if name not in (STATE, ACTION, INSTRUCTION):
                stored_names.append(self._stored_names.get(name, name))
        if INSTRUCTION in names:
            stored_names += self.adapter.instruction
        stored_buffers = {}
        if last - first == len(kept):  # without dropped steps, images are read into their buffers
            for name, buffer in buffers.items():
                if _camera(name) not in self.adapter.rotated_cameras:
                    stored_buffers[self._stored_names.get(name, name)] = buffer
        stored = self.dataset.steps(
            stored_episode, first, last, stored_names, stored_buffers, pending
        )

        values = {}
        for name in names:
            if name == STATE:
                values[name] = self._vector(self.adapter.state, stored_episode, first, last)[kept]
            elif name == ACTION:
                values[name] = self._actions(stored_episode, first, last)[kept]
            elif name == INSTRUCTION:
                values[name] = [self._instruction(stored, i) for i in kept]
            else:
                stored_values = stored[self._stored_names.get(name, name)]
                values[name] = self._select_steps(name, stored_values, kept)
        return values

    def _instruction(self, stored: Mapping[str, list], i: int) -> str:
        """Return the first instruction of step i that is not empty."""
        for name in self.adapter.instruction:
            if stored[name][i]:
                return stored[name][i]
        return ""

    def _actions(self, episode: int, first: int, last: int) -> np.ndarray:
        """Read the actions first .. last - 1 of a stored episode, float32[T, A]."""
        names = self.adapter.action
        if not self.adapter.gripper_command_dims:
            return self.adapter.from_robot(self._vector(names, episode, first, last))
        # A gripper state follows from all commands before it.
        length = int(self.dataset.lengths[episode])
        whole_episode = self._vector(names, episode, 0, length)
        return self.adapter.from_robot(whole_episode)[first:last]

    def _select_steps(
        self, name: str, values: np.ndarray | list, kept: np.ndarray
    ) -> np.ndarray | list:
        """Return the values of the steps that are kept, images upright."""
        if isinstance(values, np.ndarray):
            return values[kept]
        return [self.adapter.rotate(_camera(name), values[i]) for i in kept]

    def windows(
        self, frames: Sequence[int], name: str, horizon: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return windows; see `Episodes.windows`. Actions are relative in `relative_dims`."""
        chunks, inside = super().windows(frames, name, horizon)
        if name == ACTION and self.adapter.relative_dims:
            states = [self.frame(frame, [STATE])[STATE] for frame in frames]
            chunks = self.adapter.to_relative(chunks, np.stack(states))
        return chunks, inside

    def may_start(self) -> np.ndarray:
        """Return bool[num_frames]: False where the robot is idle."""
        return self._may_start

    def has_camera(self, frame: int, name: str) -> bool:
        """Return whether a camera has an image at a frame, by its flag in episode_metadata."""
        flag = self.adapter.camera_flags.get(name)
        if flag is None:
            return True
        episode, _ = self.locate(frame)
        return bool(self.metadata(episode)[flag])

    def metadata(self, episode: int) -> dict[str, Any]:
        """Return an episode's metadata, with the adapter's "rate" if it has one."""
        metadata = self.dataset.metadata(int(self._episodes[episode]))
        if self.adapter.rate:
            metadata["rate"] = self.adapter.rate
        return metadata

    def skip(self, reason: str, problem: Exception | str) -> None:
        """Count data that is left out; see `RLDSDataset.skip`."""
        self.dataset.skip(reason, problem)

    def where(self, episode: int) -> tuple[Path, int, int]:
        """Return (file, record number in it, position in it) of an episode."""
        return self.dataset.where(int(self._episodes[episode]))


def _camera(feature_name: str) -> str:
    return feature_name.removeprefix("observation/")


def open_dataset(path: str, split: str = "train", *, adapter: str = "own", **options) -> Episodes:
    """Open a dataset and adapt it.

    Args:
      adapter: see `find_adapter`.
      options: of `RLDSDataset`.

    Raises UserError as `RLDSDataset`, `find_adapter` and `AdaptedDataset` do.
    """
    found = find_adapter(adapter)
    dataset = RLDSDataset(path, split, **options)
    if found.digest == Adapter().digest:
        return dataset
    return AdaptedDataset(dataset, found)
