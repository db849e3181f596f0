"""Page that compares what checkpoints know.

The numbers come from knowledge.json, which `etcvla.eval.knowledge` computes.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from etils import epath

from etcvla.pages import charts
from etcvla.pages.page import Section, write_page
from etcvla.pages.results import accuracy_estimate, short_names
from etcvla.pages.templates import as_words, interval, percent

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
    answers = {"legend": colors} | _answers(by_name, colors)
    sections = [Section("Knowledge: answers by kind", "knowledge_answers.html.j2", answers)]
    if all("cka" in checkpoint for checkpoint in results.values()):
        gains = _attention_panels(by_name, ("gain", "low", "high"))
        other_gains = _attention_panels(by_name, ("other_box_gain",) * 3)
        attention = {
            "legend": colors,
            "object_chart": charts.layer_chart(gains, colors, 1, "attention gain"),
            "other_box_chart": charts.layer_chart(other_gains, colors, 1, "attention gain"),
        }
        drift = {
            "legend": colors,
            "reference": names[0],
            "chart": charts.layer_chart(_drift_panels(by_name), colors, 0, "CKA"),
        }
        sections.append(Section("Knowledge: feature drift", "knowledge_drift.html.j2", drift))
        sections.append(Section("Knowledge: attention", "knowledge_attention.html.j2", attention))
    return sections


def _answers(by_name: _Results, colors: Mapping[str, str]) -> dict[str, Any]:
    """Return a chart of the accuracy by kind for each dataset, and a table of all scores."""
    rows = []
    bars = defaultdict(lambda: defaultdict(dict))  # dataset -> kind -> checkpoint -> accuracy
    for name, checkpoint in by_name.items():
        for dataset, kinds in checkpoint["answers"].items():
            for kind, scores in kinds.items():
                accuracy = accuracy_estimate(scores)
                bars[dataset][as_words(kind)][name] = accuracy
                row = [name, dataset, as_words(kind), percent(accuracy.value), interval(accuracy)]
                row += [percent(scores["majority"]), percent(scores["blind"])]
                for measure in _MEASURES:
                    row.append(f"{scores[measure]:.2f}" if measure in scores else "")
                rows.append(row)
    columns = ["checkpoint", "dataset", "kind", "accuracy", "95 % interval", "majority", "blind"]
    return {
        "charts": [charts.bar_chart({name: bars[name]}, colors, "accuracy") for name in bars],
        "columns": [*columns, *_MEASURES.values()],
        "rows": rows,
    }


def _drift_panels(by_name: _Results) -> charts.LayerPanels:
    panels = defaultdict(dict)
    for feature, title in _FEATURES.items():
        for name, checkpoint in by_name.items():
            panels[title][name] = [(cka, cka, cka) for cka in checkpoint["cka"][feature]]
    return panels


def _attention_panels(by_name: _Results, fields: tuple[str, str, str]) -> charts.LayerPanels:
    """Return an attention gain by layer, without queries that no checkpoint has.

    Args:
      by_name: name of a checkpoint -> its results.
      fields: names of the value and of the ends of its interval.
    """
    interval_of = operator.itemgetter(*fields)
    panels = defaultdict(dict)
    for query, title in _QUERIES.items():
        for name, checkpoint in by_name.items():
            layers = checkpoint["attention"].get(query)
            if layers:
                panels[title][name] = [interval_of(layer) for layer in layers]
    return panels
