"""Prints what a stage will draw, and writes a picture of it, before anything is paid for.

python launch/plan.py --config=configs/objective_bridge.py[:VARIANT] [--png=plan.png]
"""

from absl import flags
from ml_collections import config_flags

from etcvla.pages.plan import plot_plan
from etcvla.train.plan_table import plan_table
from etcvla.train.stage import Stage, make_plan, missing_paths
from launch import common

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A stage's config file, with its variant after a colon."
)
_PNG = flags.DEFINE_string(
    "png", "", "Where the picture goes; by default <stage>_<variant>_plan.png."
)


def main(_):
    config = _CONFIG.value
    plan, sizes = make_plan(config), {}
    lacking = missing_paths(config)
    if not any(field.startswith("datasets.") for field in lacking):
        candidates = Stage.open(config).row_builder().candidates
        sizes = {
            stream.name: len(frames)
            for stream, frames in zip(plan.streams, candidates, strict=True)
        }
    print(plan_table(config, plan, sizes))
    path = _PNG.value or f"{config.stage}_{config.variant}_plan.png"
    plot_plan(plan, path, f"{config.stage}:{config.variant}")
    print(f"picture: {path}")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    common.run(main)
