"""Stage 1, Distribution Bridging: the VLM learns the robot's scenes from ETC alone.

    python launch/train.py --config=configs/distribution_bridge.py[:VARIANT][+replay]

Tiny: four minutes on two cores; held-out ETC answers of every kind are above their majority answer.
Tabletop: scenes of the demonstrations, and others with further words.
All parameters are trained, including the vision tower: freezing it lowered the paper's SimplerEnv
score from 0.812 to 0.673.

"+replay" gives 10 % of the objective to the base model's data. Full size does that unless
"+no_replay": answers of ETC use few words, and training on them alone makes a model forget the
others.
"""

import ml_collections

from configs import common

VARIANTS = {
    "tiny": {
        "init_from": "base",
        "datasets.source": common.metaworld("source"),
        "steps": 1000,
        "batch_size": 16,
    },
    "tabletop": {
        "init_from": "base",
        "datasets.demos": common.tabletop("demos"),
        "datasets.etc": common.tabletop("etc"),
        "steps": 2000,
        "batch_size": 16,
    },
    "paligemma_3b": {
        "init_from": "checkpoints/paligemma-3b-pt-224",
        "datasets.source": common.dataset("data/bridge_dataset", ("front",), adapter="bridge_v2"),
        "steps": 2000,
        "batch_size": 256,
        "optim.lr": ((0.0, 0.0), (0.03, 1e-5), (1.0, 1e-6)),
    },
}
ETC_DATASETS = {"tiny": ("source",), "tabletop": ("demos", "etc"), "paligemma_3b": ("source",)}
EXTRA_SEGMENTS = {"tiny": 3, "tabletop": 7, "paligemma_3b": 3}
OPTIONS = ("replay", "no_replay")


def get_config(variant: str = "tiny") -> ml_collections.ConfigDict:
    """Return the stage's config. Raises UserError for an unknown variant or option after "+"."""
    variant, options = common.parse_variant("distribution_bridge", variant, OPTIONS)
    c = common.base("distribution_bridge", variant, VARIANTS)
    common.override(c, VARIANTS[variant])
    extra = EXTRA_SEGMENTS[variant]
    common.add_streams(c, common.shared_etc_streams(ETC_DATASETS[variant], 1.0, extra))
    if common.has_replay(variant, options):
        common.add_replay(c)
    c.workdir = "_".join([c.workdir, *options])
    return c
