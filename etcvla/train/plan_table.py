"""The plan of a stage as a table."""

from __future__ import annotations

from collections.abc import Mapping

import ml_collections

from etcvla.data.plan import Plan
from etcvla.train.stage import missing_paths


def plan_table(
    config: ml_collections.ConfigDict, plan: Plan, sizes: Mapping[str, int] | None = None
) -> str:
    """What the stage will draw, as text.

    Args:
      sizes: stream name -> frames that it may draw from, for the epochs; a stream that is not in it shows "?".
    """
    sizes = sizes or {}
    lines = [
        f"{config.stage}:{config.variant}  {plan.steps:,} steps x {plan.batch_size} rows, "
        f"{config.data.text_len} text tokens a row, from {config.init_from or 'random parameters'}",
        f"  {'stream':<32}{'dataset':<12}{'first':>7}{'last':>7}{'rows':>11}{'frames':>10}{'epochs':>8}"
        f"{'extra_segments':>8}",
    ]
    for i, stream in enumerate(plan.streams):
        rows = int(plan.counts[:, i].sum())
        size = sizes.get(stream.name)
        lines.append(
            f"  {stream.name:<32}{stream.dataset:<12}{plan.weights[0, i]:>7.1%}{plan.weights[-1, i]:>7.1%}"
            f"{rows:>11,}{size if size else '?':>10}{f'{rows / size:.2f}' if size else '?':>8}"
            f"{stream.extra_segments:>8}"
        )
    tokens = plan.steps * plan.batch_size * config.data.text_len
    lines.append(f"  in all {plan.counts.sum():,} rows, {tokens:,} text tokens at most")
    lines += [f"  missing: {field} = {path}" for field, path in missing_paths(config).items()]
    return "\n".join(lines)
