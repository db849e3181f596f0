"""The interface of a dataset of episodes; a subclass defines how steps are read.

Axes: E episodes, N frames, T steps of one episode, P steps of a window.
"""

from __future__ import annotations

import abc
import difflib
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from etcvla.data.cache import IndexCache
from etcvla.data.rlds_layout import Feature
from etcvla.data.storage import AnyPath
from etcvla.errors import UserError

# The widest vector whose column is cached: states and actions, not embeddings or depth images.
MAX_CACHED_WIDTH = 128
# An image that is not decoded yet. The call returns it, decoded into the buffer uint8[H, W, 3] that
# it is given where possible, or raises a RecordError if the image is damaged.
LazyImage = Callable[[np.ndarray | None], np.ndarray]


class Episodes(abc.ABC):
    """A dataset of episodes whose frames are numbered through all episodes.

    A subclass sets the attributes (calling `set_lengths`) and defines the abstract methods.

    Attributes:
      directory: folder of the dataset.
      split: name of the split.
      damaged: "raise" or "skip": what happens at data that cannot be used.
      whole_records: reading a frame reads its whole episode.
      features: step features by name, without the leading "steps/".
      lengths: int64[E], steps of each episode.
      starts: int64[E + 1], first frame of each episode, then the number of frames.
      num_episodes, num_frames: the totals.
      cache: where columns are kept.
    """

    directory: AnyPath
    split: str
    damaged: str
    whole_records: bool
    features: Mapping[str, Feature]
    lengths: np.ndarray
    starts: np.ndarray
    num_episodes: int
    num_frames: int
    cache: IndexCache

    @abc.abstractmethod
    def steps(
        self,
        episode: int,
        start: int,
        stop: int,
        names: Sequence[str],
        *,
        lazy_images: bool = False,
    ) -> dict[str, np.ndarray | list]:
        """Read features of the steps start .. stop - 1 of an episode.

        Args:
          names: features to read.
          lazy_images: return a `LazyImage` for each image.

        Returns: by name, dtype[T, ...] for a tensor that is not a list, else a list of T values.
        """

    @abc.abstractmethod
    def metadata(self, episode: int) -> dict[str, Any]:
        """Return all features of an episode as a whole, by name without "episode_metadata/"."""

    @abc.abstractmethod
    def skip(self, reason: str, problem: Exception | str) -> None:
        """Count data that is left out because it is damaged; log the first of each reason."""

    @abc.abstractmethod
    def where(self, episode: int) -> tuple[AnyPath, int, int]:
        """Return (file, record number in it, position in it) of an episode."""

    def set_lengths(self, lengths: np.ndarray) -> None:
        """Set the attributes that follow from the episodes' lengths int64[E]."""
        self.lengths = lengths
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        self.num_episodes = len(lengths)
        self.num_frames = int(self.starts[-1])
        self._columns: dict[str, np.ndarray | None] = {}

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({str(self.directory)!r}, {self.split!r}): "
            f"{self.num_episodes:,} episodes, {self.num_frames:,} frames"
        )

    def locate(self, frame: int) -> tuple[int, int]:
        """Return (episode, step) of a frame. Raises IndexError outside 0 .. num_frames - 1."""
        episodes, steps = self.locate_all([frame])
        return int(episodes[0]), int(steps[0])

    def locate_all(self, frames: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the episodes and steps of frames, int64[N] each; errors as of `locate`."""
        if len(frames) and not 0 <= min(frames) <= max(frames) < self.num_frames:
            outside = next(frame for frame in frames if not 0 <= frame < self.num_frames)
            raise IndexError(f"frame {outside} of {self!r}")
        episodes = self.starts.searchsorted(frames, side="right") - 1
        return episodes, np.asarray(frames, np.int64) - self.starts[episodes]

    def feature(self, name: str) -> Feature:
        """Return a step feature. Raises UserError with the closest names if there is none."""
        if name not in self.features:
            close = difflib.get_close_matches(name, self.features, 3, 0.5)
            hint = f"it has {', '.join(self.features)}"
            if close:
                hint = f"did you mean {' or '.join(close)}?"
            raise UserError(f"{self.directory} has no step feature {name!r}; {hint}")
        return self.features[name]

    def frame(self, frame: int, names: Sequence[str]) -> dict[str, Any]:
        """Read features of one frame.

        Returns: by name, images uint8[H, W, 3], texts str, tensors dtype[shape], and a list (or
        an array) for a ragged feature.
        """
        (values,) = self.frames([frame], names)
        return {name: values[name] for name in names}

    def frames(
        self,
        frames: Sequence[int],
        names: Sequence[str],
        *,
        lazy_images: bool = False,
    ) -> list[dict[str, Any]]:
        """Read features of several frames, faster than by one call of `frame` each.

        Args:
          lazy_images: return a `LazyImage` for each image.
        """
        columns, other_names = self._cached_columns(names)
        episodes, steps = self.locate_all(frames)
        results = []
        for frame, episode, step in zip(frames, episodes.tolist(), steps.tolist(), strict=True):
            values = {name: column[frame] for name, column in columns.items()}
            if other_names:
                read = self.steps(episode, step, step + 1, other_names, lazy_images=lazy_images)
                values |= {name: step_values[0] for name, step_values in read.items()}
            results.append(values)
        return results

    def window(self, frame: int, name: str, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a tensor feature at `horizon` consecutive steps, flattened to vectors.

        Returns: float32[P, A], the episode's last value repeated past its end, and bool[P], False
        past the episode's end.
        """
        chunks, inside = self.windows([frame], name, horizon)
        return chunks[0], inside[0]

    def windows(
        self, frames: Sequence[int], name: str, horizon: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the windows (see `window`) of N frames: float32[N, P, A] and bool[N, P]."""
        feature = self.feature(name)
        if not feature.is_tensor:
            raise UserError(
                f"{name} of {self.directory} is {describe_kind(feature)}: a window needs a tensor"
            )
        episodes, steps = self.locate_all(frames)
        steps_left = (self.lengths[episodes] - steps)[:, None]
        offsets = np.arange(horizon)
        inside = offsets < steps_left
        offsets = np.minimum(offsets, steps_left - 1)  # [N, P]
        column = self.cached_column(name)
        if column is not None:
            chunks = column[np.asarray(frames)[:, None] + offsets]
        else:
            chunks = []
            for episode, step, row in zip(episodes.tolist(), steps.tolist(), offsets, strict=True):
                stop = step + int(row[-1]) + 1
                chunks.append(self.steps(episode, step, stop, [name])[name][row])
        chunks = np.asarray(chunks, np.float32)
        return chunks.reshape(len(frames), horizon, -1), inside

    def column(self, name: str) -> np.ndarray | list:
        """Read a feature of all frames.

        Returns: dtype[num_frames, ...] for tensors, a list of texts, or a list per frame for
        ragged features. A vector is a read-only memory-mapped array.

        Raises UserError for images, which do not fit in memory.
        """
        feature = self.feature(name)
        if feature.kind == "image":
            raise UserError(
                f"{name} of {self.directory} is {describe_kind(feature)}: read it by frame"
            )
        column = self.cached_column(name)
        if column is not None:
            return column
        values = []
        for episode, length in enumerate(self.lengths.tolist()):
            values.append(self.steps(episode, 0, length, [name])[name])
        if feature.is_tensor:
            return self._cache_column(name, np.concatenate(values))
        values = list(itertools.chain.from_iterable(values))
        if feature.kind == "text" and not feature.ragged:
            values = list(map(sys.intern, values))  # instructions repeat at every step
        return values

    def cached_column(self, name: str) -> np.ndarray | None:
        """Return the column of a vector (or number) if it was read and cached before, else None."""
        if name not in self._columns:
            cached = self.cache.load(name) if is_vector(self.feature(name)) else None
            self._columns[name] = cached[1][0] if cached else None
        return self._columns[name]

    def _cached_columns(self, names: Sequence[str]) -> tuple[dict[str, np.ndarray], list[str]]:
        """Return the cached columns among `names`, and the names that must be read."""
        columns = {}
        other_names = []
        for name in names:
            column = self.cached_column(name)
            if column is None:
                other_names.append(name)
            else:
                columns[name] = column
        return columns, other_names

    def _cache_column(self, name: str, column: np.ndarray) -> np.ndarray:
        """Cache a column if it is a vector's. Returns: the column, read-only."""
        if is_vector(self.feature(name)):
            self.cache.save(name, ({}, [column]))
            cached = self.cache.load(name)
            if cached:
                column = cached[1][0]
            self._columns[name] = column
        column.flags.writeable = False
        return column

    def may_start(self) -> np.ndarray:
        """Return bool[num_frames]: whether a chunk of actions may begin at the frame."""
        return np.ones(self.num_frames, bool)

    def has_camera(self, frame: int, name: str) -> bool:
        """Return whether a camera (without "observation/") has an image at a frame."""
        return True


def is_vector(feature: Feature) -> bool:
    """Return whether a feature's values are numbers or vectors small enough to be cached."""
    return feature.is_tensor and 0 < feature.width <= MAX_CACHED_WIDTH


def describe_kind(feature: Feature) -> str:
    """Return a feature's kind in words."""
    return f"{'a ragged' if feature.ragged else 'one'} {feature.kind} per step"
