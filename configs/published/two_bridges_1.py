"""Stage 1 of "Two Bridges, One Pathway" (arXiv 2606.08520): ETC of the robot's scenes alone.

    python launch/train.py --config=configs/published/two_bridges_1.py:paligemma_3b

From the authors' configs: learning rate 1e-5, 2,000 steps of 16 x 8,192 packed tokens, the weights
of the five kinds, all parameters trained. A row here is one frame: 256 image tokens and about 60
text tokens, so 26 rows are one of their packs. Our choice for what they do not state: a tenth of
the steps as warm-up, a cosine, AdamW and EMA as in stage 2.

`tiny` is the same on Meta-World, from random parameters, with the size and learning rate of the
tiny stages.
"""

import ml_collections

from configs import common

ROWS_PER_PACK = 26

VARIANTS = {
    "tiny": {
        "datasets.source": common.metaworld("source"),
        "steps": 1000,
        "batch_size": 32,
    },
    "paligemma_3b": {
        "init_from": "checkpoints/paligemma-3b-pt-224",
        "datasets.source": common.dataset("data/bridge_dataset", ("front",), adapter="bridge_v2"),
        "optim.lr": common.warmup_cosine(1e-5, 1e-6, warmup=200, steps=2000),
        "steps": 2000,
        "batch_size": 16 * ROWS_PER_PACK,
    },
}


def get_config(variant: str = "tiny") -> ml_collections.ConfigDict:
    """Return the recipe's config. Raises UserError for an unknown variant."""
    c = common.base("two_bridges_1", variant)
    c.model.state = "text"
    c.model.expert = "none"
    c.model.image_attends_prompt = True
    c.loss.form = "openpi"
    if variant == "paligemma_3b":
        common.openpi_optimizer(c)
    common.override(c, VARIANTS[variant])
    common.add_streams(c, common.etc_streams("source", 1.0, extra_segments=0))
    return c
