"""Stage 0: train a small VLM on pictures of the tabletop, a substitute for PaliGemma.

    python launch/train.py --config=configs/vlm_pretrain.py

Tiny: the model learns all nouns and colors of the tabletop: naming, points, boxes, counts,
relations and captions. All tiny stages start from it. `loss.image` makes it learn to look at a
place within 300 steps; without it, it had not learned that after 1000. Full size starts from
released PaliGemma weights and needs no such stage; its variant is for runs from scratch.
"""

import ml_collections

from configs import common

VARIANTS = {
    "tiny": {
        "datasets.tabletop_vqa": common.tabletop_vqa(),
        "streams.tabletop_vqa": common.stream("tabletop_vqa", "any", 1.0, extra_segments=17),
        "extra_segment_weights": common.TABLETOP_VQA_WEIGHTS,
        "data.text_len": common.TABLETOP_TEXT_LEN,
        "data.max_targets": common.TABLETOP_MAX_TARGETS,
        "loss.image": common.constant(1.0),
        "steps": 5000,
        "batch_size": 16,
    },
    "paligemma_3b": {
        "datasets.web_vqa": common.dataset("data/web_vqa", ("image",)),
        "streams.web_vqa": common.stream("web_vqa", "any", 1.0, extra_segments=3),
        "extra_segment_weights": {
            "caption": 1.0,
            "locate": 1.0,
            "count": 1.0,
            "relation": 1.0,
            "read": 1.0,
        },
        "steps": 100_000,
        "batch_size": 2048,
    },
}


def get_config(variant: str = "tiny") -> ml_collections.ConfigDict:
    """Return the stage's config. Raises UserError for an unknown variant."""
    c = common.base("vlm_pretrain", variant, VARIANTS)
    common.override(c, VARIANTS[variant])
    c.data.num_cameras = 1
    return c
