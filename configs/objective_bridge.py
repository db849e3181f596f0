"""Stage 2, Objective Bridging: actions join, ETC from the same scenes stays.

    python launch/train.py --config=configs/objective_bridge.py

Tiny: eight minutes on two cores (plus the data and the stages before it, if missing); six Meta-World tasks.
The share of ETC rows falls to the paper's 4:1; the backbone learns FAST tokens and answers, the expert the flow.
"""

from configs import common


def get_config(variant: str = "tiny"):
    c = common.base("objective_bridge", variant)
    extra_segments = (
        4 if variant == "paligemma_3b" else 2
    )  # as many as its longer rows have room for
    with c.unlocked():
        c.datasets.source = common.metaworld("source")
        c.streams = common.etc_streams(
            "source", ((0.0, 0.4), (0.3, 0.2)), extra_segments=extra_segments
        )
        c.streams.action = common.stream(
            "source", "action", ((0.0, 0.6), (0.3, 0.8)), extra_segments=extra_segments
        )
    c.init_from = f"runs/{variant}/distribution_bridge"
    c.init_config = "configs/distribution_bridge.py"
    c.loss.fast = common.constant(0.5)
    c.loss.flow = common.constant(1.0)
    c.steps = 2200
    c.batch_size = 16
    if variant == "paligemma_3b":
        c.init_config = ""
        c.datasets.source = common.dataset("data/bridge_dataset", ("front",), adapter="bridge_v2")
        c.steps = 100_000
        c.batch_size = 256
        c.loss.fast = common.constant(1.0)
    return c
