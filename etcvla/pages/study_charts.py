"""Charts of a study: contrasts, scores by intervention, retention and learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from etcvla.pages import palette
from etcvla.pages.charts import PAGE_WIDTH, STYLE, new_figure, percent_axis, to_svg
from etcvla.pages.results import union

INTERVENTION_COLORS = {
    "right": palette.SCENE_COLORS["source"],
    "no_instruction": palette.MUTED,
    "wrong_instruction": palette.BAD,
    "blank_image": palette.DOUBTFUL,
}
Score = Mapping[str, Any]  # an entry of the list "scores" of summary.json
# panel title -> name of a curve -> (x, value) in the order of x
CurvePanels = Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]


@matplotlib.rc_context(STYLE)
def forest_chart(contrasts: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> Markup:
    """Draw the differences of contrasts with their intervals, and a dot for each seed.

    Args:
      contrasts: entries of the list "contrasts" of summary.json.
      labels: of the contrasts.
    """
    figure = new_figure(PAGE_WIDTH, 1.2 + 0.66 * len(contrasts))
    axes = figure.subplots()
    axes.axvline(0, color=palette.INK, linewidth=1)
    for y, result in enumerate(contrasts):
        color = palette.VERDICT_COLORS[result["verdict"]]
        margin = result["margin"]
        axes.plot([margin, margin], [y - 0.36, y + 0.36], ":", color=palette.INK, linewidth=1.4)
        if result["estimate"] is None:
            axes.text(0, y, "  no results yet", va="center", color=palette.MUTED)
            continue
        differences = list(result["seeds"].values())
        heights = [y + 0.24] * len(differences)
        axes.plot(differences, heights, "o", color=color, mfc="white", markersize=5)
        if result["low"] is not None:
            axes.plot([result["low"], result["high"]], [y, y], color=color, linewidth=2.4)
        axes.plot(result["estimate"], y, "D", color=color, markersize=7)
    axes.set(ylim=(len(contrasts) - 0.4, -0.6), xlabel="difference a − b, percentage points")
    axes.set_yticks(range(len(contrasts)), labels, color=palette.INK)
    axes.grid(False)
    axes.grid(axis="x")
    handles = [_marker(color, "D", name) for name, color in palette.VERDICT_COLORS.items()]
    seed = _marker(palette.MUTED, "o", "one seed")
    seed.set_markerfacecolor("white")
    margin_line = Line2D([], [], linestyle=":", color=palette.INK, label="margin")
    figure.legend(handles=[*handles, seed, margin_line], loc="outside upper right", ncols=5)
    return to_svg(figure, "contrasts")


def _marker(color: str, marker: str, label: str) -> Line2D:
    return Line2D([], [], marker=marker, linestyle="", color=color, label=label)


@matplotlib.rc_context(STYLE)
def control_chart(
    panels: Mapping[str, Mapping[str, Mapping[str, Score]]],
    labels: Mapping[str, str],
    chance: float | None,
) -> Markup:
    """Draw panels of scores with their intervals, a row for each cell.

    Args:
      panels: panel title -> cell -> intervention -> score.
      labels: intervention -> label of the legend.
      chance: value of a dotted line; None for no line.
    """
    cells = union(panels.values())
    figure = new_figure(PAGE_WIDTH, 1.3 + 0.42 * len(cells))
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    shifts = dict(zip(labels, np.linspace(-0.24, 0.24, len(labels)), strict=True))
    for axes, (title, panel) in zip(all_axes, panels.items(), strict=True):
        percent_axis(axes, "x")
        axes.set(title=title, xlim=(-0.02, 1.02), xlabel="touched the named object")
        if chance is not None:
            axes.axvline(chance, linestyle=":", color=palette.INK, linewidth=1.2)
        for cell, by_intervention in panel.items():
            for intervention, score in by_intervention.items():
                y = cells.index(cell) + shifts[intervention]
                color = INTERVENTION_COLORS[intervention]
                if score["low"] is not None:
                    axes.plot([score["low"], score["high"]], [y, y], color=color, linewidth=1.8)
                axes.plot(score["value"], y, "o", color=color, markersize=5)
    all_axes[0].set_yticks(range(len(cells)), cells, color=palette.INK)
    all_axes[0].set_ylim(len(cells) - 0.5, -0.5)
    handles = [_marker(INTERVENTION_COLORS[name], "o", label) for name, label in labels.items()]
    if chance is not None:
        handles.append(Line2D([], [], linestyle=":", color=palette.INK, label="chance"))
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles))
    return to_svg(figure, "scores by intervention")


@matplotlib.rc_context(STYLE)
def curve_chart(
    panels: CurvePanels,
    colors: Mapping[str, str],
    *,
    xlabel: str,
    xticks: Sequence[str] = (),
    shares: Sequence[str] = (),
) -> Markup:
    """Draw panels side by side of a curve for each cell.

    Args:
      panels: panel title -> cell -> (x, value).
      colors: cell -> colour.
      xlabel: of every panel.
      xticks: labels of x = 0, 1, ...; none for numbers.
      shares: titles of the panels whose values are shares, drawn in percent.
    """
    figure = new_figure(PAGE_WIDTH, 3.4)
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, curves) in zip(all_axes, panels.items(), strict=True):
        axes.set(title=title, xlabel=xlabel)
        for name, curve in curves.items():
            x, values = np.transpose(curve)
            axes.plot(x, values, "o-", color=colors[name], markersize=3.5, linewidth=1.7)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if xticks:
            axes.set_xticks(range(len(xticks)), xticks)
            axes.set_xlim(-0.3, len(xticks) - 0.7)
        if title in shares:
            percent_axis(axes, "y")
            axes.set_ylim(-0.02, 1.04)
    handles = []
    for name in union(panels.values()):
        handles.append(Line2D([], [], color=colors[name], linewidth=2.4, label=name))
    figure.legend(handles=handles, loc="outside right center")
    return to_svg(figure, ", ".join(panels))


@matplotlib.rc_context(STYLE)
def scatter_chart(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    colors: Mapping[str, str],
    xlabel: str,
    ylabel: str,
) -> Markup:
    """Draw two shares against each other: a point for each seed, a large one for each cell's mean.

    Args:
      panels: panel title -> cell -> (x, y) of each seed.
      colors: cell -> colour.
    """
    figure = new_figure(PAGE_WIDTH, 3.6)
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, points) in zip(all_axes, panels.items(), strict=True):
        for name, values in points.items():
            x, y = np.transpose(values)
            axes.plot(x, y, "o", color=colors[name], markersize=3.5, alpha=0.45)
            axes.plot(np.mean(x), np.mean(y), "o", color=colors[name], markersize=9)
        for axis in ("x", "y"):
            percent_axis(axes, axis)
        axes.grid(True)
        axes.set(title=title, xlabel=xlabel, xlim=(-0.03, 1.05), ylim=(-0.03, 1.05))
    all_axes[0].set(ylabel=ylabel)
    handles = [_marker(colors[name], "o", name) for name in union(panels.values())]
    figure.legend(handles=handles, loc="outside right center")
    return to_svg(figure, f"{ylabel} against {xlabel}")
