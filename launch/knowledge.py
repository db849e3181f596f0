"""What checkpoints know: held-out answers by kind, drift of their features, and where their attention lies.

    python launch/knowledge.py --workdirs=runs/a/distribution_bridge,runs/a/objective_bridge --out=runs/a/knowledge

Writes knowledge.html, knowledge.csv and knowledge.json to --out. The first checkpoint is what the others have drifted
from.
"""

import json

from absl import flags
from etils import epath

from etcvla.eval.evaluate import open_splits
from etcvla.eval.knowledge import compare_checkpoints, write_csv
from etcvla.pages.knowledge import sections
from etcvla.pages.report import make_page
from launch import common

_WORKDIRS = flags.DEFINE_list(
    "workdirs", None, "Runs whose newest checkpoints are compared.", required=True
)
_OUT = flags.DEFINE_string("out", None, "Folder to write to.", required=True)
_DATASETS = flags.DEFINE_list(
    "datasets",
    ["shapes", "source"],
    "Where questions come from: shapes, source, target, or "
    "the directory of a set with the cameras front and wrist.",
)
_DATA_ROOT = flags.DEFINE_string("data_root", "data", "Where the embedded datasets lie.")
_QUESTIONS = flags.DEFINE_integer("questions", 96, "Held-out questions a kind and dataset.")
_PROBES = flags.DEFINE_integer(
    "probes", 256, "Frames by which features and attention are compared; 0: they are not."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the choice of questions, the noise and the bootstrap.")


def main(_):
    sets = {
        name: open_splits(*place)
        for name, place in common.question_sets(_DATASETS.value, _DATA_ROOT.value).items()
    }
    found = compare_checkpoints(
        _WORKDIRS.value, sets, questions=_QUESTIONS.value, probes=_PROBES.value, seed=_SEED.value
    )
    out = epath.Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    (out / "knowledge.json").write_text(json.dumps(found, indent=1))
    write_csv(out / "knowledge.csv", found)
    (out / "knowledge.html").write_text(
        make_page("What they know", f"<h1>{', '.join(found)}</h1>", sections(found))
    )
    print(out / "knowledge.html")


if __name__ == "__main__":
    common.run(main)
