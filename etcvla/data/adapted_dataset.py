"""The view of a dataset by an adapter."""

from __future__ import annotations

import dataclasses
import itertools
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
from etcvla.data.episodes import Episodes
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
        # The stored features of each adapted feature; several are concatenated, and of texts the
        # first that is not empty is used.
        self._stored_names = {
            f"observation/{name}": (path,) for name, path in adapter.cameras.items()
        }
        self._stored_names |= {
            STATE: adapter.state,
            ACTION: adapter.action,
            INSTRUCTION: adapter.instruction,
        }
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
        replaced = set(itertools.chain.from_iterable(self._stored_names.values()))
        features = {}
        for name, feature in self.dataset.features.items():
            is_other_camera = bool(self.adapter.cameras) and feature.kind == "image"
            if name not in replaced and not is_other_camera:
                features[name] = feature
        for name, stored_names in self._stored_names.items():
            try:
                stored = [self.dataset.feature(stored_name) for stored_name in stored_names]
            except UserError as error:
                raise UserError(f"the dataset's adapter does not fit: {error}") from error
            features[name] = dataclasses.replace(stored[0], name=name)
            if name in (STATE, ACTION):
                features[name] = dataclasses.replace(
                    features[name],
                    shape=(sum(feature.width for feature in stored),),
                    kind="tensor",
                    dtype=np.dtype(np.float32),
                    doc="; ".join(feature.doc for feature in stored if feature.doc),
                )
        return features

    def _filter(self) -> Entry:
        """Select episodes and steps. Returns: the arrays that `__init__` names."""
        adapter = self.adapter
        drop = lookup(STEP_FILTERS, adapter.step_filter, "step_filter of an adapter")
        kept = {}  # the steps that are kept of each stored episode that is kept
        may_start = []
        for episode, length in enumerate(self.dataset.lengths.tolist()):
            stored = self.dataset.steps(episode, 0, length, adapter.action)
            actions = _concatenate(stored, adapter.action)
            steps = np.flatnonzero(~drop(actions, adapter.motion_dims))
            if len(steps) and self._keeps(episode):
                kept[episode] = steps
                may_start.append(~adapter.is_idle(adapter.from_robot(actions))[steps])
        if not kept:
            raise UserError(
                f"{self.directory}, split {self.split}: the adapter's filters leave no steps; "
                "use another adapter or split"
            )
        episodes = np.array(list(kept))
        lengths = np.array(list(map(len, kept.values())))
        steps = np.concatenate(list(kept.values()))
        return {}, [episodes, lengths, steps, np.concatenate(may_start)]

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

    def steps(
        self,
        episode: int,
        start: int,
        stop: int,
        names: Sequence[str],
        *,
        lazy_images: bool = False,
    ) -> dict[str, np.ndarray | list]:
        """Read steps; see `Episodes.steps`. Actions are not relative yet: only a chunk's are."""
        first_frame = int(self.starts[episode])
        kept = self._steps[first_frame + start : first_frame + stop]
        stored_episode = int(self._episodes[episode])
        first = int(kept[0])
        last = int(kept[-1]) + 1
        kept = kept - first  # rows of what is read

        stored_names: set[str] = set()
        for name in names:
            if name != ACTION:
                stored_names.update(self._stored_names.get(name, (name,)))
        stored = self.dataset.steps(
            stored_episode, first, last, sorted(stored_names), lazy_images=lazy_images
        )
        values = {}
        for name in names:
            sources = self._stored_names.get(name, (name,))
            if name == ACTION:
                values[name] = self._actions(stored_episode, first, last)[kept]
            elif name == STATE:
                values[name] = _concatenate(stored, sources)[kept]
            elif name == INSTRUCTION:
                texts = [stored[source] for source in sources]
                texts = [next(filter(None, step), "") for step in zip(*texts, strict=True)]
                values[name] = [texts[i] for i in kept]
            elif isinstance(stored[sources[0]], np.ndarray):
                values[name] = stored[sources[0]][kept]
            else:
                values[name] = [self._upright(name, stored[sources[0]][i]) for i in kept]
        return values

    def _actions(self, episode: int, first: int, last: int) -> np.ndarray:
        """Read the actions first .. last - 1 of a stored episode, float32[T, A]."""
        start = first
        stop = last
        if self.adapter.gripper_command_dims:  # a state follows from all commands of the episode
            start = 0
            stop = int(self.dataset.lengths[episode])
        stored = self.dataset.steps(episode, start, stop, self.adapter.action)
        actions = _concatenate(stored, self.adapter.action)
        return self.adapter.from_robot(actions)[first - start : last - start]

    def _upright(self, name: str, value: Any) -> Any:
        """Return a value of a step; an image (or `LazyImage`) of a rotated camera upright."""
        camera = name.removeprefix("observation/")
        if camera not in self.adapter.rotated_cameras:
            return value
        if callable(value):
            return lambda buffer: self.adapter.rotate(camera, value(None))
        return self.adapter.rotate(camera, value)

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


def _concatenate(stored: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Return the features of T steps as vectors, float32[T, A]."""
    columns = [stored[name].reshape(len(stored[name]), -1) for name in names]
    return np.concatenate(columns, axis=1).astype(np.float32)


def open_dataset(
    path: str, split: str = "train", *, adapter: str = "own", damaged: str = "raise"
) -> Episodes:
    """Open a dataset and adapt it.

    Args:
      adapter: see `find_adapter`.
      damaged: as of `RLDSDataset`.

    Raises UserError as `RLDSDataset`, `find_adapter` and `AdaptedDataset` do.
    """
    found = find_adapter(adapter)
    dataset = RLDSDataset(path, split, damaged=damaged)
    return dataset if found.digest == Adapter().digest else AdaptedDataset(dataset, found)
