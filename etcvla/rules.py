"""Ordered (regex, value) rules over parameters: sharding, learning rates, weight decay, freezing.

The first rule whose regex matches a parameter's whole path (`llm/layers/attn/q_einsum/w`) gives its
value. Every parameter must match a rule. A rule that matches no parameter is an error too, because
it is probably a typo.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax

from etcvla.errors import UserError

Rules = Sequence[tuple[str, Any]]


def path_str(path: tuple) -> str:
    """Return a JAX key path as `a/b/c`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def assign(rules: Rules, params: Any, name: str, *, all_used: bool = True) -> Any:
    """Return the tree of values that the rules give to `params`.

    Args:
      rules: ordered (regex, value) pairs.
      params: tree of parameters; only the paths matter.
      name: the config field, for error messages.
      all_used: whether a rule without a match is an error. (False for rules that all models share.)

    Raises: UserError listing the unmatched parameters, or the rules without a match.
    """
    unmatched = []
    used = set()

    def _value(path, _):
        path = path_str(path)
        for i, (pattern, value) in enumerate(rules):
            if re.fullmatch(pattern, path):
                used.add(i)
                return _Leaf(value)
        unmatched.append(path)
        return None

    leaves = jax.tree_util.tree_map_with_path(_value, params)
    if unmatched:
        raise UserError(f"{name}: no rule matches {', '.join(sorted(unmatched))}")
    unused = [repr(pattern) for i, (pattern, _) in enumerate(rules) if i not in used]
    if unused and all_used:
        raise UserError(f"{name}: no parameter matches {', '.join(unused)}")
    return jax.tree.map(lambda leaf: leaf.value, leaves)


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """Holds a value that is itself a tree (a PartitionSpec or a tuple), so JAX sees one leaf."""

    value: Any
