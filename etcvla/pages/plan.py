"""Picture of a stage's plan: the scheduled shares of its streams."""

from __future__ import annotations

import numpy as np
from etils import epath

from etcvla.data.plan import Plan


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
