"""Print each stream's share of a stage's rows, segments and loss, and save a picture of them.

python launch/plan.py --config=configs/objective_bridge.py[:VARIANT] [--out=plan.png]
"""

from absl import flags
from ml_collections import config_flags

from etcvla.pages.plan import plot_plan
from etcvla.train.plan_table import plan_table
from etcvla.train.stage import Stage, make_plan, missing_paths
from launch import common

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file of a stage, with a variant after a colon."
)
_OUT = flags.DEFINE_string("out", "", "Picture to write; default: <stage>_<variant>_plan.png.")


def main(_: list[str]) -> None:
    """Print the plan's table and write its picture."""
    config = _CONFIG.value
    plan = make_plan(config)
    num_frames = {}
    if not any(field.startswith("datasets.") for field in missing_paths(config)):
        candidates = Stage.open(config).row_builder().candidates
        for stream, frames in zip(plan.streams, candidates, strict=True):
            num_frames[stream.name] = len(frames)
    print(plan_table(config, plan, num_frames))
    path = _OUT.value or f"{config.stage}_{config.variant}_plan.png"
    common.check_out_file(path)
    plot_plan(config, plan, path)
    print(f"picture: {path}")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    common.run(main)
