"""Adds annotation and ETC to an RLDS dataset: `python -m data_builders.add_etc --data=DIR --adapter=NAME --out=DIR`.

What is known depends on what is given: --calibration for projected paths, --detector for boxes, --endpoint for words.
The dataset goes to <out>/<its name>[/<its config>]/<its version>; answers of models are kept in <out>/.answers.
"""

import sys
from pathlib import Path

from absl import app, flags

from data_builders.add_etc.converter import add_etc, shipped_calibrations
from data_builders.common import command
from etcvla.data.adapters import ADAPTERS
from etcvla.etc.annotators.cache import AnswerCache
from etcvla.etc.annotators.detector import Detector
from etcvla.etc.annotators.endpoint import Endpoint

_DATA = flags.DEFINE_string(
    "data", None, "The dataset's version folder, or its parent.", required=True
)
_ADAPTER = flags.DEFINE_string(
    "adapter", "own", f"One of {', '.join(ADAPTERS)}, or a JSON file of its fields."
)
_CALIBRATION = flags.DEFINE_string(
    "calibration",
    None,
    "JSON file of cameras (see etc/annotators/projection.py), or "
    f"one of {', '.join(shipped_calibrations())}.",
)
_DETECTOR = flags.DEFINE_string(
    "detector", None, "Directory of a zero-shot detector (OWLv2, Grounding DINO, ..)."
)
_THRESHOLD = flags.DEFINE_float("threshold", 0.2, "Score from which a detection counts.")
_STRIDE = flags.DEFINE_integer(
    "stride", 5, "Steps between two frames that the detector sees.", lower_bound=1
)
_OBJECTS = flags.DEFINE_list(
    "objects", [], "Nouns to detect; by default the endpoint's or the instruction's."
)
_ENDPOINT = flags.DEFINE_bool(
    "endpoint", False, "Ask OPENAI_BASE_URL's OPENAI_MODEL (with OPENAI_API_KEY)."
)
_RATE = flags.DEFINE_float(
    "rate", 2.0, "Requests a second to the endpoint, at most.", lower_bound=1e-3
)
_BUDGET = flags.DEFINE_integer("budget", 1000, "Requests to the endpoint, at most.")
_THREADS = flags.DEFINE_integer(
    "threads", 4, "Episodes under way at once where an endpoint is asked.", lower_bound=1
)
_NUM_OBJECTS = flags.DEFINE_integer(
    "num_objects", 6, "Object slots of the annotation.", lower_bound=1
)
command.output_flags()


def main(argv: list[str]) -> None:
    command.run(argv, _build)


def _build() -> Path:
    out = command.FLAGS.out
    cache = AnswerCache(Path(out) / ".answers")
    detector = (
        Detector(_DETECTOR.value, cache=cache, threshold=_THRESHOLD.value)
        if _DETECTOR.value
        else None
    )
    endpoint = (
        Endpoint.from_environment(cache, rate=_RATE.value, budget=_BUDGET.value)
        if _ENDPOINT.value
        else None
    )
    path, counts = add_etc(
        _DATA.value,
        out,
        adapter=_ADAPTER.value,
        num_objects=_NUM_OBJECTS.value,
        calibration=_CALIBRATION.value,
        detector=detector,
        endpoint=endpoint,
        objects=tuple(_OBJECTS.value),
        stride=_STRIDE.value,
        threads=_THREADS.value,
    )
    for what, count in sorted(counts.items()):
        print(f"{what}: {count}", file=sys.stderr)
    return path


if __name__ == "__main__":
    app.run(main)
