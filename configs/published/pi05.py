"""pi0.5 as openpi fine-tunes it: flow matching alone, state as text, adaptive norms.

    python launch/train.py --config=configs/published/pi05.py:paligemma_3b

The numbers come from openpi (github.com/Physical-Intelligence/openpi): Pi0Config with pi05=True for
the model (src/openpi/models/pi0_config.py) and `pi05_libero` for the optimizer
(src/openpi/training/config.py: 256 rows, 10,000 steps of warm-up to a constant rate, EMA 0.999).
That config has chunks of 10 steps and no state in the prompt: `--config.model.horizon=10
--config.data.prompt=pi0`. The differences from openpi are those of pi0.py.

pi0.5's own training also had FAST tokens and subtasks in the backbone, which the expert's gradient
does not reach (arXiv 2504.16054). configs/objective_bridge.py with
`--config.data.prompt=pi05_subtask` does that.

`tiny` is the same objective on Meta-World, from random parameters, with the size and learning rate
of the tiny stages.
"""

import ml_collections

from configs import common

VARIANTS = {
    "tiny": {
        "datasets.source": common.metaworld("source"),
        "steps": 2200,
        "batch_size": 16,
    },
    "paligemma_3b": {
        "init_from": "checkpoints/pi05_base",
        "datasets.source": common.dataset("data/libero", ("image", "wrist_image")),
        "model.horizon": 50,
        "data.text_len": 200,
        "data.max_targets": 0,
        "optim.lr": ((0.0, 5e-5 / 10_001), (1 / 3, 5e-5)),
        "optim.ema": 0.999,
        "batch_size": 256,
    },
}


def get_config(variant: str = "tiny") -> ml_collections.ConfigDict:
    """Return the recipe's config. Raises UserError for an unknown variant."""
    c = common.base("pi05", variant)
    c.model.state = "text"
    c.model.expert = "adaptive"
    c.model.insulate = common.constant(0.0)
    c.model.image_attends_prompt = True
    c.data.prompt = "pi05"
    c.data.norm = "quantile"
    c.data.mask_padding = False
    c.loss.form = "openpi"
    c.loss.text = common.constant(0.0)
    c.loss.flow = common.constant(1.0)
    if variant == "paligemma_3b":
        common.openpi_optimizer(c)
    common.override(c, VARIANTS[variant])
    common.add_streams(c, {"action": common.stream("source", "action", 1.0, extra_segments=0)})
    return c
