"""Stage 3, Retentive Adaptation: a few demonstrations of the deployment scene, with its ETC.

    python launch/train.py --config=configs/retentive_adapt.py[:tiny|:paligemma_3b|:tiny+lora|:paligemma_3b+lora]

Tiny: three minutes on two cores; ten demonstrations a task in another light, on another table, from another camera.
With "+lora" adapters alone are trained, and what the stages before learnt stays in its bits beneath them.
"""

from configs import common


def get_config(variant: str = "tiny"):
    variant, _, how = variant.partition("+")
    c = common.base("retentive_adapt", variant)
    riders = 4 if variant == "paligemma_3b" else 2  # as many as its longer rows have room for
    with c.unlocked():
        c.datasets.target = common.metaworld("target")
        c.streams = common.etc_streams("target", 0.2, riders=riders)
        c.streams.action = common.stream("target", "action", 0.8, riders=riders)
    c.init_from = f"runs/{variant}/objective_bridge"
    c.init_config = "configs/objective_bridge.py"
    c.loss.fast = common.constant(0.5)
    c.loss.flow = common.constant(1.0)
    c.optim.lr = ((0.0, 0.0), (0.05, 1e-3), (1.0, 3e-5))
    c.steps = 700
    c.batch_size = 16
    if variant == "paligemma_3b":
        c.init_config = ""
        c.datasets.target = common.dataset("data/deployment_etc", ("image_0",))
        c.steps = 20_000
        c.batch_size = 128
        c.loss.fast = common.constant(1.0)
    if how == "lora":
        c.workdir += "_lora"
        common.lora(c, rank=16)
    elif how:
        raise ValueError(f"configs/retentive_adapt.py: no way to adapt {how!r}; after + there is lora")
    return c
