"""Ordered (regex, value) lists: the one idiom for sharding, learning-rate multiples, weight decay and freezing.

The first rule whose regex matches a parameter's whole path (`llm/layers/attn/q_einsum/w`) gives its value. Every
parameter must match one; a rule that matches nothing is an error too, since it is a typo that would do nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax

Rules = Sequence[tuple[str, Any]]


def path_str(path: tuple) -> str:
    """A key path as `a/b/c`."""
    return "/".join(
        str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path
    )


def assign(rules: Rules, params: Any, name: str, *, all_used: bool = True) -> Any:
    """The tree of values that the rules give to `params`.

    Args:
      name: the config field, for the errors.
      all_used: a rule without a match is an error. (Sharding rules are shared by all models, so there it is not.)

    Raises ValueError listing unmatched parameters, or rules without a match.
    """
    unmatched, used = [], set()

    def value(path, _):
        path = path_str(path)
        for i, (pattern, result) in enumerate(rules):
            if re.fullmatch(pattern, path):
                used.add(i)
                return _Box(result)
        unmatched.append(path)
        return None

    boxes = jax.tree_util.tree_map_with_path(value, params)
    if unmatched:
        raise ValueError(f"{name}: no rule matches {', '.join(sorted(unmatched))}")
    unused = [rules[i][0] for i in range(len(rules)) if i not in used]
    if unused and all_used:
        raise ValueError(f"{name}: no parameter matches {', '.join(map(repr, unused))}")
    return jax.tree.map(lambda box: box.value, boxes, is_leaf=lambda x: isinstance(x, _Box))


class _Box:
    """Keeps a value that is itself a tree (a PartitionSpec, a tuple) from being flattened."""

    def __init__(self, value: Any):
        self.value = value
