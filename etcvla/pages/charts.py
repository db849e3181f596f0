"""The report's charts, as SVG text that stands inside a page and takes its font.

One palette for all of them: a colour means the same thing everywhere. None is drawn as missing, never as zero.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, PercentFormatter

from etcvla.pages.palette import KIND_COLORS
from etcvla.stats import Estimate

INK, SOFT, LINE = "#1d2329", "#68717a", "#e3e6ea"
MM, ETC, SOURCE, TARGET = "#8257d6", "#0e9f8a", "#2b6be0", "#e5812b"
SCENES = {"source": SOURCE, "target": TARGET}
PAGE_WIDTH = 11  # inches of a chart that fills the page; narrower ones keep their scale
_LOSSES = {"loss": INK, "loss/text": ETC, "loss/fast": SOURCE, "loss/flow": TARGET}
_RC = {
    "svg.fonttype": "none",
    "svg.hashsalt": "etcvla",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": "#b9c0c7",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.solid_capstyle": "round",
}


def _chart(draw):
    """Makes a function that fills a figure of (width, height) inches into one that returns its SVG."""

    def drawn(*args, size: tuple[float, float], label: str) -> str:
        with matplotlib.rc_context(_RC):
            figure, text = Figure(figsize=size, layout="constrained"), io.StringIO()
            draw(figure, *args)
            figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
        svg = text.getvalue()
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
        svg = re.sub(
            r' id="(?!m)[a-z0-9_.]*_\d+"', "", svg
        )  # would not be unique in a page of many charts
        svg = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font)", svg)
        head = f'<svg class="chart" role="img" aria-label="{label}" style="max-width:{size[0] / PAGE_WIDTH:.0%}"'
        return re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf"{head} \1>", svg, count=1)

    drawn.__doc__ = draw.__doc__
    return drawn


@_chart
def road(
    figure: Figure,
    stages: Sequence[str],
    parents: Sequence[int | None],
    series: Mapping[str, tuple[str, str, Sequence[Estimate | None]]],
) -> None:
    """Shares over the stages with their intervals; a line leads from the stage that a stage starts from.

    Args:
      stages: labels. parents: for each stage the index of the one it starts from.
      series: name -> (colour, line style, one estimate a stage).
    """
    axes = _percent(figure.subplots(), "y")
    at = np.linspace(-0.07, 0.07, len(series))
    ends = []
    for shift, (name, (color, style, values)) in zip(at, series.items(), strict=True):
        known = [i for i, value in enumerate(values) if value]
        for i in known:
            if parents[i] in known:
                beside = parents[i] != i - 1  # a side road past other stages
                axes.plot(
                    [parents[i] + shift, i + shift],
                    [values[parents[i]].value, values[i].value],
                    style,
                    color=color,
                    linewidth=1 if beside else 2.2,
                    alpha=0.45 if beside else 1,
                )
            _interval(axes, i + shift, values[i], color, hollow=parents[i] not in (None, i - 1))
        if known:
            ends.append((values[known[-1]].value, known[-1] + shift, name, color))
    axes.set(xlim=(-0.35, len(stages) - 0.6), xticks=range(len(stages)), ylim=(0, 1.02))
    axes.set_xticklabels(stages, color=INK)
    _label_ends(axes, ends, len(stages) - 0.6)


def _interval(axes: Axes, x: float, value: Estimate, color: str, hollow: bool) -> None:
    axes.plot([x, x], [value.low, value.high], color=color, linewidth=1.3, alpha=0.55)
    axes.plot(
        [x],
        [value.value],
        "o",
        markersize=6,
        color="white" if hollow else color,
        markeredgecolor=color if hollow else "white",
        markeredgewidth=1.4,
    )


def _label_ends(
    axes: Axes, ends: Sequence[tuple[float, float, str, str]], right: float, gap: float = 0.062
) -> None:
    """Names beside the ends of lines, (y, x, name, colour), moved apart where they would touch."""
    ends = sorted(ends)
    places = np.array([y for y, *_ in ends])
    for _ in range(100):
        for i in range(len(places) - 1):
            lack = gap - (places[i + 1] - places[i])
            if lack > 0:
                places[i : i + 2] += [-lack / 2, lack / 2]
    for place, (y, x, name, color) in zip(places, ends, strict=True):
        axes.plot(
            [x + 0.06, right - 0.03],
            [y, place],
            ":",
            color=color,
            linewidth=0.9,
            alpha=0.7,
            clip_on=False,
        )
        axes.text(right, place, name, color=color, va="center", weight="bold", clip_on=False)


@_chart
def bars(
    figure: Figure,
    panels: Mapping[str, Mapping[str, Mapping[str, Estimate | None]]],
    colors: Mapping[str, str],
) -> None:
    """Panels side by side of groups of bars with their intervals.

    Args:
      panels: title -> group -> bar -> estimate. colors: of each bar, in drawing order.
    """
    figure.get_layout_engine().set(wspace=0.05)
    groups = list(dict.fromkeys(group for panel in panels.values() for group in panel))
    for axes, (title, panel) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True
    ):
        _percent(axes, "x").set(title=title, ylim=(len(groups) - 0.5, -0.5), xlim=(0, 1.14))
        axes.set_yticks(range(len(groups)), groups, color=INK)
        for j, (name, color) in enumerate(colors.items()):
            for i, group in enumerate(groups):
                y = i + (j - (len(colors) - 1) / 2) * 0.8 / len(colors)
                _bar(axes, y, 0.7 / len(colors), panel.get(group, {}).get(name), color)


def _bar(axes: Axes, y: float, height: float, value: Estimate | None, color: str) -> None:
    if value is None:
        axes.text(
            0.012, y, "not evaluated", va="center", fontsize=8, style="italic", color="#8a929a"
        )
        return
    axes.barh(y, value.value, height, color=color, alpha=0.85)
    axes.plot([value.low, value.high], [y, y], color=INK, linewidth=1.1, alpha=0.6)
    axes.text(
        max(value.high, value.value) + 0.015,
        y,
        f"{round(value.value * value.count)}/{value.count}",
        va="center",
        fontsize=8,
        color=SOFT,
    )


def _percent(axes: Axes, axis: str) -> Axes:
    getattr(axes, f"{axis}axis").set_major_formatter(PercentFormatter(1, decimals=0))
    getattr(axes, f"set_{axis}ticks")(np.linspace(0, 1, 5))
    axes.grid(False)
    axes.grid(axis=axis)
    return axes


@_chart
def by_layer(
    figure: Figure,
    panels: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]],
    colors: Mapping[str, str],
    even: float,
) -> None:
    """Panels side by side of lines over a model's layers.

    Args:
      panels: title -> line -> a layer's {"value"} and, if it has an interval, {"low", "high"}. colors: of each line.
      even: where a dotted line stands.
    """
    for axes, (title, lines) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True
    ):
        axes.axhline(even, linestyle=":", color=SOFT, linewidth=1)
        for name, layers in lines.items():
            at = np.arange(1, len(layers) + 1)
            axes.plot(
                at,
                [layer["value"] for layer in layers],
                "o-",
                color=colors[name],
                label=name,
                markersize=4,
            )
            if layers and "low" in layers[0]:
                axes.fill_between(
                    at,
                    *([layer[end] for layer in layers] for end in ("low", "high")),
                    color=colors[name],
                    alpha=0.15,
                    linewidth=0,
                )
        axes.set(title=title, xlabel="layer")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def legend(colors: Mapping[str, str]) -> str:
    """Names in their colours, as HTML."""
    return (
        "<p>"
        + " &ensp; ".join(
            f'<b style="color:{to_hex(color)}">{name}</b>' for name, color in colors.items()
        )
        + "</p>"
    )


@_chart
def training(figure: Figure, rows: Sequence[Mapping[str, float]]) -> None:
    """What a run logged: its losses, its next-token accuracy by stream, its rate and its wait for data.

    Args:
      rows: lines of metrics.jsonl, in the order of their steps.
    """
    losses, accuracies, speed = figure.subplots(1, 3, width_ratios=(1, 1, 0.85))
    names = list(dict.fromkeys(name for row in rows for name in row))
    parts = [
        name for name in names if name.startswith("loss/") and any(row.get(name) for row in rows)
    ]
    for name in parts if len(parts) == 1 else ["loss", *parts]:
        _curve(
            losses,
            rows,
            name,
            {"loss": "total"}.get(name, name.removeprefix("loss/")),
            _LOSSES.get(name, SOFT),
        )
    losses.set(title="loss", yscale="log", xlabel="step")
    losses.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    losses.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    losses.minorticks_off()
    streams = [name.removesuffix("/accuracy") for name in names if name.endswith("/accuracy")]
    for i, stream in enumerate(streams):
        kind = next((color for kind, color in KIND_COLORS.items() if stream.endswith(kind)), None)
        _curve(
            accuracies,
            rows,
            f"{stream}/accuracy",
            stream.replace("_", " "),
            kind or {"action": INK, "shapes": MM}.get(stream, f"C{i}"),
        )
    _percent(accuracies, "y").set(
        title="next-token accuracy by stream", xlabel="step", ylim=(0, 1.02)
    )
    _curve(speed, rows, "steps_per_second", "steps/s", SOURCE)
    top = max((row["steps_per_second"] for row in rows if "steps_per_second" in row), default=1)
    speed.set(
        title="rate", xlabel="step", ylim=(0, 1.4 * top or 1)
    )  # the legend stands above the curves
    waiting = _percent(speed.twinx(), "y")
    _curve(waiting, rows, "data_wait", "waiting for data", TARGET)
    waiting.set(ylim=(0, 1.02))
    waiting.grid(False)
    if losses.lines:
        losses.legend(handlelength=1.2, labelspacing=0.3)
    if accuracies.lines:
        accuracies.legend(handlelength=1.2, loc="center left", bbox_to_anchor=(1, 0.5))
    speed.legend(handles=[*speed.lines, *waiting.lines], handlelength=1.2, loc="upper right")


def _curve(
    axes: Axes, rows: Sequence[Mapping[str, float]], name: str, label: str, color: str
) -> None:
    points = [(row["step"], row[name]) for row in rows if name in row]
    if points:
        axes.plot(*zip(*points, strict=True), color=color, label=label, linewidth=1.5)
