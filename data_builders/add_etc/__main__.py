"""Add annotation and ETC items to an RLDS dataset.

    python -m data_builders.add_etc --data=DIR --adapter=NAME --out=DIR

The result is in <out>/<its name>[/<its config>]/<its version>. --calibration gives projected paths,
--detector boxes, and --endpoint names of objects and subtasks. Replies of models are cached in
<out>/.answers. After an interruption the same command resumes with the first unfinished file.
"""

import sys
from pathlib import Path

from absl import app, flags

from data_builders.add_etc.options import AddEtcOptions, shipped_calibrations
from data_builders.common import command
from etcvla.data.adapters import ADAPTERS
from etcvla.etc.annotators.cache import AnswerCache
from etcvla.etc.annotators.detector import Detector
from etcvla.etc.annotators.endpoint import Endpoint

_DATA = flags.DEFINE_string(
    "data", None, "Version folder of the dataset, or its parent.", required=True
)
_ADAPTER = flags.DEFINE_string(
    "adapter", "own", f"One of {', '.join(ADAPTERS)}, or a JSON file with an adapter's fields."
)
_CALIBRATION = flags.DEFINE_string(
    "calibration",
    "",
    "JSON file of camera calibrations (see etcvla/etc/annotators/projection.py), or one of "
    f"{', '.join(shipped_calibrations())}.",
)
_DETECTOR = flags.DEFINE_string(
    "detector", None, "Folder of a zero-shot detector (OWLv2, Grounding DINO, ..)."
)
_THRESHOLD = flags.DEFINE_float("threshold", 0.2, "Minimum score of a detection.")
_STRIDE = flags.DEFINE_integer(
    "stride", 5, "Steps between two frames that the detector processes.", lower_bound=1
)
_OBJECTS = flags.DEFINE_list(
    "objects", [], "Nouns to detect; default: those of the endpoint or of the instruction."
)
_ENDPOINT = flags.DEFINE_bool(
    "endpoint", False, "Query OPENAI_MODEL at OPENAI_BASE_URL (with OPENAI_API_KEY)."
)
_RATE = flags.DEFINE_float(
    "rate", 2.0, "Maximum requests per second to the endpoint.", lower_bound=1e-3
)
_BUDGET = flags.DEFINE_integer("budget", 1000, "Maximum number of requests to the endpoint.")
_THREADS = flags.DEFINE_integer(
    "threads", 4, "Episodes that query the endpoint at the same time.", lower_bound=1
)
_NUM_OBJECTS = flags.DEFINE_integer(
    "num_objects", 6, "Object slots of the annotation.", lower_bound=1
)
command.define_output_flags()
flags.adopt_module_key_flags(command)


def main(argv: list[str]) -> None:
    """Run the command."""
    command.run_builder(argv, _build)


def _build() -> Path:
    from data_builders.add_etc.converter import add_etc

    out = command.FLAGS.out
    cache = AnswerCache(Path(out) / ".answers")
    detector = None
    if _DETECTOR.value:
        detector = Detector(_DETECTOR.value, cache=cache, threshold=_THRESHOLD.value)
    endpoint = None
    if _ENDPOINT.value:
        endpoint = Endpoint.from_environment(cache, rate=_RATE.value, budget=_BUDGET.value)
    options = AddEtcOptions(
        adapter=_ADAPTER.value,
        num_objects=_NUM_OBJECTS.value,
        calibration=_CALIBRATION.value,
        detector=detector,
        endpoint=endpoint,
        objects=tuple(_OBJECTS.value),
        stride=_STRIDE.value,
        threads=_THREADS.value,
    )
    path, counts = add_etc(_DATA.value, out, options)
    for question_type, count in sorted(counts.items.items()):
        print(f"items {question_type}: {count}", file=sys.stderr)
    for reason, count in sorted(counts.dropped.items()):
        print(f"dropped {reason}: {count}", file=sys.stderr)
    return path


if __name__ == "__main__":
    app.run(main)
