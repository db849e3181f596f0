"""Stage 2 of "Two Bridges, One Pathway" (arXiv 2606.08520): pi0-FAST's objective and ETC.

    python launch/train.py --config=configs/published/two_bridges_2.py:paligemma_3b

From the authors' configs: 32 rows of actions and 8 of ETC per step, their gradients added with unit
weights, 100,000 steps, AdamW with b2 0.95, clip 1, EMA 0.99, learning rate 2.5e-5 to 2.5e-6. The
policy is pi0-FAST at 224 px, so prompt, loss and masks are those of pi0_fast.py; token ids stay
disjoint, since the answers need the location tokens. Our choice for what they do not state: 1,000
steps of warm-up and a cosine over the whole run (openpi's schedule, stretched), FAST fitted to the
data. Stage 3 is the same config on the target's data: `--config.init_from=...
--config.datasets.source.path=...`.

`tiny` is the same on Meta-World, with the size and learning rate of the tiny stages.
"""

import ml_collections

from configs import common

# Rows of each step.
ACTION_ROWS = 32.0
ETC_ROWS = 8.0

VARIANTS = {
    "tiny": {
        "init_from": "runs/tiny/two_bridges_1",
        "init_config": "configs/published/two_bridges_1.py",
        "datasets.source": common.metaworld("source"),
        "data.text_len": 112,
        "data.max_targets": 64,
        "steps": 2200,
        "batch_size": 20,
    },
    "paligemma_3b": {
        "init_from": "runs/paligemma_3b/two_bridges_1",
        "datasets.source": common.dataset("data/bridge_dataset", ("front",), adapter="bridge_v2"),
        "data.text_len": 250,
        "data.max_targets": 180,
        "optim.lr": common.warmup_cosine(2.5e-5, 2.5e-6, warmup=1000, steps=100_000),
        "steps": 100_000,
        "batch_size": 40,
    },
}


def get_config(variant: str = "tiny") -> ml_collections.ConfigDict:
    """Return the recipe's config. Raises UserError for an unknown variant."""
    c = common.base("two_bridges_2", variant)
    c.model.state = "text"
    c.model.expert = "none"
    c.model.image_attends_prompt = True
    c.data.prompt = "pi0_fast"
    c.data.norm = "quantile"
    # Answers and actions have half of the objective each; times 2, both have unit weight.
    c.loss.text = common.constant(2.0)
    c.loss.fast = common.constant(2.0)
    if variant == "paligemma_3b":
        common.openpi_optimizer(c)
    common.override(c, VARIANTS[variant])
    streams = common.etc_streams("source", 1.0, extra_segments=0)
    for stream in streams.values():
        stream["rows"] = common.scale(stream["weight"], ETC_ROWS)
    streams["action"] = common.stream("source", "action", 1.0, extra_segments=0)
    streams["action"]["rows"] = common.constant(ACTION_ROWS)
    common.add_streams(c, streams)
    return c
