"""The RLDS schema that every builder here writes, and how an episode is put into it.

Standard RLDS plus `steps/annotation` (facts), `steps/etc` (items) and names in `episode_metadata`. An image-text set is
the same schema with one step an episode and neither actions nor annotation, so that one reader serves both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow_datasets as tfds

from etcvla.etc.annotation import INT_FIELDS, STEP_FIELDS, Annotation
from etcvla.etc.items import Item

_F = tfds.features

STEP_DOCS = {
    "camera_matrix": "3x4, base-frame metres [x, y, z, 1] to w * [x, y, 1], image point in [0, 1], per camera.",
    "gripper_pixel": "Image point (y, x) of the grasp centre in [0, 1], origin top left, per camera; may lie outside.",
    "gripper_position": "Grasp centre (x, y, z) in metres, robot base frame.",
    "gripper_open": "0 closed .. 1 open.",
    "box": "(ymin, xmin, ymax, xmax) of the visible pixels in [0, 1], per camera and object; NaN unknown.",
    "visible": "Visible share of the object's silhouette, per camera and object; NaN unknown.",
    "position": "Object centre (x, y, z) in metres, robot base frame; NaN unknown.",
    "grasp_pixel": "Image point (y, x) where to hold or touch the object, per camera and object; NaN unknown.",
    "contact": "1 the gripper touches the object, 0 it does not; NaN unknown.",
    "phase": "Index into episode_metadata/phases of the subtask in progress; -1 unknown.",
}


def _etc() -> _F.Sequence:
    return _F.Sequence(
        {
            "grade": _F.Text(doc="scene_grounding, task_oriented, action_aligned, or general."),
            "kind": _F.Text(doc="The kind of supervision, e.g. spatial_understanding."),
            "question_type": _F.Text(
                doc="The sub-question inside the kind; fixes how the answer is parsed and scored."
            ),
            "question": _F.Text(doc="What is asked about this frame's first camera."),
            "answer": _F.Text(
                doc="Canonical answer; locations as <locNNNN>, order y x or ymin xmin ymax xmax."
            ),
            "source": _F.Text(doc="Who stands behind the answer: oracle, human, or model:<name>."),
        },
        doc="Embodied trajectory-coupled items about this step; none, one or several.",
    )


def _annotation(num_cameras: int, num_objects: int) -> _F.FeaturesDict:
    sizes = {"C": num_cameras, "N": num_objects}
    return _F.FeaturesDict(
        {
            name: _F.Tensor(
                shape=tuple(sizes.get(axis, axis) for axis in axes),
                dtype=np.int32 if name in INT_FIELDS else np.float32,
                doc=STEP_DOCS[name],
            )
            for name, axes in STEP_FIELDS.items()
        },
        doc="Facts about this step; what is unknown is NaN, or -1.",
    )


def _texts(doc: str) -> _F.Sequence:
    return _F.Sequence(_F.Text(doc=doc), doc=doc)


def _episode_metadata(features: dict) -> _F.FeaturesDict:
    return _F.FeaturesDict(
        {"episode_id": _F.Text(doc="Unique; the split is a function of it."), **features},
        doc="What holds for the episode as a whole.",
    )


def robot_features(
    *,
    cameras: Sequence[str],
    image_size: int,
    state_doc: str,
    state_size: int,
    action_doc: str,
    action_size: int,
    num_objects: int,
) -> _F.FeaturesDict:
    """The schema of a robot dataset with annotation and ETC.

    Args:
      cameras: names; image features are `observation/<name>`, the first is the view that ETC speaks of.
      image_size: height and width in pixels.
      state_doc, action_doc: units, frame and order of the vectors.
      action_size: 0 where nobody acted: the dataset has no actions.
      num_objects: object slots; unused ones are NaN.
    """
    observation = {
        name: _F.Image(
            shape=(image_size, image_size, 3),
            encoding_format="jpeg",
            doc=f"RGB of camera {name}, upright.",
        )
        for name in cameras
    }
    observation["state"] = _F.Tensor(shape=(state_size,), dtype=np.float32, doc=state_doc)
    return _F.FeaturesDict(
        {
            "steps": _F.Dataset(
                {
                    "observation": _F.FeaturesDict(
                        observation, doc="What the robot saw and felt before it acted."
                    ),
                    **(
                        {
                            "action": _F.Tensor(
                                shape=(action_size,), dtype=np.float32, doc=action_doc
                            )
                        }
                        if action_size
                        else {}
                    ),
                    "reward": _F.Scalar(np.float32, doc="1 at the last step of a success, else 0."),
                    "discount": _F.Scalar(np.float32, doc="1 everywhere."),
                    "is_first": _F.Scalar(np.bool_, doc="First step of the episode."),
                    "is_last": _F.Scalar(np.bool_, doc="Last step of the episode."),
                    "is_terminal": _F.Scalar(
                        np.bool_, doc="The episode ended in a terminal state here."
                    ),
                    "language_instruction": _F.Text(doc="What the robot was told."),
                    "annotation": _annotation(len(cameras), num_objects),
                    "etc": _etc(),
                },
                doc="The episode in time order.",
            ),
            "episode_metadata": _episode_metadata(
                {
                    "task": _F.Text(doc="The simulator's name of the task."),
                    "scene": _F.Text(doc="The named look of the scene: camera, table, light."),
                    "success": _F.Scalar(
                        np.bool_, doc="The episode is known to have reached its goal."
                    ),
                    "rate": _F.Scalar(np.float32, doc="Control steps a second; NaN unknown."),
                    "target": _F.Scalar(
                        np.int32,
                        doc="Index into objects of what the instruction is about; -1 unknown.",
                    ),
                    "cameras": _texts("Camera names in the order of the annotation's camera axis."),
                    "objects": _texts("Object names in the order of the annotation's object axis."),
                    "colors": _texts("Colour word of each object, empty where unknown."),
                    "phases": _texts("Ordered subtasks as imperatives."),
                    "shapes": _texts("Shape word of each object, empty where unknown."),
                    "axes": _texts(
                        "Where x, y, z of the base frame point for the robot; empty unknown."
                    ),
                }
            ),
        },
        doc="One episode.",
    )


def vqa_features(*, image_size: int) -> _F.FeaturesDict:
    """The schema of an image-text dataset: one step, one image, items without actions."""
    return _F.FeaturesDict(
        {
            "steps": _F.Dataset(
                {
                    "observation": _F.FeaturesDict(
                        {
                            "image": _F.Image(
                                shape=(image_size, image_size, 3),
                                encoding_format="jpeg",
                                doc="RGB.",
                            ),
                        },
                        doc="What is asked about.",
                    ),
                    "etc": _etc(),
                },
                doc="The one step.",
            ),
            "episode_metadata": _episode_metadata({}),
        },
        doc="One image with its items.",
    )


def encode_items(items: Sequence[Item]) -> list[dict[str, str]]:
    """Items of one step as the `etc` feature wants them."""
    return [{"grade": item.grade, **dataclasses.asdict(item)} for item in items]


def encode_episode(
    annotation: Annotation,
    *,
    images: Mapping[str, Sequence[np.ndarray | bytes]],
    state: np.ndarray,
    action: np.ndarray | None,
    items: Sequence[Sequence[Item]],
    num_objects: int,
    episode_id: str,
    task: str,
    scene: str,
) -> dict:
    """One episode in the schema of `robot_features`.

    Args:
      annotation: facts of T steps.
      images: camera -> T images, uint8[H, W, 3] (or encoded JPEG through a file-like object).
      state: float32[T, S]. action: float32[T, A]; None where the schema has none.
      items: T lists of items.
    """
    steps = len(annotation)
    for name, value in {"state": state, "action": action, "items": items, **images}.items():
        if value is not None and len(value) != steps:
            raise ValueError(
                f"episode {episode_id}: {name} has {len(value)} steps, the annotation {steps}"
            )
    facts = annotation.pad_objects(num_objects)
    return {
        "steps": [
            {
                "observation": {
                    **{name: frames[t] for name, frames in images.items()},
                    "state": state[t],
                },
                **({} if action is None else {"action": action[t]}),
                "reward": np.float32(annotation.success and t == steps - 1),
                "discount": np.float32(1),
                "is_first": t == 0,
                "is_last": t == steps - 1,
                "is_terminal": annotation.success and t == steps - 1,
                "language_instruction": annotation.instruction,
                "annotation": {name: value[t] for name, value in facts.items()},
                "etc": encode_items(items[t]),
            }
            for t in range(steps)
        ],
        "episode_metadata": {
            "episode_id": episode_id,
            "task": task,
            "scene": scene,
            "success": annotation.success,
            "rate": np.float32(annotation.rate),
            "target": np.int32(annotation.target),
            "cameras": list(annotation.cameras),
            "objects": list(annotation.objects),
            "colors": list(annotation.colors),
            "phases": list(annotation.phases),
            "shapes": list(annotation.shapes),
            "axes": list(annotation.axes),
        },
    }
