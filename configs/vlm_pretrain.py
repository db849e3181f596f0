"""Stage 0: train a small VLM on 2-D shapes, the tiny recipe's substitute for PaliGemma.

    python launch/train.py --config=configs/vlm_pretrain.py

Tiny: two to three minutes on two cores. It learns to name colours and the format of every answer;
two minutes from random weights are not enough to locate, relate or read (the first table of the
report has the numbers). Full size starts from released PaliGemma weights and needs no such stage;
its variant is for runs from scratch.
"""

import ml_collections

from configs import common

VARIANTS = {
    "tiny": {
        "datasets.shapes": common.shapes(),
        "steps": 800,
        "batch_size": 16,
    },
    "paligemma_3b": {
        "datasets.shapes": common.dataset("data/web_vqa", ("image",)),
        "steps": 100_000,
        "batch_size": 2048,
    },
}


def get_config(variant: str = "tiny") -> ml_collections.ConfigDict:
    """Return the stage's config. Raises UserError for an unknown variant."""
    c = common.base("vlm_pretrain", variant)
    common.override(c, VARIANTS[variant])
    common.add_streams(c, {"shapes": common.stream("shapes", "any", 1.0, extra_segments=3)})
    with c.unlocked():
        c.extra_segment_weights = {
            "caption": 1.0,
            "locate": 1.0,
            "count": 1.0,
            "relation": 1.0,
            "read": 1.0,
        }
    c.data.num_cameras = 1
    return c
