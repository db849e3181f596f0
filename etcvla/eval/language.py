"""Language control: does naming an object decide whether it is touched?

Where trials share a layout, each object X of the layout is named in one of them. The difference
P(touch X | X is named) - P(touch X | another object is named) is the effect of the words alone: how
near, large or striking X is counts in both. Without an instruction, or without an image, the
effect must be zero; with wrong words the effect is that of the object that they name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from etcvla import sims
from etcvla.eval import paired
from etcvla.eval.trials import TrialResult
from etcvla.files import write_json
from etcvla.results_schema import GROUP_FIELDS, setting_of

# What the policy gets in a language control, on the same layouts.
INTERVENTIONS = ("right", "no_instruction", "wrong_instruction", "blank_image")
ALL_OBJECTS = "all"


def write_language(folder: epath.PathLike, results: Sequence[TrialResult]) -> None:
    """Write <folder>/language.json, {"groups": `language_scores`}, and print a table.

    Does nothing if the simulator has one trial per layout.
    """
    if not results or sims.get(results[0].trial.simulator).trials_per_layout == 1:
        return
    groups = language_scores(results)
    write_json(epath.Path(folder) / "language.json", {"groups": groups})
    print("\n".join(format_language(groups)), flush=True)


def language_scores(results: Sequence[TrialResult]) -> list[dict[str, Any]]:
    """Return the effect of language in each combination of `GROUP_FIELDS` and novelty.

    Keys: the fields, and
      novelty: of the objects that count; `ALL_OBJECTS` for all.
      layouts: number of layouts.
      named: P(touch X | X is named), the mean over objects and layouts.
      unnamed: P(touch X | another object is named).
      difference: named - unnamed. low, high: its 95 % bootstrap interval over layouts.
      target: share of the trials in which the object of the task's own instruction was touched.
    """
    by_group = defaultdict(lambda: defaultdict(list))
    for result in results:
        row = result.to_row()
        group = tuple(row[field] for field in GROUP_FIELDS)
        by_group[group][row["layout"], row["task"]].append(row)
    groups = []
    for values, by_layout in by_group.items():
        effects = defaultdict(lambda: defaultdict(list))
        for (layout, _), rows in by_layout.items():
            for novelty, effect in object_effects(rows):
                effects[ALL_OBJECTS][layout].append(effect)
                effects[novelty][layout].append(effect)
        fields = dict(zip(GROUP_FIELDS, values, strict=True))
        for novelty, of_layouts in effects.items():
            groups.append({**fields, "novelty": novelty, **_summarize(of_layouts)})
    return groups


def object_effects(
    rows: Sequence[Mapping[str, str]],
) -> list[tuple[str, tuple[float, float, float]]]:
    """Return (novelty, (named, unnamed, target)) of each object of a layout.

    Args:
      rows: lines of episodes.csv: the trials of the layout, which name each object once.
    """
    # Trials without an instruction count as naming the target.
    named = np.array([row["instruction_of"] or row["named"] for row in rows])
    touched = np.array([row["touched"] for row in rows])
    effects = []
    for row in rows:
        is_named = named == row["named"]
        is_touched = touched == row["named"]
        rates = (is_touched[is_named].mean(), is_touched[~is_named].mean())
        effects.append((row["novelty"], (*rates, row["touched"] == row["named"])))
    return effects


def _summarize(effects: Mapping[str, Sequence[tuple[float, float, float]]]) -> dict[str, Any]:
    """Return the scores of some objects from layout -> (named, unnamed, target) of each object."""
    means = np.array([np.mean(of_layout, axis=0) for of_layout in effects.values()])
    named, unnamed, target = means.mean(axis=0).tolist()
    differences = means[:, 0] - means[:, 1]
    low, high = np.clip(paired.two_level_interval(differences[:, None]), -1, 1).tolist()
    return {
        "layouts": len(means),
        "named": named,
        "unnamed": unnamed,
        "difference": named - unnamed,
        "low": low,
        "high": high,
        "target": target,
    }


def format_language(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of a text table of `language_scores`.

    Groups by novelty are shown for the right instruction only.
    """
    title = "share touched first, difference with its 95 % interval"
    lines = [f"{title:<56}{'named':>7}{'others':>8}{'effect':>9}"]
    for group in groups:
        if group["novelty"] != ALL_OBJECTS and group["intervention"] != "right":
            continue
        names = (group["scene"], group["intervention"], *setting_of(group), group["novelty"])
        interval = f"[{group['low']:+.0%}, {group['high']:+.0%}]"
        lines.append(
            f"{' '.join(names)[:55]:<56}{group['named']:>7.0%}{group['unnamed']:>8.0%}"
            f"{group['difference']:>+9.0%}  {interval}"
        )
    return lines
