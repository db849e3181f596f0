"""Find the value of a name in a config or on the command line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

from etcvla.errors import UserError

T = TypeVar("T")


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """Return table[name].

    Args:
      table: the known names.
      name: the name to find.
      what: kind of the name, or its config field, for the error message.

    Raises: UserError with the nearest known name, or with all of them, if `name` is unknown.
    """
    if name in table:
        return table[name]
    near = difflib.get_close_matches(str(name), table, 1)
    hint = f", did you mean {near[0]!r}?" if near else f"; known: {', '.join(table)}"
    raise UserError(f"unknown {what} {name!r}{hint}")
