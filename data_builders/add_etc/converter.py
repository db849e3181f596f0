"""Converter: writes a dataset with annotation and ETC items."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path

from data_builders.add_etc.adapter import match_adapter
from data_builders.add_etc.episodes import EpisodeAnnotator, gripper_visible_share
from data_builders.add_etc.features import extend_features
from data_builders.add_etc.options import AddEtcOptions
from data_builders.add_etc.output import CopySettings, DatasetWriter, ItemCounts
from data_builders.add_etc.records import RecordEncoder
from data_builders.common.folders import lock_build
from data_builders.common.read_dataset import read_info
from etcvla.data.adapters import Adapter, find_adapter
from etcvla.data.rlds import RLDSDataset
from etcvla.data.rlds_layout import find_version
from etcvla.errors import UserError
from etcvla.etc.annotators.projection import Calibrations
from etcvla.files import hash_file

# Share of steps with the projected gripper in the image, below which a calibration is rejected.
MIN_VISIBLE_SHARE = 0.3
CHECKED_EPISODES = 8


def add_etc(data: str, out: str, options: AddEtcOptions) -> tuple[Path, ItemCounts]:
    """Write a dataset with annotation and ETC items, unless it exists.

    The result is in <out>/<its name>[/<its config>]/<its version>. Its splits, its files and all
    values of the source are kept. After an error of the endpoint the same call resumes.

    Args:
      data: version folder of the source, or its parent.

    Returns: the version folder, and the counts of the items that this call wrote or found written.
    Raises UserError for a problem with the data, the adapter or the calibration, and if another
      process builds the dataset; RecordError for damaged data; EndpointError.
    """
    source = find_version(Path(data))
    folders = _dataset_folders(source)
    path = Path(out, *folders)
    if path.resolve() == source.resolve():
        raise UserError(f"--out={out} would overwrite the dataset itself; choose another folder")
    splits = [split["name"] for split in read_info(source)["splits"]]
    datasets = [RLDSDataset(source, split) for split in splits]
    adapter = match_adapter(find_adapter(options.adapter), datasets[0])
    features = json.loads((source / "features.json").read_text())
    features, new_features = extend_features(features, len(adapter.cameras), options.num_objects)
    settings = _copy_settings(source, adapter, options)
    if settings.is_built(path):
        print(f"already built in {path}; delete it to build it again", file=sys.stderr)
        return path, ItemCounts()
    calibrations = _load_calibrations(adapter, options)
    annotators = [EpisodeAnnotator(dataset, adapter, options, calibrations) for dataset in datasets]
    if calibrations is not None:
        for annotator in annotators:
            _check_calibration(annotator)
    encoder = RecordEncoder(new_features, options.num_objects)
    threads = options.threads if options.endpoint else 1
    with lock_build(path):
        writer = DatasetWriter(path, settings)
        for annotator in annotators:
            writer.write_split(annotator.dataset, annotator, encoder, threads)
        writer.finish(source, features)
    return path, writer.counts


def _copy_settings(source: Path, adapter: Adapter, options: AddEtcOptions) -> CopySettings:
    calibration = options.calibration_file
    detector = options.detector
    return CopySettings(
        source=_with_digest("/".join(_dataset_folders(source)), source / "dataset_info.json"),
        adapter=adapter.to_dict(),
        num_objects=options.num_objects,
        objects=options.objects,
        stride=options.stride if detector else 0,
        calibration=_with_digest(calibration.name, calibration) if calibration else "",
        detector=f"{detector.name} from a score of {detector.threshold}" if detector else "",
        endpoint=options.endpoint.model if options.endpoint else "",
    )


def _load_calibrations(adapter: Adapter, options: AddEtcOptions) -> Calibrations | None:
    """Return the calibrations; print what is missing without them."""
    if options.calibration:
        return Calibrations(options.calibration_file)
    paths = "from the detector" if options.detector else "unknown"
    message = f"without --calibration, paths in the image are {paths}"
    if adapter.annotation.calibration:
        message += f"; calibrations of {options.adapter}: {adapter.annotation.calibration}"
    print(message, file=sys.stderr)
    return None


def _dataset_folders(source: Path) -> tuple[str, ...]:
    """Return the folders of a dataset: name, config if it has one, and version."""
    has_config = bool(read_info(source).get("configName"))
    return source.resolve().parts[-3 if has_config else -2 :]


def _with_digest(name: str, file: Path) -> str:
    """Return a name that depends on the file's content, but not on its folder."""
    if not file.is_file():
        raise UserError(f"no calibration file {file}")
    return f"{name} sha256:{hash_file(file)[:16]}"


def _check_calibration(annotator: EpisodeAnnotator) -> None:
    """Raise UserError if the projected gripper is outside the image in most steps.

    A calibration of another camera or frame does that; the check runs before any model is queried.
    """
    options = dataclasses.replace(annotator.options, detector=None, endpoint=None)
    annotator = dataclasses.replace(annotator, options=options)
    shares = []
    for episode in range(min(annotator.dataset.num_episodes, CHECKED_EPISODES)):
        share = gripper_visible_share(annotator(episode).annotation)
        if not math.isnan(share):
            shares.append(share)
    if not shares:
        return
    mean_share = sum(shares) / len(shares)
    if mean_share < MIN_VISIBLE_SHARE:
        sources = annotator.adapter.annotation
        raise UserError(
            f"{options.calibration}: the projected gripper is in the image at {mean_share:.0%} of "
            f"the steps of {len(shares)} episodes; is the pose the camera's in the frame "
            f"{sources.frame!r} of {sources.position[0]}, in metres, with OpenCV's axes?"
        )
