"""A stage that trains in a blink: the small model on a handmade robot dataset."""

from pathlib import Path

import ml_collections

from configs import common
from etcvla.models import variants
from tests.models.small import CONFIG

FROZEN = "img/Transformer/.*"  # regex of the parameters that nothing trains
variants.SIZES["nano"] = {name: getattr(CONFIG, name) for name in variants.SIZES["tiny"]}


def nano_config(dataset: Path, workdir: Path, **fields) -> ml_collections.ConfigDict:
    """A stage with one action stream and one of ETC; `fields` by dotted name, with __ for the dot."""
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
    """`config.optim` of a stage: AdamW at a constant rate that neither clips nor decays, unless `fields` say so."""
    c = common.base("objective_bridge", "tiny").optim
    c.update({"lr": common.constant(0.1), "weight_decay": ((".*", 0.0),), "clip": 1e9})
    with c.ignore_type():
        c.update(fields)
    return c
