"""Write one page about several runs: stages, scores with intervals, benchmarks, answers and videos.

    python launch/report.py --out=runs/a_and_b \\
        --checkpoint=runs/a/objective_bridge,runs/b/objective_bridge

Writes report.html to --out. Results that launch/knowledge.py wrote to the same folder are part of
the page. launch/recipe.py writes the page of a recipe.
"""

from absl import flags

from etcvla.pages.report import write_comparison
from launch import common

_CHECKPOINT = flags.DEFINE_list(
    "checkpoint", None, "Workdirs of the runs to compare.", required=True
)
_OUT = flags.DEFINE_string("out", None, "Folder to write to.", required=True)


def main(_: list[str]) -> None:
    """Write the page and print its path."""
    print(write_comparison(_CHECKPOINT.value, _OUT.value))


if __name__ == "__main__":
    common.run(main)
