"""The episodes of a study, grouped for comparisons of arms layout by layout."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from etcvla.errors import UserError
from etcvla.eval.language import object_effects

_LAYOUT_FIELDS = ("tier", "rotation", "task", "layout")
Layout = tuple[str, ...]  # values of _LAYOUT_FIELDS


class EpisodeTable:
    """Lines of study.csv. Episodes under an OOD condition are kept, but do not count in scores.

    Attributes:
      rows: the lines, by column.
      interventions: those of any episode, "right" first.
      tiers: those of any episode. "C:both" are the trials of C whose target has two new words.
    """

    def __init__(self, rows: Iterable[Mapping[str, str]]):
        self.rows = []
        for row in rows:  # a study has few different values and many episodes
            self.rows.append({column: sys.intern(value) for column, value in row.items()})
        self._layouts = defaultdict(lambda: defaultdict(list))
        tiers = set()
        interventions = set()
        for row in self.rows:
            if row["condition"]:
                continue
            group = (row["cell"], int(row["seed"]), row["tier"], row["intervention"])
            layout = tuple(row[field] for field in _LAYOUT_FIELDS)
            self._layouts[group][layout].append(row)
            interventions.add(row["intervention"])
            tiers.add(row["tier"])
            if row["novelty"] == "both":
                tiers.add(f"{row['tier']}:both")
        self.tiers = sorted(tiers)
        self.interventions = sorted(interventions, key=lambda name: (name != "right", name))

    def has_results(self, cell: str, seed: int) -> bool:
        """Return whether there are episodes of a cell with a seed."""
        return any(group[:2] == (cell, seed) for group in self._layouts)

    def chance(self) -> float | None:
        """Return the chance of touching the named object without reading its name.

        None if trials do not share layouts.
        """
        for layouts in self._layouts.values():
            for rows in layouts.values():
                objects = {row["named"] for row in rows if row["named"]}
                if len(objects) > 1:
                    return 1 / len(objects)
        return None

    def layout_values(
        self, cell: str, seed: int, metric: str, tier: str, intervention: str = "right"
    ) -> dict[Layout, float]:
        """Return the mean of a metric in each layout; {} without trials.

        Args:
          metric: a column of study.csv, or "language": how much more often an object is touched
            if it is named than if another object of the layout is.
          tier: tiers joined by "+"; ":both" after them restricts the named objects.

        Raises UserError if the episodes have no such metric.
        """
        tiers, _, novelty = tier.partition(":")
        means = {}
        for name in tiers.split("+"):
            group = self._layouts.get((cell, seed, name, intervention), {})
            for layout, rows in group.items():
                values = _values(rows, metric, novelty)
                if values:
                    means[layout] = float(np.mean(values))
        return means


def _values(rows: Sequence[Mapping[str, str]], metric: str, novelty: str) -> list[float]:
    """Return the values of a metric in the trials of a layout, those with this novelty."""
    _check_column(rows[0], "named" if metric == "language" else metric)
    if metric == "language":
        values = []
        for of_object, (named, unnamed, _) in object_effects(rows):
            if not novelty or of_object == novelty:
                values.append(named - unnamed)
        return values
    chosen = [row for row in rows if not novelty or row["novelty"] == novelty]
    return [float(row[metric]) for row in chosen]


def _check_column(row: Mapping[str, str], column: str) -> None:
    if not row[column]:
        raise UserError(
            f"run {row['run']}: evaluation/episodes.csv has no value of {column!r}; choose another "
            "metric, or delete the run's folder evaluation and start the study again"
        )
