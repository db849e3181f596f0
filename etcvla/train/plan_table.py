"""The plan for people: a table, and a picture."""

from __future__ import annotations

from collections.abc import Mapping

import ml_collections
import numpy as np
from etils import epath

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


def plot_plan(plan: Plan, path: epath.PathLike, title: str) -> None:
    """A PNG: the scheduled shares over the steps, and how far the drawn rows ever are from them."""
    from matplotlib.figure import Figure  # a second's import, for what is drawn when all is done

    drawn = np.cumsum(plan.counts, axis=0)
    scheduled = plan.batch_size * np.cumsum(plan.weights, axis=0)
    figure = Figure(figsize=(9, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    steps = np.arange(plan.steps)
    top.stackplot(steps, plan.weights.T, labels=[s.name for s in plan.streams], alpha=0.85)
    top.set(title=title, ylabel="share of the rows", ylim=(0, 1), xlim=(0, max(plan.steps - 1, 1)))
    top.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small", reverse=True)
    edges = np.unique(np.linspace(0, plan.steps, 300).astype(int))[:-1]
    worst = np.maximum.reduceat(
        np.abs(drawn - scheduled).max(axis=1), edges
    )  # or a long plan is a black bar
    bottom.fill_between(edges, worst, step="post", color="0.45")
    bottom.set(ylabel="largest distance\nfrom schedule, rows", xlabel="step", ylim=(0, 1.05))
    figure.savefig(epath.Path(path), dpi=120)
