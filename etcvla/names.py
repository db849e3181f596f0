"""Things that a config or a person names: found, or an error with the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """table[name]; raises ValueError with the nearest name, or all names, if there is none."""
    if name not in table:
        near = difflib.get_close_matches(str(name), table, 1)
        raise ValueError(
            f"unknown {what} {name!r}"
            + (f", did you mean {near[0]!r}?" if near else f"; known: {', '.join(table)}")
        )
    return table[name]
