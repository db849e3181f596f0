"""Features that the converter adds to a dataset."""

from __future__ import annotations

import copy

import tensorflow_datasets as tfds
from google.protobuf import json_format

from data_builders.common.rlds_schema import (
    annotation_features,
    item_features,
    robot_metadata_features,
    text_list,
)
from etcvla.data.adapters import INSTRUCTION
from etcvla.errors import UserError

# Episode features that keep the source's values if it has them.
_SHARED = frozenset({"episode_id", "task", "scene", "success", "rate"})


def new_features(num_cameras: int, num_objects: int) -> tuple[dict, dict]:
    """Return (step features, episode features): name -> TFDS feature."""
    step_features = {
        "annotation": annotation_features(num_cameras, num_objects),
        "etc": item_features(),
        INSTRUCTION: tfds.features.Text(doc="Instruction of the robot."),
    }
    episode_features = {
        "episode_id": tfds.features.Text(doc="Unique name; the split is a function of it."),
        **robot_metadata_features(),
        "turned": text_list(
            "Cameras whose images are stored upside down; annotation and ETC items describe the "
            "upright image."
        ),
    }
    return step_features, episode_features


def extend_features(
    source: dict, num_cameras: int, num_objects: int
) -> tuple[dict, tfds.features.FeaturesDict]:
    """Return features.json with the new features, and the new features alone.

    Features of the source that have the name of a new one are kept.

    Args:
      source: features.json of the source.

    Raises UserError if the source has annotation or ETC items already, or episode features with
    names of new ones.
    """
    step_features, episode_features = new_features(num_cameras, num_objects)
    extended = copy.deepcopy(source)
    tree = extended["featuresDict"]["features"]
    source_steps = tree["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    empty = {"pythonClassName": extended["pythonClassName"], "featuresDict": {"features": {}}}
    metadata = tree.setdefault("episode_metadata", empty)["featuresDict"]["features"]
    existing = [f"steps/{name}" for name in ("annotation", "etc") if name in source_steps]
    for name in sorted(episode_features):
        if name in metadata and name not in _SHARED:
            existing.append(f"episode_metadata/{name}")
    if existing:
        raise UserError(f"the dataset has {', '.join(existing)} already")
    added_steps = _add_missing(source_steps, step_features)
    added_metadata = _add_missing(metadata, episode_features)
    added = {
        "steps": tfds.features.Dataset(added_steps),
        "episode_metadata": tfds.features.FeaturesDict(added_metadata),
    }
    return extended, tfds.features.FeaturesDict(added)


def _add_missing(source: dict, features: dict) -> dict:
    """Add the features that `source` lacks to it as JSON, and return them."""
    missing = {name: feature for name, feature in features.items() if name not in source}
    for name, feature in missing.items():
        source[name] = json_format.MessageToDict(feature.to_proto())
    return missing
