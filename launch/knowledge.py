"""Compare checkpoints: held-out answers by kind, drift of features, and attention.

    python launch/knowledge.py --out=runs/a/knowledge \\
        --checkpoint=runs/a/distribution_bridge,runs/a/objective_bridge

Writes knowledge.html, knowledge.csv and knowledge.json to --out. Drift is measured from the first
checkpoint.
"""

from absl import flags
from etils import epath

from etcvla.eval.evaluate import open_splits
from etcvla.eval.knowledge import compare_checkpoints, write_csv
from etcvla.files import write_json
from etcvla.pages.knowledge import write_knowledge_page
from etcvla.results_schema import BASE_DATA
from launch import common

_CHECKPOINT = flags.DEFINE_list(
    "checkpoint", None, "Workdirs or checkpoints to compare.", required=True
)
_OUT = flags.DEFINE_string("out", None, "Folder to write to.", required=True)
_DATASETS = flags.DEFINE_list(
    "datasets",
    [BASE_DATA, "source"],
    "Datasets of the questions: tabletop_vqa, shapes, demos, etc, ood, source, target, or the "
    "folder of a dataset with the cameras front and wrist.",
)
_DATA_ROOT = flags.DEFINE_string("data_root", "data", "Folder of the embedded datasets.")
_QUESTIONS = flags.DEFINE_integer("questions", 96, "Held-out questions per kind and dataset.")
_PROBES = flags.DEFINE_integer(
    "probes", 256, "Frames on which features and attention are compared; 0: skip the comparison."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the questions, the noise and the bootstrap.")


def main(_: list[str]) -> None:
    """Compare the checkpoints and write the results."""
    datasets = {}
    for name, place in common.question_datasets(_DATASETS.value, _DATA_ROOT.value).items():
        datasets[name] = open_splits(*place)
    results = compare_checkpoints(
        _CHECKPOINT.value,
        datasets,
        questions=_QUESTIONS.value,
        probes=_PROBES.value,
        seed=_SEED.value,
    )
    out = epath.Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "knowledge.json", results)
    write_csv(out / "knowledge.csv", results)
    print(write_knowledge_page(out / "knowledge.html", results))


if __name__ == "__main__":
    common.run(main)
