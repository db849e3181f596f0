"""Stage 3, Retentive Adaptation: a few demonstrations of the deployment scene, with its ETC.

    python launch/train.py --config=configs/retentive_adapt.py[:tiny|:paligemma_3b|:tiny+lora|:tiny+ood|...]

Tiny: three minutes on two cores; ten demonstrations a task in another light, on another table, from another camera.
With "+lora" adapters alone are trained, and what the stages before learnt stays in its bits beneath them.
With "+ood" six in a hundred ETC rows speak of scenes that no action was recorded in, as in the paper (tiny: recorded
states rendered again in other looks; full size: data/ood_etc).
"""

from configs import common

OOD_SHARE = 0.06  # of ETC rows; the paper's 6:94


def get_config(variant: str = "tiny"):
    variant, _, how = variant.partition("+")
    c = common.base("retentive_adapt", variant)
    extra_segments = (
        4 if variant == "paligemma_3b" else 2
    )  # as many as its longer rows have room for
    with c.unlocked():
        c.datasets.target = common.metaworld("target")
        c.streams = common.etc_streams("target", 0.2, extra_segments=extra_segments)
        c.streams.action = common.stream("target", "action", 0.8, extra_segments=extra_segments)
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
    for part in filter(None, how.split("+")):
        c.workdir += f"_{part}"
        if part == "lora":
            common.lora(c, rank=16)
        elif part == "ood":
            _mix_in_ood(c, variant, extra_segments)
        else:
            raise ValueError(
                f"configs/retentive_adapt.py: no way to adapt {part!r}; after + there are lora, ood"
            )
    return c


def _mix_in_ood(c, variant: str, extra_segments: int) -> None:
    """OOD ETC takes `OOD_SHARE` of the rows that ETC has; there are no actions in it."""
    etc = [name for name, stream in c.streams.items() if stream.kind != "action"]
    total = sum(c.streams[name].weight[0][1] for name in etc)
    with c.unlocked():
        for name in etc:
            c.streams[name].weight = tuple(
                (t, w * (1 - OOD_SHARE)) for t, w in c.streams[name].weight
            )
        c.datasets.ood = (
            common.metaworld_ood("target")
            if variant == "tiny"
            else common.dataset("data/ood_etc", ("image_0",))
        )
        c.streams.ood = common.stream(
            "ood", "any", total * OOD_SHARE, extra_segments=extra_segments
        )
