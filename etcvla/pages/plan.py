"""Picture of a stage's plan: the shares of its streams."""

from __future__ import annotations

import ml_collections
import numpy as np
from etils import epath

from etcvla.data.plan import Plan
from etcvla.train.plan_shares import plan_shares


def plot_plan(config: ml_collections.ConfigDict, plan: Plan, path: epath.PathLike) -> None:
    """Write a PNG of the shares over the steps and the drawn rows' distance from the schedule.

    One panel each for the shares of the rows, of the segments and of the loss.
    """
    from matplotlib import colormaps  # imported here because the import takes a second
    from matplotlib.figure import Figure

    shares = plan_shares(config, plan)
    figure = Figure(figsize=(9, 9), layout="constrained")
    *panels, bottom = figure.subplots(4, 1, sharex=True, height_ratios=(3, 3, 3, 1))
    for panel, name in zip(panels, ("rows", "segments", "loss"), strict=True):
        values = getattr(shares, name)
        panel.stackplot(
            np.arange(plan.steps), values.T, labels=shares.names, colors=colormaps["tab20"].colors
        )
        panel.set(ylabel=f"share of the {name}", ylim=(0, 1), xlim=(0, max(plan.steps - 1, 1)))
    panels[0].set_title(f"{config.stage}:{config.variant}")
    panels[1].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small", reverse=True)
    drawn_rows = np.cumsum(plan.counts, axis=0)
    scheduled_rows = plan.batch_size * np.cumsum(plan.row_shares, axis=0)
    distance = np.abs(drawn_rows - scheduled_rows).max(axis=1)
    # A long plan is drawn in 300 intervals, each with its largest distance: one value for each
    # step would fill the chart.
    starts = np.unique(np.linspace(0, plan.steps, 300).astype(int))[:-1]
    largest = np.maximum.reduceat(distance, starts)
    bottom.fill_between(starts, largest, step="post", color="0.45")
    bottom.set(ylabel="largest error\nof the rows", xlabel="step", ylim=(0, 1.05))
    figure.savefig(epath.Path(path), dpi=120)
