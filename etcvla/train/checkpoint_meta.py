"""The JSON of a checkpoint: what a policy needs besides the parameters, and their lineage."""

from __future__ import annotations

import json
from typing import Any

import ml_collections

from etcvla.models.variants import config_to_dict
from etcvla.train.base_model import find_base
from etcvla.train.checkpoint import find_checkpoint
from etcvla.train.stage import Stage


def checkpoint_meta(stage: Stage) -> dict[str, Any]:
    """Return the JSON that a stage's checkpoints hold.

    It has the config, the model, the assets, the lineage, the data and the ids of answers.
    """
    return {
        "config": json.loads(stage.config.to_json_best_effort()),
        "model": config_to_dict(stage.model.config),
        "assets": stage.assets.to_json(),
        "lineage": lineage(stage.config),
        "data": dataset_sizes(stage),
        "answer_ids": list(stage.token_rows.answers),
    }


def lineage(config: ml_collections.ConfigDict) -> list[dict[str, Any]]:
    """Return the checkpoints that the run's parameters come from, the oldest first.

    An entry is {"workdir", "step"}; {"base": path, "sha256"} for a base model; or
    {"released": path} for weights that another project released. A run that has saved a checkpoint
    keeps that checkpoint's lineage: by now its parent may be deleted or retrained.
    """
    own = find_checkpoint(config.workdir)
    if own is not None:
        return own.meta()["lineage"]
    if not config.init_from:
        return []
    parent = find_checkpoint(config.init_from)
    base = find_base(config.init_from)
    if parent is None and base is not None:
        return [{"base": config.init_from, "sha256": base.meta["sha256"]}]
    if parent is None:
        return [{"released": config.init_from}]
    entry = {"workdir": config.init_from, "step": parent.step}
    return [*parent.meta()["lineage"], entry]


def dataset_sizes(stage: Stage) -> dict[str, dict[str, int]]:
    """Return {"episodes", "frames"} of each dataset.

    With other sizes, the same plan would draw other frames.
    """
    sizes = {}
    for name, source in stage.datasets.items():
        dataset = source.dataset
        sizes[name] = {"episodes": dataset.num_episodes, "frames": dataset.num_frames}
    return sizes
