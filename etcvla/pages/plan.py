"""Picture of a stage's plan: the scheduled shares of its streams."""

from __future__ import annotations

import numpy as np
from etils import epath

from etcvla.data.plan import Plan


def plot_plan(plan: Plan, path: epath.PathLike, title: str) -> None:
    """Write a PNG of the scheduled shares over the steps and the drawn rows' distance from them."""
    from matplotlib.figure import Figure  # imported here because the import takes a second

    drawn_rows = np.cumsum(plan.counts, axis=0)
    scheduled_rows = plan.batch_size * np.cumsum(plan.row_shares, axis=0)
    distance = np.abs(drawn_rows - scheduled_rows).max(axis=1)
    figure = Figure(figsize=(9, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    labels = [stream.name for stream in plan.streams]
    top.stackplot(np.arange(plan.steps), plan.row_shares.T, labels=labels, alpha=0.85)
    top.set(title=title, ylabel="share of the rows", ylim=(0, 1), xlim=(0, max(plan.steps - 1, 1)))
    top.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small", reverse=True)
    # A long plan is drawn in 300 intervals, each with its largest distance: one value for each
    # step would fill the chart.
    starts = np.unique(np.linspace(0, plan.steps, 300).astype(int))[:-1]
    largest = np.maximum.reduceat(distance, starts)
    bottom.fill_between(starts, largest, step="post", color="0.45")
    bottom.set(ylabel="largest distance\nfrom schedule, rows", xlabel="step", ylim=(0, 1.05))
    figure.savefig(epath.Path(path), dpi=120)
