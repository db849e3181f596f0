"""Format the plan of a stage as a table."""

from __future__ import annotations

from collections.abc import Mapping

import ml_collections

from etcvla.data.plan import Plan
from etcvla.train.stage import missing_paths

_ROW = "  {:<32}{:<12}{:>7}{:>7}{:>11}{:>10}{:>8}{:>8}"


def plan_table(
    config: ml_collections.ConfigDict, plan: Plan, sizes: Mapping[str, int] | None = None
) -> str:
    """Return a table of what the stage draws from each stream, and what it lacks.

    Args:
      sizes: stream name -> number of frames that it may draw from. The table shows "?" for the
        frames and epochs of a stream without an entry.
    """
    sizes = sizes or {}
    source = config.init_from or "random parameters"
    lines = [
        f"{config.stage}:{config.variant}  {plan.steps:,} steps x {plan.batch_size} rows, "
        f"{config.data.text_len} text tokens a row, from {source}",
        _ROW.format("stream", "dataset", "first", "last", "rows", "frames", "epochs", "extra"),
    ]
    for i, stream in enumerate(plan.streams):
        rows = int(plan.counts[:, i].sum())
        frames = sizes.get(stream.name)
        lines.append(
            _ROW.format(
                stream.name,
                stream.dataset,
                f"{plan.row_shares[0, i]:.1%}",
                f"{plan.row_shares[-1, i]:.1%}",
                f"{rows:,}",
                frames or "?",
                f"{rows / frames:.2f}" if frames else "?",
                stream.extra_segments,
            )
        )
    tokens = plan.steps * plan.batch_size * config.data.text_len
    lines.append(f"  total: {plan.counts.sum():,} rows, at most {tokens:,} text tokens")
    for field, path in missing_paths(config).items():
        lines.append(f"  missing: {field} = {path}")
    return "\n".join(lines)
