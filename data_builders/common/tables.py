"""Markdown tables, for dataset cards and for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table; line breaks in cells become spaces."""
    lines = [_format_row(head), "|" + "---|" * len(head)]
    lines += [_format_row(row) for row in rows]
    return "\n".join(lines)


def _format_row(cells: Sequence[Any]) -> str:
    texts = [str(cell).replace("|", r"\|").replace("\n", " ") for cell in cells]
    return f"| {' | '.join(texts)} |"
