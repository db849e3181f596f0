"""Charts of the pages, drawn with matplotlib and returned as SVG elements.

Values that were not measured are left out or marked as missing; they are never drawn as zero.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, PercentFormatter

from etcvla.pages import palette
from etcvla.pages.measures import Measure
from etcvla.pages.results import RunResults, union
from etcvla.stats import Estimate

PAGE_WIDTH = 11  # inches of a chart that fills the width of the page
_NARROW = 7  # inches of a chart with a single panel
# panel title -> group of bars -> name of a bar -> estimate
BarPanels = Mapping[str, Mapping[str, Mapping[str, Estimate | None]]]
# panel title -> name of a curve -> layer -> (value, low, high)
LayerPanels = Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]]
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "etcvla",
    "font.size": 9.5,
    "text.color": palette.INK,
    "axes.labelcolor": palette.MUTED,
    "axes.edgecolor": "#b9c0c7",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": palette.GRID,
    "grid.linewidth": 0.8,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "xtick.color": palette.MUTED,
    "ytick.color": palette.MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.solid_capstyle": "round",
}


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def to_svg(figure: Figure, label: str) -> Markup:
    """Return a figure as an SVG element that uses the font of its page.

    The ids of groups are removed, because they repeat in a page with several charts. Ids that
    begin with "m" are kept: the SVG refers to them (markers).
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="(?!m)[a-z0-9_.]*_\d+"', "", svg)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font)", svg)
    width = figure.get_size_inches()[0] / PAGE_WIDTH
    attributes = Markup('class="chart" role="img" aria-label="{}" style="max-width:{:.0%}"')
    attributes = attributes.format(label, width)
    svg = re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>',
        lambda match: f"<svg {attributes} {match[1]}>",
        svg,
        count=1,
    )
    return Markup(svg)


def series_colors(names: Sequence[str]) -> dict[str, str]:
    """Return a colour for each name, as hexadecimal text, from matplotlib's cycle."""
    return {name: to_hex(f"C{i % 10}") for i, name in enumerate(names)}


# ---- Scores after each stage ----


@matplotlib.rc_context(STYLE)
def stage_chart(
    runs: Sequence[RunResults], parents: Sequence[int | None], measures: Sequence[Measure]
) -> Markup:
    """Draw scores after each run with their intervals.

    Args:
      runs: the runs in their order.
      parents: for each run, the index of the run that it starts from. A line connects the two.
        Control runs have hollow points and thin lines.
      measures: lines of the chart.
    """
    figure = new_figure(PAGE_WIDTH, 4.4)
    axes = figure.subplots()
    shifts = np.linspace(-0.07, 0.07, len(measures))  # so that intervals do not overlap
    for shift, measure in zip(shifts, measures, strict=True):
        values = [measure.values.get(run.title) for run in runs]
        axes.plot([], [], "o-", color=measure.color, linewidth=2.2, label=measure.title)
        for i, parent in enumerate(parents):
            if not values[i]:
                continue
            is_control = runs[i].is_control
            style = {"color": measure.color, "alpha": 0.45 if is_control else 1}
            if parent is not None and values[parent]:
                heights = [values[parent].value, values[i].value]
                width = 1 if is_control else 2.2
                axes.plot([parent + shift, i + shift], heights, linewidth=width, **style)
            fill = "white" if is_control else measure.color
            errors = error_lengths(values[i])
            axes.errorbar(i + shift, values[i].value, errors, fmt="o", mfc=fill, **style)
    labels = [f"{run.title}\n{run.steps}".replace(" action only", "\naction only") for run in runs]
    axes.set_xticks(range(len(runs)), labels, color=palette.INK)
    percent_axis(axes, "y")
    axes.set(ylim=(0, 1.02), ylabel="accuracy or success rate")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return to_svg(figure, "scores after each stage")


def error_lengths(value: Estimate) -> list[list[float]]:
    """Return the distances of the interval's ends from the value, for an error bar."""
    return [[max(0, value.value - value.low)], [max(0, value.high - value.value)]]


# ---- Bars ----


