"""pi0-FAST as openpi trains it: a language model that writes FAST action tokens.

    python launch/train.py --config=configs/published/pi0_fast.py:paligemma_3b

The numbers come from openpi (github.com/Physical-Intelligence/openpi): Pi0FASTConfig's defaults and
Pi0FAST's loss, the mean over rows of each row's mean (src/openpi/models/pi0_fast.py),
FASTTokenizer's prompt and token layout (src/openpi/models/tokenizer.py), TrainConfig's optimizer.
Its `pi0_fast_libero` has chunks of 10 steps and 180 tokens: `--config.model.horizon=10
--config.data.text_len=180 --config.data.max_targets=120`. `data.fast` is the universal FAST
tokenizer, downloaded from huggingface.co/physical-intelligence/fast. Two differences remain: the
augmentation (as in pi0.py), and absent cameras are left out (openpi shows black images).

`tiny` is the same objective on Meta-World with a FAST tokenizer fitted to it, from random
parameters, with the size and learning rate of the tiny stages.
"""

import ml_collections

from configs import common

VARIANTS = {
    "tiny": {
        "datasets.source": common.metaworld("source"),
        "data.text_len": 112,
        "data.max_targets": 64,
        "steps": 2200,
        "batch_size": 16,
    },
    "paligemma_3b": {
        "init_from": "checkpoints/pi0_fast_base",
        "datasets.source": common.dataset("data/libero", ("image", "wrist_image")),
        "model.horizon": 32,
        "data.layout": "openpi",
        "data.fast": "checkpoints/fast",
        "data.fast_vocab": 2048,
        "data.text_len": 250,
        "data.max_targets": 180,
    },
}


def get_config(variant: str = "tiny") -> ml_collections.ConfigDict:
    """Return the recipe's config. Raises UserError for an unknown variant."""
    c = common.base("pi0_fast", variant)
    c.model.state = "text"
    c.model.expert = "none"
    c.model.image_attends_prompt = True
    c.model.count_absent_cameras = True
    c.data.prompt = "pi0_fast"
    c.data.norm = "quantile"
    c.loss.form = "openpi"
    c.loss.text = common.constant(0.0)
    c.loss.fast = common.constant(1.0)
    if variant == "paligemma_3b":
        common.openpi_optimizer(c)
    common.override(c, VARIANTS[variant])
    common.add_streams(c, {"action": common.stream("source", "action", 1.0, extra_segments=0)})
    return c
