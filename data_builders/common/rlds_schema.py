"""The RLDS schema that all builders write, and how an episode is encoded in it.

The schema is standard RLDS plus `steps/annotation` (facts), `steps/etc` (items) and names in
`episode_metadata`. An image-text dataset has the same schema with one step per episode and without
actions and annotation, so that one reader reads both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds

from etcvla.etc.annotation import INT_FIELDS, STEP_FIELDS, Annotation
from etcvla.etc.items import Item
from etcvla.sims.rollout import Episode

_F = tfds.features

_ANNOTATION_DOCS = {
    "camera_matrix": "3x4 per camera, base-frame metres [x, y, z, 1] to w * [x, y, 1], "
    "image point in [0, 1].",
    "gripper_pixel": "Image point (y, x) of the grasp centre in [0, 1] per camera, origin top "
    "left; may be outside.",
    "gripper_position": "Grasp centre (x, y, z) in metres, robot base frame.",
    "gripper_open": "0 closed .. 1 open.",
    "box": "(ymin, xmin, ymax, xmax) of the visible pixels in [0, 1], per camera and object; "
    "NaN unknown.",
    "visible": "Visible share of the object's silhouette, per camera and object; NaN unknown.",
    "position": "Object centre (x, y, z) in metres, robot base frame; NaN unknown.",
    "grasp_pixel": "Image point (y, x) where to hold or touch the object, per camera and object; "
    "NaN unknown.",
    "contact": "1 the gripper touches the object, 0 it does not; NaN unknown.",
    "phase": "Index into episode_metadata/phases of the subtask in progress; -1 unknown.",
}
_ITEM_DOCS = {
    "grade": "scene_grounding, task_oriented, action_aligned, or general.",
    "kind": "The kind of supervision, e.g. spatial_understanding.",
    "question_type": "Type within the kind; fixes how the answer is parsed and scored.",
    "question": "Question about this frame's first camera.",
    "answer": "Canonical answer; locations as <locNNNN>, order y x or ymin xmin ymax xmax.",
    "source": "Origin of the answer: oracle, human, or model:<name>.",
}


@dataclasses.dataclass(frozen=True)
class RobotSchema:
    """Sizes and descriptions of a robot dataset's features."""

    cameras: tuple[str, ...]  # features observation/<name>; questions are about the first
    image_size: int  # height and width in pixels
    num_objects: int  # object slots of the annotation; unused slots are NaN
    state_size: int
    state_doc: str  # units, frame and order of the vector
    action_size: int  # 0: the dataset has no actions
    action_doc: str
    num_relabels: int = 0  # N, other instructions of each step
    horizon: int = 0  # P, actions of a relabel


def robot_features(schema: RobotSchema) -> _F.FeaturesDict:
    """Return the features of a robot dataset with annotation and ETC items."""
    observation = {}
    for name in schema.cameras:
        observation[name] = _F.Image(
            shape=(schema.image_size, schema.image_size, 3),
            encoding_format="jpeg",
            doc=f"RGB of camera {name}, upright.",
        )
    observation["state"] = _vector(schema.state_size, schema.state_doc)
    action = {}
    if schema.action_size:
        action["action"] = _vector(schema.action_size, schema.action_doc)
    if schema.num_relabels:
        action["relabels"] = relabel_features(schema)
    steps = {
        "observation": _F.FeaturesDict(observation, doc="Observation before the action."),
        **action,
        "reward": _F.Scalar(np.float32, doc="1 at the last step of a success, else 0."),
        "discount": _F.Scalar(np.float32, doc="1 everywhere."),
        "is_first": _F.Scalar(np.bool_, doc="First step of the episode."),
        "is_last": _F.Scalar(np.bool_, doc="Last step of the episode."),
        "is_terminal": _F.Scalar(np.bool_, doc="The episode ends in a terminal state here."),
        "language_instruction": _F.Text(doc="Instruction of the robot."),
        "annotation": annotation_features(len(schema.cameras), schema.num_objects),
        "etc": item_features(),
    }
    return _F.FeaturesDict(
        {
            "steps": _F.Dataset(steps, doc="The episode in time order."),
            "episode_metadata": _episode_metadata(robot_metadata_features()),
        },
        doc="One episode.",
    )


def relabel_features(schema: RobotSchema) -> _F.FeaturesDict:
    """Return the feature `steps/relabels`; see `etcvla.sims.rollout.Relabels`."""
    count = schema.num_relabels
    shape = (count, schema.horizon, schema.action_size)
    return _F.FeaturesDict(
        {
            "instruction": _F.Sequence(
                _F.Text(doc="Instruction that names another object."),
                length=count,
                doc="Other instructions that the scene allows.",
            ),
            "actions": _F.Tensor(
                shape=shape, dtype=np.float32, doc="The expert's next actions for each of them."
            ),
            "valid": _F.Tensor(
                shape=(count,), dtype=np.int32, doc="How many of the actions precede the end."
            ),
        },
        doc="What the expert would do from this state after other instructions.",
    )


def vqa_features(*, image_size: int | None) -> _F.FeaturesDict:
    """Return the features of an image-text dataset: one step, one image, items without actions.

    Args:
      image_size: height and width in pixels; None if they vary.
    """
    image = _F.Image(shape=(image_size, image_size, 3), encoding_format="jpeg", doc="RGB.")
    steps = {
        "observation": _F.FeaturesDict({"image": image}, doc="The image."),
        "etc": item_features(),
    }
    return _F.FeaturesDict(
        {
            "steps": _F.Dataset(steps, doc="The only step."),
            "episode_metadata": _episode_metadata({}),
        },
        doc="One image with its items.",
    )


