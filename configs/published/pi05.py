"""pi0.5 as openpi fine-tunes it: flow matching alone, the state in the prompt, time in the expert's norms.

    python launch/train.py --config=configs/published/pi05.py:paligemma_3b

Numbers of openpi (github.com/Physical-Intelligence/openpi): the model's are Pi0Config's with pi05=True
(src/openpi/models/pi0_config.py), the optimizer's those of `pi05_libero` (src/openpi/training/config.py: 256 rows,
10,000 steps of warm-up to a rate that stays, EMA .999). That config has chunks of 10 steps and leaves the state out:
`--config.model.horizon=10 --config.data.prompt=pi0`. What differs from openpi stands in pi0.py.

What pi0.5's own training had besides (arXiv 2504.16054: FAST tokens and subtasks in the backbone, whose gradient the
expert does not reach) is what configs/objective_bridge.py does with `--config.data.prompt=pi05_subtask`.

`tiny` is the same objective on Meta-World, from random parameters, at the size and rates of the tiny stages.
"""

from configs import common


def get_config(variant: str = "tiny"):
    c = common.base("pi05", variant)
    c.model.state = "text"
    c.model.expert = "adaptive"
    c.model.insulate = common.constant(0.0)
    c.model.image_attends_prompt = True
    c.data.prompt = "pi05"
    c.data.norm = "quantile"
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
        c.optim.lr = ((0.0, 5e-5 / 10_001), (1 / 3, 5e-5))
        c.optim.ema = 0.999
        c.batch_size = 256
        c.init_from = "checkpoints/pi05_base"
        c.datasets.source = common.dataset("data/libero", ("image", "wrist_image"))
        c.model.horizon = 50
        c.data.text_len = 200
        c.data.max_targets = 0
    return c
