"""Check that a run may continue with this config and this data."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from etcvla.errors import UserError
from etcvla.names import lookup
from etcvla.train.checkpoint_meta import dataset_sizes
from etcvla.train.stage import Stage

# Config fields (regexes) that may change on resume: they do not change what is computed.
CHANGEABLE_FIELDS = re.compile(
    r"log_every|save_every|keep|keep_every|workdir|init_from|init_rules|init_config|"
    r"datasets\.[^.]+\.(path|build)|data\.(threads|workers|prefetch)|mesh\..*|eval\..*"
)


def check_config(
    config: ml_collections.ConfigDict, saved: Mapping[str, Any], allow: Sequence[str] = ()
) -> None:
    """Raise UserError if the config differs from the one that the workdir's run was started with.

    Args:
      saved: the config in the run's checkpoint.
      allow: fields, or groups of fields, that may differ.
    """
    current = json.loads(config.to_json_best_effort())
    fields = flatten_fields(current)
    for name in allow:
        if not any(_contains(name, field) for field in fields):
            lookup(fields, name, "config field in --allow")
    _check_same(f"{config.workdir} holds a run of another config", saved, current, allow)


def check_data(stage: Stage, meta: Mapping[str, Any], allow: Sequence[str] = ()) -> None:
    """Raise UserError if a dataset has another number of frames than when the workdir's run began.

    Args:
      meta: the JSON of the run's checkpoint.
      allow: fields, or groups of fields, that may differ, such as "datasets".
    """
    current = dataset_sizes(stage)
    saved = meta.get("data", current)
    _check_same(
        f"{stage.config.workdir} holds a run on other data",
        {"datasets": saved},
        {"datasets": current},
        allow,
    )


def _check_same(
    problem: str, saved: Mapping[str, Any], current: Mapping[str, Any], allow: Sequence[str]
) -> None:
    saved_fields = flatten_fields(saved)
    current_fields = flatten_fields(current)
    differing = []
    for field in sorted(saved_fields.keys() | current_fields.keys()):
        allowed = CHANGEABLE_FIELDS.fullmatch(field) or any(
            _contains(name, field) for name in allow
        )
        if not allowed and saved_fields.get(field) != current_fields.get(field):
            differing.append(field)
    if not differing:
        return
    lines = [
        f"  {field}: {saved_fields.get(field)!r} there, {current_fields.get(field)!r} here"
        for field in differing
    ]
    raise UserError(
        f"{problem}; choose another --config.workdir, delete it, or continue it anyway with "
        f"--allow={','.join(differing)}\n" + "\n".join(lines)
    )


def _contains(name: str, field: str) -> bool:
    """Whether `name` is this field or a group that contains it."""
    return field == name or field.startswith(f"{name}.")


def flatten_fields(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dictionaries by their dotted names."""
    fields = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            fields |= flatten_fields(value, f"{prefix}{key}.")
        else:
            fields[f"{prefix}{key}"] = value
    return fields
