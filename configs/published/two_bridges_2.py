"""Stage 2 of "Two Bridges, One Pathway" (arXiv 2606.08520): pi0-FAST's objective, and ETC from the same scenes.

    python launch/train.py --config=configs/published/two_bridges_2.py:paligemma_3b

From the authors' configs: 32 rows of actions and 8 of ETC a step, their gradients added with unit weights, 100,000
steps, AdamW with b2 .95, clip 1, EMA .99, rate 2.5e-5 to 2.5e-6. The policy is pi0-FAST at 224 px, so prompt, loss and
masks are those of pi0_fast.py; ids keep apart, since the answers need the location tokens. Our choice where they are
silent: 1,000 steps of warm-up and a cosine over the whole run (openpi's schedule, stretched), FAST fitted to the data.
Stage 3 is the same on the target's data: `--config.init_from=... --config.datasets.source.path=...`.

`tiny` is the same on Meta-World, at the size and rates of the tiny stages.
"""

from configs import common


def get_config(variant: str = "tiny"):
    c = common.base("two_bridges_2", variant)
    c.model.state = "text"
    c.model.expert = "none"
    c.model.image_attends_prompt = True
    c.data.prompt = "pi0_fast"
    c.data.norm = "quantile"
    c.loss.mean = "segment"
    c.loss.fast = common.constant(1.0)
    with c.unlocked():
        c.datasets.source = common.metaworld("source")
        c.streams = common.etc_streams("source", 8.0, extra_segments=0)
        c.streams.action = common.stream("source", "action", 32.0, extra_segments=0)
    c.init_from = f"runs/{variant}/two_bridges_1"
    c.init_config = "configs/published/two_bridges_1.py"
    c.data.text_len = 112
    c.data.max_targets = 64
    c.steps = 2200
    c.batch_size = 20
    if variant == "paligemma_3b":
        common.openpi_optimizer(c)
        c.optim.lr = common.warmup_cosine(2.5e-5, 2.5e-6, warmup=1000, steps=100_000)
        c.init_config = ""
        c.datasets.source = common.dataset("data/bridge_dataset", ("front",), adapter="bridge_v2")
        c.steps = 100_000
        c.data.text_len = 250
        c.data.max_targets = 180
        c.batch_size = 40
    return c