def encode_items(items: Sequence[Item]) -> list[dict[str, str]]:
    """Return the items of one step in the form of the `etc` feature."""
    return [{"grade": item.grade, **dataclasses.asdict(item)} for item in items]


def encode_episode(
    episode: Episode,
    items: Sequence[Sequence[Item]],
    *,
    num_objects: int,
    episode_id: str,
    task: str,
    scene: str,
) -> dict:
    """Return one episode in the form of `robot_features`.

    Args:
      episode: T steps; images are uint8[H, W, 3] or JPEG files, `action` is None if the schema has
        no actions.
      items: T lists of items.

    Raises ValueError if a field has another number of steps than the annotation.
    """
    annotation = episode.annotation
    num_steps = len(annotation)
    lengths = {name: len(frames) for name, frames in episode.images.items()}
    lengths |= {"state": len(episode.state), "items": len(items)}
    if episode.action is not None:
        lengths["action"] = len(episode.action)
    for name, length in lengths.items():
        if length != num_steps:
            raise ValueError(
                f"episode {episode_id}: {name} has {length} steps, the annotation {num_steps}"
            )
    labels = encode_labels(annotation, items, num_objects)
    steps = [_encode_step(episode, step) | labels[step] for step in range(num_steps)]
    metadata = {"episode_id": episode_id, "task": task, "scene": scene}
    return {"steps": steps, "episode_metadata": metadata | encode_metadata(annotation)}


def encode_labels(
    annotation: Annotation, items: Sequence[Sequence[Item]], num_objects: int
) -> list[dict]:
    """Return the features `annotation` and `etc` of T steps."""
    facts = annotation.pad_objects(num_objects)
    labels = []
    for step, step_items in enumerate(items):
        step_facts = {name: values[step] for name, values in facts.items()}
        labels.append({"annotation": step_facts, "etc": encode_items(step_items)})
    return labels


def _encode_step(episode: Episode, step: int) -> dict:
    is_last = step == len(episode.annotation) - 1
    is_terminal = episode.annotation.success and is_last
    observation = {name: frames[step] for name, frames in episode.images.items()}
    encoded = {
        "observation": observation | {"state": episode.state[step]},
        "reward": np.float32(is_terminal),
        "discount": np.float32(1),
        "is_first": step == 0,
        "is_last": is_last,
        "is_terminal": is_terminal,
        "language_instruction": episode.annotation.instruction,
    }
    if episode.action is not None:
        encoded["action"] = episode.action[step]
    if episode.relabels is not None:
        encoded["relabels"] = {
            "instruction": list(episode.relabels.instruction),
            "actions": episode.relabels.actions[step],
            "valid": episode.relabels.valid[step],
        }
    return encoded


def encode_metadata(annotation: Annotation) -> dict:
    """Return the annotation's part of `episode_metadata`."""
    encoded = {
        "success": annotation.success,
        "rate": np.float32(annotation.rate),
        "target": np.int32(annotation.target),
    }
    for name in ("cameras", "objects", "colors", "phases", "shapes", "axes"):
        encoded[name] = list(getattr(annotation, name))
    return encoded


def _vector(size: int, doc: str) -> _F.Tensor:
    return _F.Tensor(shape=(size,), dtype=np.float32, doc=doc)


def text_list(doc: str) -> _F.Sequence:
    """Return the feature of a list of texts."""
    return _F.Sequence(_F.Text(doc=doc), doc=doc)


def item_features() -> _F.Sequence:
    """Return the feature `steps/etc`: a list of items."""
    return _F.Sequence(
        {name: _F.Text(doc=doc) for name, doc in _ITEM_DOCS.items()},
        doc="Embodied trajectory-coupled items about this step: none, one or several.",
    )


def annotation_features(num_cameras: int, num_objects: int) -> _F.FeaturesDict:
    """Return the feature `steps/annotation`."""
    sizes = {"C": num_cameras, "N": num_objects}
    features = {}
    for name, axes in STEP_FIELDS.items():
        shape = tuple(sizes.get(axis, axis) for axis in axes)
        dtype = np.int32 if name in INT_FIELDS else np.float32
        features[name] = _F.Tensor(shape=shape, dtype=dtype, doc=_ANNOTATION_DOCS[name])
    return _F.FeaturesDict(features, doc="Facts about this step; unknown values are NaN or -1.")


def _episode_metadata(features: dict) -> _F.FeaturesDict:
    episode_id = _F.Text(doc="Unique name; the split is a function of it.")
    return _F.FeaturesDict({"episode_id": episode_id, **features}, doc="Facts about the episode.")


def robot_metadata_features() -> dict:
    """Return the features of `episode_metadata`, without `episode_id`."""
    return {
        "task": _F.Text(doc="The simulator's name of the task."),
        "scene": _F.Text(doc="Named appearance of the scene: camera, table, light."),
        "success": _F.Scalar(np.bool_, doc="The episode is known to reach its goal."),
        "rate": _F.Scalar(np.float32, doc="Control steps per second; NaN unknown."),
        "target": _F.Scalar(
            np.int32, doc="Index into objects of the instruction's object; -1 unknown."
        ),
        "cameras": text_list("Camera names in the order of the annotation's camera axis."),
        "objects": text_list("Object names in the order of the annotation's object axis."),
        "colors": text_list("Colour word of each object, empty where unknown."),
        "phases": text_list("Ordered subtasks as imperatives."),
        "shapes": text_list("Shape word of each object, empty where unknown."),
        "axes": text_list("Directions of the base frame's x, y, z for the robot; empty unknown."),
    }
