"""Stage 2, Objective Bridging: train on actions, and keep ETC from the same scenes in the mixture.

    python launch/train.py --config=configs/objective_bridge.py[:VARIANT][+paper][+replay]

Tiny: eight minutes on two cores (plus the data and the earlier stages, if missing); six Meta-World
tasks. The share of ETC in rows and objective falls from 80 % to 20 % in the first half of the
stage. With the extra questions on action rows, launch/plan.py prints 80.4 % of the loss for answers
at the start and 25.9 % at the end. The backbone learns FAST tokens and answers; the action expert
learns the flow.

Tabletop: the task "touch", with ETC of other scenes that have further words. The action expert
alone learns the actions, as a flow, and its gradient reaches the backbone.

"+paper" is the paper's mixture: four action rows for each ETC row throughout, no extra questions,
the losses of actions and answers added with unit weights (50 % each). "+replay" gives 10 % of the
objective to the base model's data; full size does that unless "+no_replay" (see
distribution_bridge.py).
"""

import ml_collections

from configs import common

ETC_SHARE = ((0.0, 0.8), (0.5, 0.2))
ACTION_SHARE = ((0.0, 0.2), (0.5, 0.8))
PAPER_ETC_SHARE = 0.2
PAPER_ACTION_SHARE = 0.8
OPTIONS = ("paper", "replay", "no_replay")

VARIANTS = {
    "tiny": {
        "init_from": "runs/tiny/distribution_bridge",
        "init_config": "configs/distribution_bridge.py",
        "datasets.source": common.metaworld("source"),
        "loss.fast": common.constant(0.5),
        "steps": 2200,
        "batch_size": 16,
    },
    "tabletop": {
        "init_from": "runs/tabletop/distribution_bridge",
        "init_config": "configs/distribution_bridge.py:tabletop",
        "datasets.demos": common.tabletop("demos"),
        "datasets.etc": common.tabletop("etc"),
        "model.insulate": common.constant(0.0),
        "data.actions_per_row": 5,
        "loss.noise_samples": 5,
        "steps": 4000,
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
ETC_DATASETS = {"tiny": ("source",), "tabletop": ("demos", "etc"), "paligemma_3b": ("source",)}
EXTRA_SEGMENTS = {"tiny": 2, "tabletop": 4, "paligemma_3b": 4}  # as many as fit into a row's text


def get_config(variant: str = "tiny") -> ml_collections.ConfigDict:
    """Return the stage's config. Raises UserError for an unknown variant or option after "+"."""
    variant, options = common.parse_variant("objective_bridge", variant, OPTIONS)
    c = common.base("objective_bridge", variant, VARIANTS)
    common.override(c, VARIANTS[variant])
    c.loss.flow = common.constant(1.0)
    if "paper" in options:
        c.loss.form = "objectives"
        if variant != "tabletop":
            c.loss.fast = common.constant(1.0)
        _add_streams(c, PAPER_ETC_SHARE, PAPER_ACTION_SHARE, extra_segments=0)
    else:
        _add_streams(c, ETC_SHARE, ACTION_SHARE, EXTRA_SEGMENTS[variant])
    if common.has_replay(variant, options) and "paper" not in options:
        common.add_replay(c)
    c.workdir = "_".join([c.workdir, *options])
    return c


def _add_streams(
    c: ml_collections.ConfigDict, etc: float | tuple, action: float | tuple, extra_segments: int
) -> None:
    """Add the streams of ETC and actions with their shares."""
    names = ETC_DATASETS[c.variant]
    streams = common.shared_etc_streams(names, etc, extra_segments)
    streams["action"] = common.stream(names[0], "action", action, extra_segments)
    common.add_streams(c, streams)
