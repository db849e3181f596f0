"""A page about runs side by side: stages, scores with intervals, benchmarks, answers and videos, failures first.

    python launch/report.py --workdirs=runs/a/objective_bridge,runs/b/objective_bridge --out=runs/a_and_b

Writes report.html to --out; what `launch/knowledge.py --out` left in the same folder stands in it. The page of one
recipe is written by launch/recipe.py.
"""

from absl import flags

from etcvla.pages.report import write_comparison
from launch import common

_WORKDIRS = flags.DEFINE_list("workdirs", None, "Runs that are compared.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder to write to.", required=True)


def main(_):
    print(write_comparison(_WORKDIRS.value, _OUT.value))


if __name__ == "__main__":
    common.run(main)
