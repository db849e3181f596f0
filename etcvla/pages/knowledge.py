"""Page that compares what checkpoints know.

The numbers come from knowledge.json, which `etcvla.eval.knowledge` computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from etcvla.pages import charts
from etcvla.pages.page import Section, write_page
from etcvla.pages.results import accuracy_estimate, short_names, union
from etcvla.pages.templates import as_words

_Results = Mapping[str, Mapping[str, Any]]  # checkpoint -> its results, as in knowledge.json
# Measures beside the accuracy that the scores of some kinds contain: name -> column title.
_MEASURES = {
    "iou": "mean IoU",
    "distance": "mean distance",
    "inside": "point in object box",
    "order": "plan order",
}
_FEATURES = {
    "vision": "vision tower, image tokens",
    "image": "language model, image tokens",
    "text": "language model, question tokens",
}
_QUERIES = {
    "question": "queries: question tokens",
    "answer": "query: last question token",
    "action": "queries: action tokens",
}


def write_knowledge_page(path: epath.PathLike, results: _Results) -> epath.Path:
    """Write the comparison of checkpoints as one self-contained HTML file.

    Args:
      path: the HTML file.
      results: content of knowledge.json.
    """
    headline = {"checkpoints": list(results)}
    sections = knowledge_sections(results)
    return write_page(path, "knowledge.html.j2", "Knowledge of checkpoints", sections, headline)


def knowledge_sections(results: _Results) -> list[Section]:
    """Return the sections of the comparison, which are also part of reports."""
    names = [as_words(name) for name in short_names(list(results))]
    by_name = dict(zip(names, results.values(), strict=True))
    colors = charts.series_colors(names)
    rows = _answer_rows(by_name)
    measures = {}
    for name, title in _MEASURES.items():
        if any(name in row["scores"] for row in rows):
            measures[name] = title
    answers = {
        "legend": colors,
        "charts": _accuracy_charts(by_name, colors),
        "rows": rows,
        "measures": measures,
    }
    sections = [Section("Knowledge: answers by kind", "knowledge_answers.html.j2", answers)]
    if all("cka" in checkpoint for checkpoint in results.values()):
        drift = {"legend": colors, "reference": names[0], "chart": _drift_chart(by_name, colors)}
        attention = {
            "legend": colors,
            "object_chart": _attention_chart(by_name, colors, "gain"),
            "other_box_chart": _attention_chart(by_name, colors, "other_box_gain"),
        }
        sections.append(Section("Knowledge: feature drift", "knowledge_drift.html.j2", drift))
        sections.append(Section("Knowledge: attention", "knowledge_attention.html.j2", attention))
    return sections


def _accuracy_charts(by_name: _Results, colors: Mapping[str, str]) -> list[str]:
    """Return a chart of the accuracy by kind for each dataset."""
    result = []
    for dataset in union(checkpoint["answers"] for checkpoint in by_name.values()):
        groups = {}
        for name, checkpoint in by_name.items():
            for kind, scores in checkpoint["answers"].get(dataset, {}).items():
                groups.setdefault(as_words(kind), {})[name] = accuracy_estimate(scores)
        result.append(charts.bar_chart({dataset: groups}, colors, "accuracy"))
    return result


def _answer_rows(by_name: _Results) -> list[dict[str, Any]]:
    """Return the rows of the table of answers: one for each checkpoint, dataset and kind."""
    rows = []
    for name, checkpoint in by_name.items():
        for dataset, kinds in checkpoint["answers"].items():
            for kind, scores in kinds.items():
                rows.append(
                    {
                        "checkpoint": name,
                        "dataset": dataset,
                        "kind": as_words(kind),
                        "accuracy": accuracy_estimate(scores),
                        "scores": scores,
                    }
                )
    return rows


def _drift_chart(by_name: _Results, colors: Mapping[str, str]) -> str:
    panels = {}
    for feature, title in _FEATURES.items():
        panels[title] = {}
        for name, checkpoint in by_name.items():
            panels[title][name] = charts.LayerCurve(checkpoint["cka"][feature])
    return charts.layer_chart(panels, colors, reference=0.0, ylabel="CKA")


def _attention_chart(by_name: _Results, colors: Mapping[str, str], measure: str) -> str:
    """Return a chart of an attention gain by layer; "gain" has intervals."""
    panels = {}
    for query, title in _QUERIES.items():
        curves = {}
        for name, checkpoint in by_name.items():
            layers = checkpoint["attention"].get(query)
            if layers:
                curves[name] = _gain_curve(layers, measure)
        if curves:
            panels[title] = curves
    return charts.layer_chart(panels, colors, reference=1.0, ylabel="attention gain")


def _gain_curve(layers: Sequence[Mapping[str, float]], measure: str) -> charts.LayerCurve:
    values = [layer[measure] for layer in layers]
    if measure != "gain":
        return charts.LayerCurve(values)
    low = [layer["low"] for layer in layers]
    high = [layer["high"] for layer in layers]
    return charts.LayerCurve(values, low, high)
