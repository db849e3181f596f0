"""Stage 1, Distribution Bridging: the VLM learns the robot's scenes, still by answering. ETC only.

    python launch/train.py --config=configs/distribution_bridge.py

Tiny: four minutes on two cores; held-out ETC answers of every kind above their majority answer.
Everything is trained, the vision tower too: freezing it cost the paper 0.812 -> 0.673 on SimplerEnv.
"""

from configs import common


def get_config(variant: str = "tiny"):
    c = common.base("distribution_bridge", variant)
    with c.unlocked():
        c.datasets.source = common.metaworld("source")
        c.datasets.shapes = common.shapes()
        c.streams = common.etc_streams("source", 1.0, extra_segments=3)
    c.init_from = f"runs/{variant}/vlm_pretrain"
    c.init_config = "configs/vlm_pretrain.py"
    c.steps = 1000
    c.batch_size = 16
    if variant == "paligemma_3b":
        c.init_from = "checkpoints/paligemma-3b-pt-224"
        c.init_config = ""
        c.datasets.source = common.dataset("data/bridge_dataset", ("front",), adapter="bridge_v2")
        c.steps = 2000
        c.batch_size = 256
        c.optim.lr = ((0.0, 0.0), (0.03, 1e-5), (1.0, 1e-6))
    return c
