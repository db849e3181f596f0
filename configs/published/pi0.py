"""pi0 as openpi trains it: flow matching alone, state as a token, images attend to the prompt.

    python launch/train.py --config=configs/published/pi0.py:paligemma_3b

The numbers come from openpi (github.com/Physical-Intelligence/openpi): Pi0Config's defaults for the
model (src/openpi/models/pi0_config.py), TrainConfig for data and optimizer
(src/openpi/training/config.py), which normalises pi0 alone by mean and standard deviation. As in
openpi, action dimensions that a robot lacks are trained as zeros, and the last action is trained as
repeated past the end of an episode. Two differences remain: images are augmented by shifts and
colours (openpi crops, rotates and jitters), and absent cameras are left out (openpi masks them).

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
        "init_from": "checkpoints/pi0_base",
        "datasets.source": common.dataset("data/libero", ("image", "wrist_image")),
        "model.horizon": 50,
        "data.text_len": 48,
        "data.max_targets": 0,
    },
}


def get_config(variant: str = "tiny") -> ml_collections.ConfigDict:
    """Return the recipe's config. Raises UserError for an unknown variant."""
    c = common.base("pi0", variant)
    c.model.state = "token"
    c.model.expert = "plain"
    c.model.insulate = common.constant(0.0)
    c.model.image_attends_prompt = True
    c.data.prompt = "pi0"
    c.data.norm = "zscore"
    c.data.mask_padding = False
    c.loss.form = "openpi"
    c.loss.text = common.constant(0.0)
    c.loss.flow = common.constant(1.0)
    if variant == "paligemma_3b":
        common.openpi_optimizer(c)
    common.override(c, VARIANTS[variant])
    common.add_streams(c, {"action": common.stream("source", "action", 1.0, extra_segments=0)})
    return c
