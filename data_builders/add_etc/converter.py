"""A whole dataset with annotation and ETC."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections import Counter
from pathlib import Path

from data_builders.add_etc import output
from data_builders.add_etc.adapter import fit
from data_builders.add_etc.episodes import Annotator, seen_share
from data_builders.common.build import alone
from etcvla.data.adapters import find_adapter
from etcvla.data.rlds import RLDSDataset
from etcvla.data.rlds_layout import find_version
from etcvla.etc.annotators.detector import Detector
from etcvla.etc.annotators.endpoint import Endpoint
from etcvla.etc.annotators.projection import Calibrations

CALIBRATIONS = Path(__file__).with_name("calibrations")
MIN_SEEN = 0.3  # share of steps with the projected gripper in the image, below which a calibration is not believed


def add_etc(
    data: str,
    out: str,
    *,
    adapter: str = "own",
    num_objects: int = 6,
    calibration: str | None = None,
    detector: Detector | None = None,
    endpoint: Endpoint | None = None,
    objects: tuple[str, ...] = (),
    stride: int = 5,
    threads: int = 1,
) -> tuple[Path, Counter]:
    """Writes the dataset with annotation and ETC to <out>/<its name>[/<its config>]/<its version>, unless it is there.

    Args:
      adapter: as of `find_adapter`. calibration: a file, or one of `shipped_calibrations`. threads: episodes under
        way at once. Others: as of `Annotator`.

    Returns: its folder, and counts of items by question_type and of what was left out by reason.
    Raises ValueError, FileNotFoundError or RecordError that names what is wrong with the data, the adapter or the
    calibration; BlockingIOError if another process does the same; EndpointError, after which the same call goes on
    where it stopped.
    """
    source, calibration = find_version(Path(data)), calibration and find_calibration(calibration)
    path = Path(out, *_place(source))
    if path.resolve() == source.resolve():
        raise ValueError(
            f"--out={out} would write over the dataset itself; choose another directory"
        )
    options = {
        "objects": objects,
        "stride": stride,
        "num_objects": num_objects,
        "detector": detector,
        "endpoint": endpoint,
        "calibrations": Calibrations(calibration) if calibration else None,
    }
    found = fit(find_adapter(adapter), RLDSDataset(source, output.splits(source)[0]))
    features, added = output.extend_features(
        json.loads((source / "features.json").read_text()), len(found.cameras), num_objects
    )
    recipe = output.CopySettings(
        source=_named(source / "dataset_info.json", "/".join(_place(source))),
        adapter=found.to_dict(),
        num_objects=num_objects,
        objects=objects,
        stride=stride if detector else 0,
        calibration=_named(calibration, Path(calibration).name) if calibration else "",
        detector=f"{detector.name} from a score of {detector.threshold}" if detector else "",
        endpoint=endpoint.model if endpoint else "",
    )
    if recipe.made(path):
        print(f"already built in {path}; delete it to build it again", file=sys.stderr)
        return path, Counter()
    if not calibration:
        known = "from the detector" if detector else "unknown"
        there = (
            f"; {adapter} has calibrations: {found.annotation.calibration}"
            if found.annotation.calibration
            else ""
        )
        print(f"without --calibration paths in the image are {known}{there}", file=sys.stderr)
    annotators = [
        Annotator(RLDSDataset(source, split), found, **options) for split in output.splits(source)
    ]
    for annotator in annotators if calibration else ():
        _check_calibration(annotator, calibration)
    with alone(path):
        written, counts = output.Output(path, recipe), Counter()
        for annotator in annotators:
            counts += written.write_split(
                annotator.dataset,
                annotator,
                num_objects=num_objects,
                added=added,
                threads=threads if endpoint else 1,
            )
        written.finish(source, features)
    return path, counts


def find_calibration(name: str) -> str:
    """The file `name`, or the one of this package that is called so: see `CALIBRATIONS`."""
    return str(CALIBRATIONS / f"{name}.json") if name in shipped_calibrations() else name


def shipped_calibrations() -> list[str]:
    """Names of the calibrations that come with the package."""
    return sorted(path.stem for path in CALIBRATIONS.glob("*.json"))


def _place(source: Path) -> tuple[str, ...]:
    """The folders of a dataset: name, config where it has one, and version."""
    info = (
        json.loads((source / "dataset_info.json").read_text())
        if (source / "dataset_info.json").exists()
        else {}
    )
    return source.resolve().parts[-3 if info.get("configName") else -2 :]


def _named(file: str | Path, name: str) -> str:
    """A name that says what is in the file, and nothing of this machine."""
    return f"{name} sha256:{hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]}"


def _check_calibration(annotator: Annotator, calibration: str) -> None:
    """A calibration of another camera or frame throws the gripper out of the image: say so before any work."""
    without_models = dataclasses.replace(annotator, detector=None, endpoint=None)
    episodes = range(min(annotator.dataset.num_episodes, 8))
    shares = [
        share
        for share in (seen_share(without_models(episode).annotation) for episode in episodes)
        if share == share
    ]
    if shares and sum(shares) / len(shares) < MIN_SEEN:
        raise ValueError(
            f"{calibration}: the projected gripper is in the image at {sum(shares) / len(shares):.0%} of the steps of "
            f"{len(shares)} episodes; is the pose the camera's in the frame {annotator.adapter.annotation.frame!r} "
            f"of {annotator.adapter.annotation.position[0]}, in metres, with OpenCV's axes?"
        )
