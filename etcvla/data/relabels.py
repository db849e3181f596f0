"""Relabels: other instructions for a frame, and the expert's actions for each of them.

A dataset may have the step features in `FEATURES`, for N instructions: texts [N], actions
float32[N, P, A] from this step on, and int32[N] how many of them are before the episode's end. The
actions are in the units of the dataset's adapted actions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from etcvla.data.episodes import Episodes
from etcvla.errors import UserError

FEATURES = ("relabels/instruction", "relabels/actions", "relabels/valid")


class ActionChunk(NamedTuple):
    """An instruction and the next P actions that follow it."""

    instruction: str
    actions: np.ndarray  # float32[P, A], the last action repeated past the episode's end
    inside: np.ndarray  # bool[P], False past the episode's end


def has_relabels(dataset: Episodes, horizon: int) -> bool:
    """Return whether a dataset has relabels.

    Raises UserError if its relabels have fewer actions than `horizon`.
    """
    if FEATURES[0] not in dataset.features:
        return False
    stored = dataset.feature("relabels/actions").shape[-2]
    if stored < horizon:
        raise UserError(
            f"{dataset.directory}: relabels have {stored} actions, but model.horizon is {horizon}; "
            f"set model.horizon={stored} or build the dataset with longer relabels"
        )
    return True


def draw_relabels(
    frame: Mapping[str, Any], count: int, horizon: int, rng: np.random.Generator
) -> list[ActionChunk]:
    """Draw up to `count` different relabels of a frame, of those with actions left.

    Args:
      frame: a frame's values of `FEATURES`.
      count: number of relabels.
      horizon: P; longer stored chunks are cut.
      rng: random generator.
    """
    instructions, actions, valid = (frame[name] for name in FEATURES)
    usable = np.flatnonzero(valid > 0)
    steps = np.arange(horizon)
    chunks = []
    for i in rng.choice(usable, min(count, len(usable)), replace=False).tolist():
        chunk = actions[i][np.minimum(steps, valid[i] - 1)]
        chunks.append(ActionChunk(instructions[i], chunk, steps < valid[i]))
    return chunks
