"""Shares of a stage's streams in its rows, its segments and its loss."""

from __future__ import annotations

import dataclasses

import ml_collections
import numpy as np

from etcvla import schedule
from etcvla.data.plan import Plan, Stream
from etcvla.data.prompts import find_format
from etcvla.data.stage_dataset import ACTION_KIND


@dataclasses.dataclass(frozen=True)
class PlanShares:
    """The shares of E entries: the streams, and the extra segments of each action stream.

    Attributes:
      names: name of each entry: a stream, or "STREAM extra".
      streams: index of each entry's stream in the plan.
      is_action: whether the entry trains actions; the others train answers.
      rows: float64[steps, E], scheduled shares of the rows. Extra segments have none.
      segments: float64[steps, E], shares of the segments if all extra segments fit.
      loss: float64[steps, E], shares of the coefficients of the entries' mean losses.
    """

    names: tuple[str, ...]
    streams: tuple[int, ...]
    is_action: np.ndarray
    rows: np.ndarray
    segments: np.ndarray
    loss: np.ndarray


def plan_shares(config: ml_collections.ConfigDict, plan: Plan) -> PlanShares:
    """Compute the shares of a stage's plan.

    A coefficient contains `loss.text` for answers, and for actions the larger of `loss.flow` and
    `loss.fast`.
    """
    names = []
    streams = []
    is_extra = []
    for i, stream in enumerate(plan.streams):
        names.append(stream.name)
        streams.append(i)
        is_extra.append(False)
        if stream.kind == ACTION_KIND and stream.extra_segments:
            names.append(f"{stream.name} extra")
            streams.append(i)
            is_extra.append(True)
    extra = np.array(is_extra)
    kinds = np.array([plan.streams[i].kind for i in streams])
    is_action = (kinds == ACTION_KIND) & ~extra

    row_shares = plan.row_shares[:, streams]
    segments = row_shares * _segments_per_row(config, plan.streams, streams, extra)
    if config.loss.form == "share":
        extra_weights = np.array([plan.streams[i].extra_weight for i in streams])
        loss = plan.coefficients[:, streams] * np.where(extra, extra_weights, 1)
    elif config.loss.form == "objectives":
        loss = np.zeros_like(segments)
        for group in (is_action, ~is_action):
            loss[:, group] = _divide(segments[:, group])
    else:
        loss = row_shares * ~extra
    loss = loss * _loss_weights(config, plan.steps, is_action)
    return PlanShares(
        names=tuple(names),
        streams=tuple(streams),
        is_action=is_action,
        rows=row_shares * ~extra,
        segments=_divide(segments),
        loss=_divide(loss),
    )


def _segments_per_row(
    config: ml_collections.ConfigDict,
    streams: tuple[Stream, ...],
    indices: list[int],
    extra: np.ndarray,
) -> np.ndarray:
    """Return the number of segments of each entry in a row of its stream, int64[E]."""
    counts = []
    for i, is_extra in zip(indices, extra, strict=True):
        stream = streams[i]
        if is_extra:
            counts.append(stream.extra_segments)
        elif stream.kind == ACTION_KIND:
            has_subtask = bool(find_format(config.data.prompt).subtask)
            counts.append(config.data.actions_per_row + has_subtask)
        else:
            counts.append(1 + stream.extra_segments)
    return np.array(counts)


def _loss_weights(
    config: ml_collections.ConfigDict, steps: int, is_action: np.ndarray
) -> np.ndarray:
    """Return the loss weight of each entry by step, float64[steps, E]."""
    progress = np.arange(steps) / max(steps - 1, 1)
    text = schedule.value_at(config.loss.text, progress, np)
    fast = schedule.value_at(config.loss.fast, progress, np)
    flow = schedule.value_at(config.loss.flow, progress, np)
    return np.where(is_action, np.maximum(fast, flow)[:, None], text[:, None])


def _divide(values: np.ndarray) -> np.ndarray:
    """Divide values [steps, E] by their sum at each step; zeros stay zeros."""
    total = values.sum(axis=1, keepdims=True)
    return values / np.where(total > 0, total, 1)
