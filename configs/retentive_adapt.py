"""Stage 3, Retentive Adaptation: adapt to a new scene with few demonstrations and its ETC.

    python launch/train.py --config=configs/retentive_adapt.py[:VARIANT][+lora][+ood][+replay]

Tiny: three minutes on two cores; ten demonstrations per task with another light, table and camera.
Four action rows for each ETC row; with the extra questions on action rows, launch/plan.py prints
25.9 % of the loss for answers.

"+lora" trains LoRA adapters alone, so that the parameters of the earlier stages stay as they are.
"+ood" takes 6 % of the ETC rows from scenes without recorded actions, as in the paper (tiny:
recorded states rendered under other conditions; tabletop: scenes with words that no other data
have; full size: data/ood_etc). Tabletop: a sixth of the demonstrations. "+replay" gives 10 % of
the objective to the base model's data; full size does that unless "+no_replay" (see
distribution_bridge.py).
"""

import ml_collections

from configs import common

ETC_SHARE = 0.2
ACTION_SHARE = 0.8
OPTIONS = ("lora", "ood", "replay", "no_replay")
OOD_SHARE = 0.06  # of the ETC rows; the paper has 6:94

VARIANTS = {
    "tiny": {
        "init_from": "runs/tiny/objective_bridge",
        "init_config": "configs/objective_bridge.py",
        "datasets.target": common.metaworld("target"),
        "loss.fast": common.constant(0.5),
        "steps": 700,
        "batch_size": 16,
    },
    "tabletop": {
        "init_from": "runs/tabletop/objective_bridge",
        "init_config": "configs/objective_bridge.py:tabletop",
        "datasets.target": common.tabletop("demos", episodes=200),
        "model.insulate": common.constant(0.0),
        "data.actions_per_row": 5,
        "loss.noise_samples": 5,
        "steps": 1000,
        "batch_size": 16,
    },
    "paligemma_3b": {
        "init_from": "runs/paligemma_3b/objective_bridge",
        "datasets.target": common.dataset("data/deployment_etc", ("image_0",)),
        "loss.fast": common.constant(1.0),
        "steps": 20_000,
        "batch_size": 128,
    },
}
EXTRA_SEGMENTS = {"tiny": 2, "tabletop": 4, "paligemma_3b": 4}  # as many as fit into a row's text
OOD_DATASETS = {
    "tiny": common.metaworld_ood("target"),
    "tabletop": common.tabletop("ood"),
    "paligemma_3b": common.dataset("data/ood_etc", ("image_0",)),
}


def get_config(variant: str = "tiny") -> ml_collections.ConfigDict:
    """Return the stage's config. Raises UserError for an unknown variant or option after "+"."""
    variant, options = common.parse_variant("retentive_adapt", variant, OPTIONS)
    c = common.base("retentive_adapt", variant, VARIANTS)
    common.override(c, VARIANTS[variant])
    extra = EXTRA_SEGMENTS[variant]
    common.add_streams(c, common.etc_streams("target", ETC_SHARE, extra))
    common.add_streams(c, {"action": common.stream("target", "action", ACTION_SHARE, extra)})
    c.loss.flow = common.constant(1.0)
    c.optim.lr = ((0.0, 0.0), (0.05, 1e-3), (1.0, 3e-5))
    if "lora" in options:
        common.lora(c, rank=16)
    if "ood" in options:
        _add_ood_stream(c, variant)
    if common.has_replay(variant, options):
        common.add_replay(c)
    c.workdir = "_".join([c.workdir, *options])
    return c


def _add_ood_stream(c: ml_collections.ConfigDict, variant: str) -> None:
    """Give `OOD_SHARE` of the ETC rows to a stream of out-of-distribution ETC."""
    in_distribution = [stream for stream in c.streams.values() if stream.kind != "action"]
    total = sum(stream.weight[0][1] for stream in in_distribution)
    for stream in in_distribution:
        stream.weight = common.scale(stream.weight, 1 - OOD_SHARE)
    common.override(c, {"datasets.ood": OOD_DATASETS[variant]})
    ood = common.stream("ood", "any", total * OOD_SHARE, EXTRA_SEGMENTS[variant])
    common.add_streams(c, {"ood": ood})
