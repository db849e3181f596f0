"""pi0 as openpi trains it: flow matching alone, the state as a token, images that read the prompt.

    python launch/train.py --config=configs/published/pi0.py:paligemma_3b

Numbers of openpi (github.com/Physical-Intelligence/openpi): the model's are Pi0Config's defaults
(src/openpi/models/pi0_config.py), the data's and the optimizer's TrainConfig's (src/openpi/training/config.py), where
pi0 alone is normalised by mean and deviation. As there, widths that a robot lacks are learnt as zeros and the last
action is learnt past the episode's end. Different from there: images are augmented by shifts and colours (openpi
crops, rotates and jitters), and cameras that a dataset lacks are left out (openpi masks them).

`tiny` is the same objective on Meta-World, from random parameters, at the size and rates of the tiny stages.
"""

from configs import common


def get_config(variant: str = "tiny"):
    c = common.base("pi0", variant)
    c.model.state = "token"
    c.model.expert = "plain"
    c.model.insulate = common.constant(0.0)
    c.model.image_attends_prompt = True
    c.data.prompt = "pi0"
    c.data.norm = "zscore"
    c.data.mask_padding = False
    c.loss.text = common.constant(0.0)
    c.loss.flow = common.constant(1.0)
    with c.unlocked():
        c.datasets.source = common.metaworld("source")
        c.streams.action = common.stream("source", "action", 1.0, extra_segments=0)
    c.steps = 2200
    c.batch_size = 16
    if variant == "paligemma_3b":
        common.openpi_optimizer(c)
        c.init_from = "checkpoints/pi0_base"
        c.datasets.source = common.dataset("data/libero", ("image", "wrist_image"))
        c.model.horizon = 50
        c.data.text_len = 48
        c.data.max_targets = 0
    return c
