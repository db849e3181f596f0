"""Format the plan of a stage as a table."""

from __future__ import annotations

from collections.abc import Mapping

import ml_collections
import numpy as np

from etcvla.data.plan import Plan
from etcvla.train.plan_shares import PlanShares, plan_shares
from etcvla.train.stage import missing_paths

_ROW = "  {:<30}{:<10}{:>15}{:>15}{:>15}{:>11}{:>9}{:>8}"


def plan_table(
    config: ml_collections.ConfigDict, plan: Plan, sizes: Mapping[str, int] | None = None
) -> str:
    """Return a table of what the stage draws from each stream, and what it lacks.

    Shares are those of the first and the last step.

    Args:
      sizes: stream name -> number of frames that it may draw from. The table shows "?" for the
        frames and epochs of a stream without an entry.
    """
    sizes = sizes or {}
    source = config.init_from or "random parameters"
    lines = [
        f"{config.stage}:{config.variant}  {plan.steps:,} steps x {plan.batch_size} rows, "
        f"{config.data.text_len} text tokens a row, from {source}",
        _ROW.format(
            "stream",
            "dataset",
            "% of rows",
            "% of segments",
            "% of loss",
            "rows",
            "frames",
            "epochs",
        ),
    ]
    shares = plan_shares(config, plan)
    drawn = plan.counts.sum(axis=0)
    for entry, index in enumerate(shares.streams):
        stream = plan.streams[index]
        cells = ["", "", ""]
        if shares.names[entry] == stream.name:
            frames = sizes.get(stream.name)
            epochs = f"{drawn[index] / frames:.2f}" if frames else "?"
            cells = [f"{drawn[index]:,}", frames or "?", epochs]
        share_cells = _share_cells(shares, np.array([entry]))
        lines.append(_ROW.format(shares.names[entry], stream.dataset, *share_cells, *cells))
    for name, group in (("all answers", ~shares.is_action), ("all actions", shares.is_action)):
        share_cells = _share_cells(shares, np.flatnonzero(group))
        lines.append(_ROW.format(name, "", *share_cells, "", "", ""))
    tokens = plan.steps * plan.batch_size * config.data.text_len
    lines.append(f"  total: {plan.counts.sum():,} rows, at most {tokens:,} text tokens")
    for field, path in missing_paths(config).items():
        lines.append(f"  missing: {field} = {path}")
    return "\n".join(lines)


def _share_cells(shares: PlanShares, entries: np.ndarray) -> list[str]:
    """Return the entries' shares of rows, segments and loss as "first > last", in percent."""
    cells = []
    for values in (shares.rows, shares.segments, shares.loss):
        total = 100 * values[:, entries].sum(axis=1)
        cells.append(f"{total[0]:.1f} > {total[-1]:.1f}")
    return cells
