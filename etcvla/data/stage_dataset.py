"""A dataset as a stage uses it: its cameras, its ETC items, and the frames a stream may draw."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from etcvla.data.episodes import Episodes
from etcvla.data.norm_stats import finite_frames
from etcvla.errors import UserError
from etcvla.etc.items import ITEM_FIELDS, Item, rename_words

ACTION_KIND = "action"  # the kind of a stream that draws actions
ANY_KIND = "any"  # the kind of a stream that draws ETC items of all kinds
PHASE = "annotation/phase"  # step feature: index of the current subtask in the episode's "phases"


@dataclasses.dataclass(frozen=True)
class StageDataset:
    """A dataset and the cameras that a stage reads from it.

    Attributes:
      dataset: the episodes.
      cameras: names of C image features without "observation/". ETC items refer to the first
      camera.
      rename: words that are replaced in questions and answers, see `rename_words`.

    Raises UserError if the dataset lacks a camera.
    """

    dataset: Episodes
    cameras: tuple[str, ...]
    rename: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        features = self.dataset.features
        images = [name for name, feature in features.items() if feature.kind == "image"]
        known = [name.removeprefix("observation/") for name in images]
        for name in self.cameras:
            if name not in known:
                raise UserError(f"{self.dataset.directory}: no camera {name!r}; it has {known}")

    def candidates(self, kind: str) -> np.ndarray:
        """Return the frames from which a stream of this kind may draw, as int64[N].

        Args:
          kind: `ACTION_KIND`, `ANY_KIND` or a kind of ETC items.

        Raises UserError if the dataset has no such frames.
        """
        directory = self.dataset.directory
        if kind == ACTION_KIND:
            if "action" not in self.dataset.features:
                raise UserError(f"{directory} has no actions, but an action stream draws from it")
            problem = "no frames from which an action stream may draw"
            can_draw = self.dataset.may_start() & finite_frames(self.dataset)
        else:
            if not self.item_features:
                raise UserError(
                    f"{directory} has no ETC items (feature steps/etc); build it with them, or "
                    f"drop the stream of kind {kind!r}"
                )
            kinds, has_kind = self._kind_table
            problem = f"no items of kind {kind!r}; it has {kinds}"
            columns = [i for i, name in enumerate(kinds) if kind in (ANY_KIND, name)]
            can_draw = has_kind[:, columns].any(axis=1)
        if not can_draw.any():
            raise UserError(f"{directory} has {problem}")
        return np.flatnonzero(can_draw)

    @property
    def known_kinds(self) -> list[str]:
        """The kinds of the dataset's ETC items, sorted."""
        return self._kind_table[0]

    @functools.cached_property
    def _kind_table(self) -> tuple[list[str], np.ndarray]:
        """(kinds of items, bool[num_frames, kinds]: whether a frame has an item of the kind)."""
        if not self.item_features:
            return [], np.zeros((self.dataset.num_frames, 0), bool)
        about, (table,) = self.dataset.cache.get("etc/kind.table", self._make_kind_table)
        return about["kinds"], table

    def _make_kind_table(self) -> tuple[dict, list[np.ndarray]]:
        kinds_by_frame = self.dataset.column("etc/kind")
        kinds = sorted(set().union(*kinds_by_frame))
        table = np.zeros((len(kinds_by_frame), len(kinds)), bool)
        for column, kind in enumerate(kinds):
            table[:, column] = [kind in frame_kinds for frame_kinds in kinds_by_frame]
        return {"kinds": kinds}, [table]

    def items(self, frame: Mapping[str, Any]) -> list[Item]:
        """Return the ETC items of a frame that was read with `item_features`."""
        if "etc/kind" not in frame:
            return []
        columns = [frame[f"etc/{name}"] for name in ITEM_FIELDS]
        items = [Item(*values) for values in zip(*columns, strict=True)]
        if self.rename:
            items = [rename_words(item, self.rename) for item in items]
        return items

    def subtask(self, frame_index: int, frame: Mapping[str, Any]) -> str | None:
        """Return the subtask in progress at a frame that was read with `PHASE`; None if unknown."""
        phase = int(frame[PHASE])
        if phase < 0:
            return None
        episode, _ = self.dataset.locate(frame_index)
        return self.dataset.metadata(episode)["phases"][phase]

    def subtasks(self) -> set[str]:
        """Return the subtasks of all episodes."""
        subtasks = set()
        for episode in range(self.dataset.num_episodes):
            subtasks.update(self.dataset.metadata(episode)["phases"])
        return subtasks

    @property
    def item_features(self) -> list[str]:
        """The step features that hold ETC items; empty if the dataset has none."""
        if "etc/kind" not in self.dataset.features:
            return []
        return [f"etc/{name}" for name in ITEM_FIELDS]
