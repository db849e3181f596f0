"""features.json of a dataset to which annotation and ETC items are added."""

from __future__ import annotations

import copy

from google.protobuf import json_format

from data_builders.common.rlds_schema import RobotSchema, robot_features
from etcvla.data.adapters import INSTRUCTION
from etcvla.errors import UserError

# Episode features that keep the source's values if it has them.
_SHARED = frozenset({"episode_id", "task", "scene", "success", "rate"})


def new_features(num_cameras: int, num_objects: int) -> tuple[dict, dict]:
    """Return (step features, episode features) to add, in the form of features.json."""
    schema = RobotSchema(
        cameras=tuple(f"camera{i}" for i in range(num_cameras)),
        image_size=1,
        num_objects=num_objects,
        state_size=1,
        state_doc="",
        action_size=1,
        action_doc="",
    )
    tree = json_format.MessageToDict(robot_features(schema).to_proto())
    step_features = _step_features(tree)
    episode_features = tree["featuresDict"]["features"]["episode_metadata"]["featuresDict"][
        "features"
    ]
    description = (
        "Cameras whose images are stored upside down; annotation and ETC items describe the "
        "upright image."
    )
    episode_features["turned"] = episode_features["cameras"] | {"description": description}
    added_steps = {name: step_features[name] for name in ("annotation", "etc", INSTRUCTION)}
    return added_steps, episode_features


def extend_features(source: dict, num_cameras: int, num_objects: int) -> tuple[dict, list[str]]:
    """Return features.json with the new features, and the paths of those outside annotation, etc.

    Features of the source that have the name of a new one are kept.

    Raises UserError if the source has annotation or ETC items already, or episode features with
    names of new ones.
    """
    step_features, episode_features = new_features(num_cameras, num_objects)
    extended = copy.deepcopy(source)
    source_steps = _step_features(extended)
    empty = {"pythonClassName": extended["pythonClassName"], "featuresDict": {"features": {}}}
    metadata = extended["featuresDict"]["features"].setdefault("episode_metadata", empty)
    source_metadata = metadata["featuresDict"]["features"]

    existing = [f"steps/{name}" for name in ("annotation", "etc") if name in source_steps]
    for name in sorted(episode_features):
        if name in source_metadata and name not in _SHARED:
            existing.append(f"episode_metadata/{name}")
    if existing:
        raise UserError(f"the dataset has {', '.join(existing)} already")

    added = []
    if INSTRUCTION not in source_steps:
        added.append(f"steps/{INSTRUCTION}")
    for name in sorted(episode_features):
        if name not in source_metadata:
            added.append(f"episode_metadata/{name}")
    for name, feature in step_features.items():
        source_steps.setdefault(name, feature)
    for name, feature in episode_features.items():
        source_metadata.setdefault(name, feature)
    return extended, added


def _step_features(tree: dict) -> dict:
    steps = tree["featuresDict"]["features"]["steps"]
    return steps["sequence"]["feature"]["featuresDict"]["features"]
