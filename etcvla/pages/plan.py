"""Picture of a stage's plan: the scheduled shares of its streams."""

from __future__ import annotations

import numpy as np
from etils import epath

from etcvla.data.plan import Plan


def plot_plan(plan: Plan, path: epath.PathLike, title: str) -> None:
    """Write a PNG of the scheduled shares over the steps."""
    from matplotlib.figure import Figure  # imported here because the import takes a second

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    labels = [stream.name for stream in plan.streams]
    axes.stackplot(np.arange(plan.steps), plan.weights.T, labels=labels, alpha=0.85)
    axes.set(title=title, xlabel="step", ylabel="share of the rows", ylim=(0, 1))
    axes.set_xlim(0, max(plan.steps - 1, 1))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small", reverse=True)
    figure.savefig(epath.Path(path), dpi=120)
