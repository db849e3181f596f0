"""Accuracy of held-out answers by what robot data know about the words of the question."""

from __future__ import annotations

import pathlib
import re
from collections import defaultdict
from statistics import mean

from etcvla.files import read_csv
from etcvla.sims.tabletop.words import tier_words

_TIERS = ("N", "C", "B", "A")  # newest words first


def word_tier(text: str, rotation: int) -> str:
    """Return the tier of the newest noun or color in a text on the tabletop; "" without one."""
    words = set(re.findall(r"[a-z]+", text.lower()))
    for tier in _TIERS:
        of_tier = tier_words(tier, rotation)
        for word in of_tier.nouns + of_tier.colors:
            if words & {word, f"{word}s", f"{word}es"}:
                return tier
    return ""


def word_scores(folder: pathlib.Path, rotation: int) -> dict[str, dict[str, dict[str, dict]]]:
    """Return dataset -> kind -> tier of the newest word -> {"accuracy", "count"}.

    Questions and answers without a noun or color are left out.

    Args:
      folder: of an evaluation, with questions.csv.
    """
    correct = defaultdict(list)
    for row in read_csv(folder / "questions.csv"):
        tier = word_tier(f"{row['question']} {row['answer']}", rotation)
        if tier:
            correct[row["dataset"], row["kind"], tier].append(row["correct"] == "1")
    scores: dict[str, dict[str, dict[str, dict]]] = {}
    for (dataset, kind, tier), values in sorted(correct.items()):
        by_tier = scores.setdefault(dataset, {}).setdefault(kind, {})
        by_tier[tier] = {"accuracy": mean(values), "count": len(values)}
    return scores
