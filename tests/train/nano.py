"""A stage that trains in seconds: the small model on a handmade robot dataset."""

import json
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from configs import common
from etcvla.models import variants
from etcvla.rules import path_str
from etcvla.train import sharding
from etcvla.train.checkpoint import open_checkpoint
from etcvla.train.stage import Stage
from etcvla.train.step_functions import abstract_state
from tests.models.small import CONFIG

FROZEN = "img/Transformer/.*"  # regex of the parameters that are frozen
variants.SIZES["nano"] = {name: getattr(CONFIG, name) for name in variants.SIZES["tiny"]}


def nano_config(dataset: Path, workdir: Path, **fields) -> ml_collections.ConfigDict:
    """Return a stage with one action stream and one stream of ETC.

    Args:
      fields: config fields by dotted name, with __ for the dot.
    """
    c = common.base("objective_bridge", "tiny")
    with c.unlocked():
        c.datasets.robot = common.dataset(str(dataset), ("front", "wrist"))
        c.streams.action = common.stream("robot", "action", 0.6, extra_segments=1)
        c.streams.etc = common.stream("robot", "any", 0.4, extra_segments=1)
    c.update_from_flattened_dict(
        {
            "workdir": str(workdir),
            "steps": 6,
            "batch_size": 8,
            "model.size": "nano",
            "model.state_dim": 4,
            "model.action_dim": 3,
            "model.horizon": 4,
            "data.text_len": 64,
            "data.fast_vocab": 128,
            "loss.fast": common.constant(0.5),
            "loss.flow": common.constant(1.0),
            "loss.noise_samples": 2,
            "log_every": 1,
            "save_every": 3,
            "augment.shift": 2,
            "optim.lr": ((0.0, 1e-2), (1.0, 1e-3)),
            "optim.lr_multiple": ((FROZEN, 0.0), (".*", 1.0)),
            **{name.replace("__", "."): value for name, value in fields.items()},
        }
    )
    return c


def optim_config(**fields) -> ml_collections.ConfigDict:
    """Return `config.optim`: AdamW at a constant rate, without clipping or weight decay."""
    c = common.base("objective_bridge", "tiny").optim
    c.update({"lr": common.constant(0.1), "weight_decay": ((".*", 0.0),), "clip": 1e9})
    with c.ignore_type():
        c.update(fields)
    return c


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """Return a tree's leaves by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_str(path): np.asarray(leaf) for path, leaf in leaves}


def saved_state(config: ml_collections.ConfigDict) -> dict[str, np.ndarray]:
    """Return the training state of a workdir's newest checkpoint by path."""
    _, abstract = abstract_state(Stage.open(config), sharding.make_mesh(config.mesh))
    return flatten(open_checkpoint(config.workdir).train_state(abstract))


def read_metrics(workdir: Path) -> dict[int, dict[str, float]]:
    """Return the lines of metrics.jsonl by step."""
    lines = {}
    for text in (Path(workdir) / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        lines[line.pop("step")] = line
    return lines
