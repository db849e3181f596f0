"""Charts of the pages, drawn with matplotlib and returned as SVG elements.

Values that were not measured are left out or marked as missing; they are never drawn as zero.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, PercentFormatter

from etcvla.pages import palette
from etcvla.stats import Estimate

PAGE_WIDTH = 11  # inches of a chart that fills the width of the page
_NARROW = 7  # inches of a chart with a single panel
_LOSS_COLORS = {
    "loss": palette.INK,
    "loss/text": palette.ETC,
    "loss/fast": palette.SCENE_COLORS["source"],
    "loss/flow": palette.SCENE_COLORS["target"],
}
_STYLE = {
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


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Figure, label: str) -> Markup:
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


@dataclasses.dataclass(frozen=True)
class StageSeries:
    """One line of `stage_chart`.

    Attributes:
      name: name of the line.
      color: colour of the line.
      values: one estimate for each run, None if it was not evaluated.
      dashed: draw a dashed line.
    """

    name: str
    color: str
    values: Sequence[Estimate | None]
    dashed: bool = False


@matplotlib.rc_context(_STYLE)
def stage_chart(
    labels: Sequence[str], parents: Sequence[int | None], series: Sequence[StageSeries]
) -> Markup:
    """Draw scores after each run with their intervals.

    Args:
      labels: one label for each run.
      parents: for each run, the index of the run that it starts from. A line connects the two.
        A run that does not start from the run before it has hollow points and thin lines.
      series: lines of the chart.
    """
    figure = _figure(PAGE_WIDTH, 4.4)
    axes = figure.subplots()
    _percent_axis(axes, "y")
    right = len(labels) - 0.6
    ends = []
    shifts = np.linspace(-0.07, 0.07, len(series))  # so that intervals do not overlap
    for shift, line in zip(shifts, series, strict=True):
        evaluated = [i for i, value in enumerate(line.values) if value]
        for i in evaluated:
            _stage_point(axes, line, i, parents[i], shift)
        if evaluated:
            last = evaluated[-1]
            ends.append(_LineEnd(line.values[last].value, last + shift, line.name, line.color))
    axes.set(xlim=(-0.35, right), xticks=range(len(labels)), ylim=(0, 1.02))
    axes.set(ylabel="accuracy or success rate")
    axes.set_xticklabels(labels, color=palette.INK)
    _label_line_ends(axes, ends, right)
    return _svg(figure, "scores after each stage")


def _stage_point(
    axes: Axes, line: StageSeries, index: int, parent: int | None, shift: float
) -> None:
    """Draw one run's value with its interval, and the line from its parent's value."""
    value = line.values[index]
    is_control = parent not in (None, index - 1)
    if parent is not None and line.values[parent]:
        axes.plot(
            [parent + shift, index + shift],
            [line.values[parent].value, value.value],
            "--" if line.dashed else "-",
            color=line.color,
            linewidth=1 if is_control else 2.2,
            alpha=0.45 if is_control else 1,
        )
    x = index + shift
    axes.plot([x, x], [value.low, value.high], color=line.color, linewidth=1.3, alpha=0.55)
    axes.plot(
        [x],
        [value.value],
        "o",
        markersize=6,
        color="white" if is_control else line.color,
        markeredgecolor=line.color if is_control else "white",
        markeredgewidth=1.4,
    )


@dataclasses.dataclass(frozen=True)
class _LineEnd:
    """The last point of a line, beside which its name is written."""

    y: float
    x: float
    name: str
    color: str


def _label_line_ends(axes: Axes, ends: Sequence[_LineEnd], right: float) -> None:
    """Write the names of lines at x = `right`, moved apart where they would overlap."""
    gap = 0.062  # smallest vertical distance of two names
    ends = sorted(ends, key=lambda end: end.y)
    heights = np.array([end.y for end in ends])
    for _ in range(100):
        for i in range(len(heights) - 1):
            missing = gap - (heights[i + 1] - heights[i])
            if missing > 0:
                heights[i] -= missing / 2
                heights[i + 1] += missing / 2
    for end, height in zip(ends, heights, strict=True):
        style = {"color": end.color, "clip_on": False}
        axes.plot([end.x + 0.06, right - 0.03], [end.y, height], ":", linewidth=0.9, **style)
        axes.text(right, height, end.name, va="center", weight="bold", **style)


# ---- Bars ----


@matplotlib.rc_context(_STYLE)
def bar_chart(
    panels: Mapping[str, Mapping[str, Mapping[str, Estimate | None]]],
    colors: Mapping[str, str],
    xlabel: str,
) -> Markup:
    """Draw panels side by side of groups of horizontal bars with their intervals.

    Args:
      panels: panel title -> group -> bar -> estimate.
      colors: colour of each bar, in the order of the bars in a group.
      xlabel: name of the measured quantity.
    """
    groups = {}
    for panel in panels.values():
        groups.update(dict.fromkeys(panel))
    width = PAGE_WIDTH if len(panels) > 1 else _NARROW
    figure = _figure(width, 1 + 0.2 * len(groups) * max(len(colors), 2))
    figure.get_layout_engine().set(wspace=0.05)
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, panel) in zip(all_axes, panels.items(), strict=True):
        _percent_axis(axes, "x")
        axes.set(title=title, xlabel=xlabel, ylim=(len(groups) - 0.5, -0.5), xlim=(0, 1.14))
        axes.set_yticks(range(len(groups)), groups, color=palette.INK)
        for i, group in enumerate(groups):
            _bar_group(axes, i, panel.get(group, {}), colors)
    return _svg(figure, f"{xlabel}: {', '.join(panels)}")


def _bar_group(
    axes: Axes, center: int, bars: Mapping[str, Estimate | None], colors: Mapping[str, str]
) -> None:
    spacing = 0.8 / len(colors)
    first = center - spacing * (len(colors) - 1) / 2
    for i, (name, color) in enumerate(colors.items()):
        y = first + i * spacing
        value = bars.get(name)
        if value is None:
            style = {"fontsize": 8, "style": "italic", "color": "#8a929a"}
            axes.text(0.012, y, "not evaluated", va="center", **style)
            continue
        axes.barh(y, value.value, 0.7 / len(colors), color=color, alpha=0.85)
        axes.plot([value.low, value.high], [y, y], color=palette.INK, linewidth=1.1, alpha=0.6)
        count = f"{round(value.value * value.count)}/{value.count}"
        x = max(value.high, value.value) + 0.015
        axes.text(x, y, count, va="center", fontsize=8, color=palette.MUTED)


def _percent_axis(axes: Axes, name: str) -> None:
    """Format the "x" or "y" axis in percent and draw only its grid lines."""
    axis = axes.xaxis if name == "x" else axes.yaxis
    axis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set_ticks(np.linspace(0, 1, 5))
    axes.grid(False)
    axes.grid(axis=name)


# ---- Curves over layers ----


@dataclasses.dataclass(frozen=True)
class LayerCurve:
    """Values by layer of a model, with the ends of their intervals if these are known."""

    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@matplotlib.rc_context(_STYLE)
def layer_chart(
    panels: Mapping[str, Mapping[str, LayerCurve]],
    colors: Mapping[str, str],
    reference: float,
    ylabel: str,
) -> Markup:
    """Draw panels side by side of curves over the layers of a model.

    Args:
      panels: panel title -> name of a curve -> curve.
      colors: colour of each curve.
      reference: value of a dotted horizontal line.
      ylabel: name of the measured quantity.
    """
    figure = _figure(PAGE_WIDTH, 3.2)
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, curves) in zip(all_axes, panels.items(), strict=True):
        axes.axhline(reference, linestyle=":", color=palette.MUTED, linewidth=1)
        for name, curve in curves.items():
            layers = np.arange(1, len(curve.values) + 1)
            axes.plot(layers, curve.values, "o-", color=colors[name], markersize=4)
            if len(curve.low):
                style = {"color": colors[name], "alpha": 0.15, "linewidth": 0}
                axes.fill_between(layers, curve.low, curve.high, **style)
        axes.set(title=title, xlabel="layer")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    all_axes[0].set(ylabel=ylabel)
    return _svg(figure, f"{ylabel} by layer")


# ---- Training curves ----


@matplotlib.rc_context(_STYLE)
def training_chart(rows: Sequence[Mapping[str, float]]) -> Markup:
    """Draw a run's losses, next-token accuracy by stream, speed and time waiting for data.

    Args:
      rows: lines of metrics.jsonl in the order of their steps.
    """
    figure = _figure(PAGE_WIDTH, 2.6)
    losses, accuracies, speed = figure.subplots(1, 3, width_ratios=(1, 1, 0.85))
    names = {}
    for row in rows:
        names.update(dict.fromkeys(row))
    _draw_losses(losses, rows, list(names))
    _draw_accuracies(accuracies, rows, list(names))
    _draw_speed(speed, rows)
    return _svg(figure, "training curves")


def _draw_losses(axes: Axes, rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> None:
    components = []
    for name in names:
        if name.startswith("loss/") and any(row.get(name) for row in rows):
            components.append(name)
    for name in components if len(components) == 1 else ["loss", *components]:
        label = "total" if name == "loss" else name.removeprefix("loss/")
        _draw_curve(axes, rows, name, label, _LOSS_COLORS.get(name, palette.MUTED))
    axes.set(title="loss", yscale="log", xlabel="step")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()
    if axes.lines:
        axes.legend(handlelength=1.2, labelspacing=0.3)


def _draw_accuracies(axes: Axes, rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> None:
    streams = [name.removesuffix("/accuracy") for name in names if name.endswith("/accuracy")]
    for i, stream in enumerate(streams):
        color = {"action": palette.INK, "shapes": palette.SHAPES}.get(stream, f"C{i % 10}")
        for kind, kind_color in palette.KIND_COLORS.items():
            if stream.endswith(kind):
                color = kind_color
        _draw_curve(axes, rows, f"{stream}/accuracy", stream.replace("_", " "), color)
    _percent_axis(axes, "y")
    axes.set(title="next-token accuracy by stream", xlabel="step", ylim=(0, 1.02))
    if axes.lines:
        axes.legend(handlelength=1.2, loc="center left", bbox_to_anchor=(1, 0.5))


def _draw_speed(axes: Axes, rows: Sequence[Mapping[str, float]]) -> None:
    """Draw steps per second (left axis) and the share of time waiting for data (right axis)."""
    source = palette.SCENE_COLORS["source"]
    target = palette.SCENE_COLORS["target"]
    _draw_curve(axes, rows, "steps_per_second", "steps/s", source)
    fastest = max((row.get("steps_per_second", 0) for row in rows), default=0)
    top = 1.4 * fastest or 1  # leaves room for the legend
    axes.set(title="speed and data wait", xlabel="step", ylim=(0, top))
    waiting = axes.twinx()
    _percent_axis(waiting, "y")
    _draw_curve(waiting, rows, "data_wait", "waiting for data", target)
    waiting.set(ylim=(0, 1.02))
    waiting.grid(False)
    handles = [*axes.lines, *waiting.lines]
    axes.legend(handles=handles, handlelength=1.2, loc="upper right")


def _draw_curve(
    axes: Axes, rows: Sequence[Mapping[str, float]], name: str, label: str, color: str
) -> None:
    """Draw one metric over the steps at which it was logged."""
    logged = [row for row in rows if name in row]
    if logged:
        steps = [row["step"] for row in logged]
        values = [row[name] for row in logged]
        axes.plot(steps, values, color=color, label=label, linewidth=1.5)
