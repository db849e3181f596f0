"""Helpers for builder configs: checks, names, and splits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import tensorflow_datasets as tfds

from etcvla.errors import UserError


def check_minimum(config: tfds.core.BuilderConfig, limits: Mapping[str, float]) -> None:
    """Raise UserError for the first field of `config` that is below its limit."""
    for field, limit in limits.items():
        value = getattr(config, field)
        if value < limit:
            raise UserError(f"{field} must be at least {limit}, got {value}")


def changed_parts(
    config: tfds.core.BuilderConfig,
    parts: Mapping[str, str],
    defaults: Mapping[str, Any] | None = None,
) -> list[str]:
    """Return the parts of the fields that differ from their default.

    A config's name is made of them, so that different configs are built in different folders.

    Args:
      parts: field -> part of the name.
      defaults: field -> default, for fields whose default is not the class's.
    """
    all_defaults = {field.name: field.default for field in dataclasses.fields(config)}
    all_defaults |= defaults or {}
    return [part for field, part in parts.items() if getattr(config, field) != all_defaults[field]]


def count_held_out(episodes: int, held_out: float) -> int:
    """Return the number of validation episodes for `episodes` training episodes."""
    return math.ceil(episodes * held_out)


def assign_split(index: int, total: int, num_val: int) -> str:
    """Return the split of an episode: `num_val` of `total` are "val", evenly spread."""
    is_val = (index + 1) * num_val // total > index * num_val // total
    return "val" if is_val else "train"
