"""Adds annotation and ETC to an RLDS dataset: `python -m data_builders.add_etc --data=DIR --adapter=NAME --out=DIR`.

What is known depends on what is given: --calibration for projected paths, --detector for boxes, --endpoint for words.
The dataset goes to <out>/<its name>/<its version>; answers of models are kept in <out>/.answers.
"""

import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path

from absl import app, flags

from data_builders.add_etc import shards
from data_builders.add_etc.adapters import ADAPTERS, find_adapter, fit
from data_builders.add_etc.annotate import Annotator, seen_share
from data_builders.gallery import dataset_gallery
from etcvla.data.rlds import RLDSDataset
from etcvla.data.rlds_layout import find_version
from etcvla.etc.annotators.cache import Cache
from etcvla.etc.annotators.detector import Detector
from etcvla.etc.annotators.endpoint import Endpoint, EndpointError
from etcvla.etc.annotators.projection import Calibrations

MIN_SEEN = 0.3  # share of steps with the projected gripper in the image, below which a calibration is not believed
_DATA = flags.DEFINE_string("data", None, "The dataset's version folder, or its parent.", required=True)
_ADAPTER = flags.DEFINE_string("adapter", "generic", f"One of {', '.join(ADAPTERS)}, or a JSON file of its fields.")
_OUT = flags.DEFINE_string("out", None, "Directory of datasets.", required=True)
_CALIBRATION = flags.DEFINE_string("calibration", None, "JSON file of cameras; see etc/annotators/projection.py.")
_DETECTOR = flags.DEFINE_string("detector", None, "Directory of a zero-shot detector (OWLv2, Grounding DINO, ..).")
_THRESHOLD = flags.DEFINE_float("threshold", 0.2, "Score from which a detection counts.")
_STRIDE = flags.DEFINE_integer("stride", 5, "Steps between two frames that the detector sees.", lower_bound=1)
_OBJECTS = flags.DEFINE_list("objects", [], "Nouns to detect; by default the endpoint's or the instruction's.")
_ENDPOINT = flags.DEFINE_bool("endpoint", False, "Ask OPENAI_BASE_URL's OPENAI_MODEL (with OPENAI_API_KEY).")
_RATE = flags.DEFINE_float("rate", 2.0, "Requests a second to the endpoint, at most.", lower_bound=1e-3)
_BUDGET = flags.DEFINE_integer("budget", 1000, "Requests to the endpoint, at most.")
_THREADS = flags.DEFINE_integer("threads", 4, "Episodes under way at once where an endpoint is asked.", lower_bound=1)
_NUM_OBJECTS = flags.DEFINE_integer("num_objects", 6, "Object slots of the annotation.", lower_bound=1)
_GALLERY = flags.DEFINE_string("gallery", None, "HTML file to write: frames with boxes, paths, questions and answers.")


def add_etc(data: str, out: str, *, adapter: str, num_objects: int = 6, calibration: str | None = None,
            detector: Detector | None = None, endpoint: Endpoint | None = None, objects: tuple[str, ...] = (),
            stride: int = 5, threads: int = 1) -> tuple[Path, Counter]:
    """Writes the dataset with annotation and ETC unless it is there.

    Returns: its folder, and counts of items by form and of what was left out by reason.
    Raises ValueError, FileNotFoundError or RecordError that names what is wrong with the data, the adapter or the
    calibration; EndpointError, after which the same call goes on where it stopped.
    """
    source = find_version(Path(data))
    path = Path(out) / source.parent.name / source.name
    if path.resolve() == source.resolve():
        raise ValueError(f"--out={out} would write over the dataset itself; choose another directory")
    if path.exists():
        raise ValueError(f"{path} exists; delete it to build it again")
    options = {"objects": objects, "stride": stride, "num_objects": num_objects, "detector": detector,
               "endpoint": endpoint, "calibrations": Calibrations(calibration) if calibration else None}
    found = fit(find_adapter(adapter), RLDSDataset(source, shards.splits(source)[0]))
    features, added = shards.extend_features(json.loads((source / "features.json").read_text()), len(found.cameras),
                                             num_objects)
    about = {"source": str(source.resolve()), "adapter": dataclasses.asdict(found), "objects": objects,
             "stride": stride, "num_objects": num_objects, "detector": detector and detector.name,
             "endpoint": endpoint and endpoint.model,
             "calibration": Path(calibration).read_text() if calibration else ""}
    output, counts = shards.Output(path, about), Counter()
    for split in shards.splits(source):
        annotator = Annotator(RLDSDataset(source, split), found, **options)
        if calibration:
            _check_calibration(annotator, calibration)
        counts += output.write_split(annotator.dataset, annotator, num_objects=num_objects, episode_features=added,
                                     threads=threads if endpoint else 1)
    note = f"With annotation and ETC items by data_builders.add_etc ({_authors(about)})."
    output.finish(source, features, note)
    return path, counts


def _check_calibration(annotator: Annotator, calibration: str) -> None:
    """A calibration of another camera or frame throws the gripper out of the image: say so before any work."""
    without_models = dataclasses.replace(annotator, detector=None, endpoint=None)
    episodes = range(min(annotator.dataset.num_episodes, 8))
    shares = [share for share in (seen_share(without_models(episode).annotation) for episode in episodes)
              if share == share]
    if shares and sum(shares) / len(shares) < MIN_SEEN:
        raise ValueError(
            f"{calibration}: the projected gripper is in the image at {sum(shares) / len(shares):.0%} of the steps of "
            f"{len(shares)} episodes; is the pose the camera's in the frame {annotator.adapter.frame!r} of "
            f"{annotator.adapter.position}, in metres, with OpenCV's axes?")


def _authors(about: dict) -> str:
    parts = {"calibration": "projection by calibration", "detector": f"boxes by {about['detector']}",
             "endpoint": f"words by {about['endpoint']}"}
    return "; ".join(["phases by the robot's state", *(text for name, text in parts.items() if about[name])])


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    try:
        cache = Cache(Path(_OUT.value) / ".answers")
        detector = Detector(_DETECTOR.value, cache=cache, threshold=_THRESHOLD.value) if _DETECTOR.value else None
        endpoint = Endpoint.from_environment(cache, rate=_RATE.value, budget=_BUDGET.value) if _ENDPOINT.value else None
        path, counts = add_etc(
            _DATA.value, _OUT.value, adapter=_ADAPTER.value, num_objects=_NUM_OBJECTS.value,
            calibration=_CALIBRATION.value, detector=detector, endpoint=endpoint, objects=tuple(_OBJECTS.value),
            stride=_STRIDE.value, threads=_THREADS.value)
        for what, count in sorted(counts.items()):
            print(f"{what}: {count}", file=sys.stderr)
        if _GALLERY.value:
            dataset_gallery(path, _GALLERY.value)
        print(path)
    except (EndpointError, ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main)
