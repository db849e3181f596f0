"""Stage 0: a small VLM learns to look at pictures and answer: the stand-in for a released PaliGemma.

    python launch/train.py --config=configs/vlm_pretrain.py

Tiny: two to three minutes on two cores. It learns to name colours and the form of every answer; two minutes from
random weights are not enough to locate, relate or read (the report's first table says by how much).
Full size needs no such stage (it starts from released PaliGemma weights); the variant is here for runs from scratch.
"""

from configs import common


def get_config(variant: str = "tiny"):
    c = common.base("vlm_pretrain", variant)
    with c.unlocked():
        c.datasets.shapes = common.shapes()
        c.streams.shapes = common.stream("shapes", "any", 1.0, extra_segments=3)
        c.extra_segment_weights = {
            "caption": 1.0,
            "locate": 1.0,
            "count": 1.0,
            "relation": 1.0,
            "read": 1.0,
        }
    c.data.num_cameras = 1
    c.steps = 800
    c.batch_size = 16
    if variant == "paligemma_3b":
        c.datasets.shapes.path = "data/web_vqa"
        c.datasets.shapes.build = ()
        c.steps = 100_000
        c.batch_size = 2048
    return c