@matplotlib.rc_context(STYLE)
def bar_chart(panels: BarPanels, colors: Mapping[str, str], xlabel: str) -> Markup:
    """Draw panels side by side of groups of horizontal bars with their intervals.

    Args:
      panels: panel title -> group -> bar -> estimate.
      colors: colour of each bar, in the order of the bars in a group.
      xlabel: name of the measured quantity.
    """
    groups = union(panels.values())
    width = PAGE_WIDTH if len(panels) > 1 else _NARROW
    figure = new_figure(width, 1 + 0.2 * len(groups) * max(len(colors), 2))
    figure.get_layout_engine().set(wspace=0.05)
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, panel) in zip(all_axes, panels.items(), strict=True):
        percent_axis(axes, "x")
        axes.set(title=title, xlabel=xlabel, ylim=(len(groups) - 0.5, -0.5), xlim=(0, 1.14))
        axes.set_yticks(range(len(groups)), groups, color=palette.INK)
        for i, group in enumerate(groups):
            _bar_group(axes, i, panel.get(group, {}), colors)
    return to_svg(figure, f"{xlabel}: {', '.join(panels)}")


def _bar_group(
    axes: Axes, center: int, bars: Mapping[str, Estimate | None], colors: Mapping[str, str]
) -> None:
    spacing = 0.8 / len(colors)
    first = center - spacing * (len(colors) - 1) / 2
    for i, (name, color) in enumerate(colors.items()):
        y = first + i * spacing
        value = bars.get(name)
        if value is None:
            x = 0.012
            text = "not evaluated"
        else:
            x = max(value.high, value.value) + 0.015
            text = f"{round(value.value * value.count)}/{value.count}"
            errors = {"xerr": error_lengths(value), "ecolor": palette.MUTED}
            axes.barh(y, value.value, 0.7 / len(colors), color=color, alpha=0.85, **errors)
        axes.text(x, y, text, va="center", fontsize=8, color=palette.MUTED)


def percent_axis(axes: Axes, name: str) -> None:
    """Format the "x" or "y" axis in percent and draw only its grid lines."""
    axis = axes.xaxis if name == "x" else axes.yaxis
    axis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set_ticks(np.linspace(0, 1, 5))
    axes.grid(False)
    axes.grid(axis=name)


# ---- Curves over layers ----


@matplotlib.rc_context(STYLE)
def layer_chart(
    panels: LayerPanels, colors: Mapping[str, str], reference: float, ylabel: str
) -> Markup:
    """Draw panels side by side of curves over the layers of a model.

    Args:
      panels: panel title -> name of a curve -> (value, low, high) of each layer. The ends of the
        interval may be equal to the value.
      colors: colour of each curve.
      reference: value of a dotted horizontal line.
      ylabel: name of the measured quantity.
    """
    figure = new_figure(PAGE_WIDTH, 3.2)
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, curves) in zip(all_axes, panels.items(), strict=True):
        axes.axhline(reference, linestyle=":", color=palette.MUTED, linewidth=1)
        for name, curve in curves.items():
            layers = np.arange(1, len(curve) + 1)
            values, low, high = np.transpose(curve)
            axes.plot(layers, values, "o-", color=colors[name], markersize=4)
            axes.fill_between(layers, low, high, color=colors[name], alpha=0.15, linewidth=0)
        axes.set(title=title, xlabel="layer")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    all_axes[0].set(ylabel=ylabel)
    return to_svg(figure, f"{ylabel} by layer")


# ---- Training curves ----


@matplotlib.rc_context(STYLE)
def training_chart(rows: Sequence[Mapping[str, float]]) -> Markup:
    """Draw a run's losses, next-token accuracy by stream, speed and time waiting for data.

    Args:
      rows: lines of metrics.jsonl in the order of their steps.
    """
    names = union(rows)
    panels = {
        "loss": [name for name in names if name.split("/")[0] == "loss"],
        "next-token accuracy": [name for name in names if name.endswith("/accuracy")],
        "steps per second": ["steps_per_second"],
        "share of time waiting for data": ["data_wait"],
    }
    figure = new_figure(PAGE_WIDTH, 4.4)
    all_axes = figure.subplots(2, 2, height_ratios=(1.5, 1), sharex=True)
    for axes, (title, metrics) in zip(all_axes.flat, panels.items(), strict=True):
        axes.set(title=title)
        for name in metrics:
            logged = [row for row in rows if name in row]
            values = [row[name] for row in logged]
            if any(values):  # a loss that the run does not have is 0
                label = name.removeprefix("loss/").removesuffix("/accuracy").replace("_", " ")
                axes.plot([row["step"] for row in logged], values, label=label, linewidth=1.5)
    losses, accuracies, speed, waiting = all_axes.flat
    losses.set_yscale("log")
    losses.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    losses.yaxis.set_major_formatter("{x:g}")
    losses.minorticks_off()
    top = max((row.get("steps_per_second", 0) for row in rows), default=0)
    speed.set_ylim(0, 1.1 * top or 1)
    for axes in (losses, accuracies):
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    for axes in (accuracies, waiting):
        percent_axis(axes, "y")
    return to_svg(figure, "training curves")
