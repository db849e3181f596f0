"""Colours of all pages and pictures. A colour has the same meaning on each of them."""

from __future__ import annotations

from etcvla.etc.items import ETC_KINDS

INK = "#1d2329"  # text
MUTED = "#68717a"  # secondary text
GRID = "#e3e6ea"  # lines of tables and charts

KIND_COLORS = dict(
    zip(ETC_KINDS, ("#2f7de1", "#12a594", "#e5484d", "#8e4ec6", "#f0900c"), strict=True)
)
OTHER_KIND = "#697177"  # kinds of items that are not one of the five ETC kinds

BASE_DATA = "#8257d6"  # scores on held-out questions about the base model's data
ETC = ("#0e9f8a", "#76a10d")  # scores on ETC questions of the first and of further datasets
SCENE_COLORS = {"source": "#2b6be0", "target": "#e5812b"}
TIER_COLORS = {"A": "#2b6be0", "P": "#5aa2e8", "B": "#12a594", "C": "#e5812b", "N": "#c2352b"}

TRUTH = "#00a0c0"  # the true answer
PREDICTION = "#d81b9a"  # the model's answer, and the path that a policy predicts
GOOD = "#2f9e5f"
BAD = "#c2352b"
DOUBTFUL = "#a86a00"
VERDICT_COLORS = {"supported": GOOD, "excluded": BAD, "inconclusive": MUTED}
