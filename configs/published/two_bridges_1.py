"""Stage 1 of "Two Bridges, One Pathway" (arXiv 2606.08520): the VLM learns the robot's scenes from ETC alone.

    python launch/train.py --config=configs/published/two_bridges_1.py:paligemma_3b

From the authors' configs: rate 1e-5, 2,000 steps of 16 x 8,192 packed tokens, the weights of the five kinds,
everything trained. A row here is one look: 256 image tokens and about 60 of text, so 26 rows are one of their packs.
Our choice where they are silent: a tenth of the steps as warm-up and a cosine, AdamW and EMA as in stage 2.

`tiny` is the same on Meta-World, from random parameters, at the size and rates of the tiny stages.
"""

from configs import common


def get_config(variant: str = "tiny"):
    c = common.base("two_bridges_1", variant)
    c.model.state = "text"
    c.model.expert = "none"
    c.model.image_attends_prompt = True
    c.loss.mean = "segment"
    with c.unlocked():
        c.datasets.source = common.metaworld("source")
        c.streams = common.etc_streams("source", 1.0, extra_segments=0)
    c.steps = 1000
    c.batch_size = 32
    if variant == "paligemma_3b":
        common.openpi_optimizer(c)
        c.optim.lr = common.warmup_cosine(1e-5, 1e-6, warmup=200, steps=2000)
        c.init_from = "checkpoints/paligemma-3b-pt-224"
        c.datasets.source = common.dataset("data/bridge_dataset", ("front",), adapter="bridge_v2")
        c.steps = 2000
        c.batch_size = 16 * 26
    return c
