"""Page of what checkpoints know, from the knowledge.json that `etcvla.eval.knowledge` computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etcvla.pages import charts
from etcvla.pages.results import estimate, short_names

FEATURES = ("vision", "image", "text")
READERS = ("question", "answer", "action")
MEASURES = ("iou", "distance", "inside", "order")


def sections(found: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What `examine` returns, as a page's sections by title."""
    names = {
        path: name.replace("_", " ")
        for path, name in zip(found, short_names(list(found)), strict=True)
    }
    colors = {name: f"C{i}" for i, name in enumerate(names.values())}
    out = {
        "Answers": "<p>Held-out questions answered greedily, by kind.</p>"
        + charts.legend(colors)
        + _bars(found, names, colors)
        + _table(found, names)
    }
    if all("cka" in parts for parts in found.values()):
        out |= {"Drift": _drift(found, names, colors), "Looking": _looking(found, names, colors)}
    return out


def _bars(found, names, colors) -> str:
    text = ""
    for set_, by_kind in next(iter(found.values()))["answers"].items():
        groups = {
            kind.replace("_", " "): {
                names[w]: estimate(parts["answers"][set_][kind]) for w, parts in found.items()
            }
            for kind in by_kind
        }
        text += charts.bars(
            {set_: groups},
            colors,
            size=(7, 1 + 0.25 * len(names) * len(groups)),
            label=f"accuracy by kind, {set_}",
        )
    return text


def _drift(found, names, colors) -> str:
    panels = {
        part: {
            names[w]: [{"value": value} for value in parts["cka"][part]]
            for w, parts in found.items()
        }
        for part in FEATURES
    }
    return (
        f"<p>Linear CKA (without the bias of few samples) with {names[next(iter(found))]}, on the same held-out "
        "frames: 1 is the same features up to rotation and scale, 0 unrelated ones.</p>"
        + charts.legend(colors)
        + charts.by_layer(panels, colors, 0.0, size=(11, 3.2), label="CKA by layer")
    )


def _looking(found, names, colors) -> str:
    def chart(value, ends, label):
        panels = {
            reader: {
                names[w]: [
                    {"value": look[value]} | {end: look[end] for end in ends}
                    for look in parts["attention"][reader]
                ]
                for w, parts in found.items()
                if parts["attention"].get(reader)
            }
            for reader in READERS
        }
        return charts.by_layer(panels, colors, 1.0, size=(11, 3.2), label=label)

    return (
        "<p>How much more than its share of the area the named thing's place gets of the attention to its camera; "
        "dotted: an even look.</p>"
        + charts.legend(colors)
        + chart("gain", ("low", "high"), "attention gain by layer")
        + "<p>The same for the place of another frame's thing: what looking where things usually are gets.</p>"
        + chart("other_box_gain", (), "attention gain elsewhere by layer")
    )


def _table(found: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> str:
    head = "".join(
        f"<th>{name}</th>"
        for name in (
            "checkpoint",
            "set",
            "kind",
            "accuracy",
            "95 %",
            "majority",
            "blind",
            "mean IoU",
            "mean distance",
            "in the box",
            "plan order",
        )
    )
    lines = []
    for workdir, parts in found.items():
        for set_, by_kind in parts["answers"].items():
            for kind, s in by_kind.items():
                cells = [
                    names[workdir],
                    set_,
                    kind.replace("_", " "),
                    f"{s['accuracy']:.0%}",
                    f"{s['low']:.0%} to {s['high']:.0%}",
                    f"{s['majority']:.0%}",
                    f"{s['blind']:.0%}",
                    *(f"{s[key]:.2f}" if key in s else "" for key in MEASURES),
                ]
                lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
