"""What every dataset of episodes can do, given how to read some steps of one."""

from __future__ import annotations

import abc
import difflib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from etcvla.data.cache import IndexCache
from etcvla.data.rlds_layout import Feature
from etcvla.data.storage import AnyPath

MAX_WIDTH = (
    128  # numbers a frame of a column that is kept: states and actions, not embeddings and depth
)
PendingImages = list[Callable[[], Any]]
NO_BUFFERS: Mapping = types.MappingProxyType({})


class Episodes(abc.ABC):
    """Frames numbered through episodes; a subclass fills the attributes and defines `steps`.

    Attributes:
      features: step features by name, without the leading "steps/".
      lengths: int64[E] steps of each episode. starts: int64[E + 1] first frame of each episode, and the end.
      damaged: "raise" or "skip", what to do about data that cannot be used.
      whole_records: a frame costs reading its whole episode.
      cache: where columns are kept.
    """

    directory: AnyPath
    split: str
    damaged: str
    whole_records: bool
    features: Mapping[str, Feature]
    lengths: np.ndarray
    starts: np.ndarray
    cache: IndexCache

    @abc.abstractmethod
    def steps(
        self,
        episode: int,
        start: int,
        stop: int,
        names: Sequence[str],
        into: Mapping[str, np.ndarray] = NO_BUFFERS,
        pending: PendingImages | None = None,
    ) -> dict[str, np.ndarray | list]:
        """Steps start .. stop of an episode: dtype[T, ...] of a tensor that is no list, else a list of T values.

        Args:
          into: uint8[T, H, W, 3] by image feature, where its pictures are put if they have that size: they are then
            views of it.
          pending: where the decoding of such pictures is put off to. Whoever calls these functions gets their errors.
        """

    @abc.abstractmethod
    def metadata(self, episode: int) -> dict[str, Any]:
        """All that is said of an episode as a whole."""

    def number(self, lengths: np.ndarray) -> None:
        """Sets what follows from the episodes' lengths."""
        self.lengths = lengths
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        self._columns: dict[str, np.ndarray | None] = {}
        self.num_episodes, self.num_frames = len(lengths), int(self.starts[-1])

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({str(self.directory)!r}, {self.split!r}): {self.num_episodes:,} episodes, "
            f"{self.num_frames:,} frames"
        )

    def locate(self, frame: int) -> tuple[int, int]:
        """(episode, step) of a frame. Raises IndexError outside 0 .. num_frames - 1."""
        episodes, steps = self.locate_all([frame])
        return int(episodes[0]), int(steps[0])

    def locate_all(self, frames: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """`locate` of many: int64[N] each."""
        if len(frames) and not 0 <= min(frames) <= max(frames) < self.num_frames:
            wrong = next(frame for frame in frames if not 0 <= frame < self.num_frames)
            raise IndexError(f"frame {wrong} of {self!r}")
        episodes = self.starts.searchsorted(frames, side="right") - 1
        return episodes, np.asarray(frames, np.int64) - self.starts[episodes]

    def feature(self, name: str) -> Feature:
        """The step feature `name`. Raises KeyError with the closest names if there is none."""
        if name not in self.features:
            close = difflib.get_close_matches(name, self.features, 3, 0.5)
            raise KeyError(
                f"{self.directory} has no step feature {name!r}; "
                + (
                    f"did you mean {' or '.join(close)}?"
                    if close
                    else f"it has {', '.join(self.features)}"
                )
            )
        return self.features[name]

    def frame(
        self,
        frame: int,
        names: Sequence[str],
        into: Mapping[str, np.ndarray] = NO_BUFFERS,
        pending: PendingImages | None = None,
    ) -> dict[str, Any]:
        """One step: images uint8[H, W, 3], texts str, tensors dtype[shape]; a list (or an array) where ragged.

        Args:
          into: uint8[H, W, 3] by image feature, where its picture is put if it has that size: it is then a view of it.
          pending: as of `steps`.
        """
        episode, step = self.locate(frame)
        kept = {name: column for name in names if (column := self.kept(name)) is not None}
        rest = [name for name in names if name not in kept]
        read = (
            self.steps(
                episode,
                step,
                step + 1,
                rest,
                {name: buffer[None] for name, buffer in into.items()},
                pending,
            )
            if rest
            else {}
        )
        return {name: kept[name][frame] if name in kept else read[name][0] for name in names}

    def frames(
        self,
        frames: Sequence[int],
        names: Sequence[str],
        into: Mapping[str, Sequence[np.ndarray]] = NO_BUFFERS,
        pending: Sequence[PendingImages] | None = None,
    ) -> list[dict[str, Any]]:
        """`frame` of many, for less than one after another: `into` has a buffer a frame, `pending` a list a frame."""
        return [
            self.frame(
                frame,
                names,
                {name: buffers[i] for name, buffers in into.items()},
                pending and pending[i],
            )
            for i, frame in enumerate(frames)
        ]

    def window(self, frame: int, name: str, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        """The values of `horizon` steps from `frame` on: float32[P, A], and bool[P], False past the episode's end.

        There the last value is repeated. A is the product of the feature's shape.
        """
        chunks, inside = self.windows([frame], name, horizon)
        return chunks[0], inside[0]

    def windows(
        self, frames: Sequence[int], name: str, horizon: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """`window` of many: float32[N, P, A] and bool[N, P]."""
        feature = self.feature(name)
        if feature.kind != "tensor" or feature.ragged:
            raise ValueError(
                f"{name} of {self.directory} is {kind_of(feature)}: a window needs a tensor"
            )
        episodes, steps = self.locate_all(frames)
        ahead, left = np.arange(horizon), (self.lengths[episodes] - steps)[:, None]
        column, inside = self.kept(name), ahead < left
        if column is None:
            spans = zip(episodes.tolist(), steps.tolist(), inside.sum(axis=1).tolist(), strict=True)
            parts = [
                self.steps(episode, step, step + count, [name])[name].reshape(count, -1)
                for episode, step, count in spans
            ]
            chunks = np.stack([part[np.minimum(ahead, len(part) - 1)] for part in parts])
        else:
            chunks = column[np.asarray(frames)[:, None] + np.minimum(ahead, left - 1)].reshape(
                len(frames), horizon, -1
            )
        return chunks.astype(np.float32), inside

    def column(self, name: str) -> np.ndarray | list:
        """All frames' values: tensors as one dtype[num_frames, ...], texts as a list, ragged features as a list a
        frame. Images do not fit in memory and raise ValueError. Vectors are mapped, and cannot be written."""
        feature = self.feature(name)
        if feature.kind == "image":
            raise ValueError(f"{name} of {self.directory} is {kind_of(feature)}: read it by frame")
        if (column := self.kept(name)) is not None:
            return column
        parts = [
            self.steps(episode, 0, int(self.lengths[episode]), [name])[name]
            for episode in range(self.num_episodes)
        ]
        if feature.kind == "tensor" and not feature.ragged:
            return self._keep(name, np.concatenate(parts))
        values = [value for part in parts for value in part]
        return _share_texts(values) if feature.kind == "text" else values

    def kept(self, name: str) -> np.ndarray | None:
        """The column of a vector (or number) that was read as a whole once, by whomever; else None."""
        if name not in self._columns:
            found = self.cache.load(name) if is_vector(self.feature(name)) else None
            self._columns[name] = found and found[1][0]
        return self._columns[name]

    def _keep(self, name: str, column: np.ndarray) -> np.ndarray:
        if is_vector(self.feature(name)):
            self.cache.save(name, [column])
            found = self.cache.load(name)
            column = self._columns[name] = found[1][0] if found else column
        column.flags.writeable = False
        return column

    @abc.abstractmethod
    def skip(self, reason: str, problem: Exception | str) -> None:
        """Counts one thing that is left out because it is damaged; the first of a kind is logged."""

    @abc.abstractmethod
    def where(self, episode: int) -> tuple[AnyPath, int, int]:
        """(file, record in it, place) of an episode."""

    def may_start(self) -> np.ndarray:
        """bool[num_frames]: where a chunk of actions may begin."""
        return np.ones(self.num_frames, bool)

    def has_camera(self, frame: int, name: str) -> bool:
        """Whether a camera (without "observation/") shows anything at a frame."""
        return True


def is_vector(feature: Feature) -> bool:
    """Whether a feature's values are numbers or short vectors: small enough to be kept as a column."""
    return feature.kind == "tensor" and not feature.ragged and 0 < feature.width <= MAX_WIDTH


def kind_of(feature: Feature) -> str:
    """A feature's kind in words."""
    return f"{'a ragged' if feature.ragged else 'one'} {feature.kind} a step"


def _share_texts(values: Iterable) -> list:
    """The same values with equal strings stored once: instructions and kinds repeat at every step."""
    pool: dict[str, str] = {}

    def share(value):
        return (
            pool.setdefault(value, value) if isinstance(value, str) else [share(v) for v in value]
        )

    return [share(value) for value in values]
