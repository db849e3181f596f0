"""Stage 2, Objective Bridging: train on actions, and keep ETC from the same scenes in the mixture.

    python launch/train.py --config=configs/objective_bridge.py

Tiny: eight minutes on two cores (plus the data and the earlier stages, if missing); six Meta-World
tasks. The share of ETC rows falls from 40 % to 20 % (four action rows for each ETC row) in the
first 30 % of the stage. The backbone learns FAST tokens and answers; the action expert learns the
flow.
"""

import ml_collections

from configs import common

ETC_SHARE = ((0.0, 0.4), (0.3, 0.2))
ACTION_SHARE = ((0.0, 0.6), (0.3, 0.8))

VARIANTS = {
    "tiny": {
        "init_from": "runs/tiny/distribution_bridge",
        "init_config": "configs/distribution_bridge.py",
        "datasets.source": common.metaworld("source"),
        "loss.fast": common.constant(0.5),
        "steps": 2200,
        "batch_size": 16,
    },
    "paligemma_3b": {
        "init_from": "runs/paligemma_3b/distribution_bridge",
        "datasets.source": common.dataset("data/bridge_dataset", ("front",), adapter="bridge_v2"),
        "loss.fast": common.constant(1.0),
        "steps": 100_000,
        "batch_size": 256,
    },
}
EXTRA_SEGMENTS = {"tiny": 2, "paligemma_3b": 4}  # as many as fit into a row's text


def get_config(variant: str = "tiny") -> ml_collections.ConfigDict:
    """Return the stage's config. Raises UserError for an unknown variant."""
    c = common.base("objective_bridge", variant)
    common.override(c, VARIANTS[variant])
    extra = EXTRA_SEGMENTS[variant]
    common.add_streams(c, common.etc_streams("source", ETC_SHARE, extra))
    common.add_streams(c, {"action": common.stream("source", "action", ACTION_SHARE, extra)})
    c.loss.flow = common.constant(1.0)
    return c
