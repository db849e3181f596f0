"""Predicted gripper paths, drawn into the videos of episodes."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageOps

from etcvla.etc.question_types import PATH, clean_instruction, format_question
from etcvla.etc.score import parse_answer
from etcvla.pages import palette
from etcvla.pages.shapes import Shape, draw_shape
from etcvla.policy import Policy
from etcvla.results_schema import VIDEO_CAMERA

MIN_SIDE = 192  # smaller frames are enlarged, so that a line is finer than the objects, pixels
LINE_COLOR = ImageColor.getrgb(palette.PREDICTION)


def path_question(instruction: str) -> str:
    """Return the question for the gripper's path."""
    fields = {"instruction": clean_instruction(instruction)}
    return format_question("path_task", 0.0, fields)


class VideoRecorder:
    """Predicts the gripper's path at each query of the policy and draws it into the video.

    Only episodes whose observations have "video" set are recorded. No paths are predicted if the
    policy's first camera is not the camera of videos: coordinates are of the first camera.

    Args:
      policy: the policy that acts.
      batch_size: number of rows of a batch of questions. Batches are filled up, so that one shape
        is compiled.
    """

    def __init__(self, policy: Policy, batch_size: int):
        self._policy = policy
        self._batch_size = batch_size
        self._paths: dict[Hashable, list[np.ndarray | None]] = {}

    def predict_paths(self, observations: Mapping[Hashable, Mapping[str, Any]]) -> None:
        """Predict a path for each recorded observation.

        Args:
          observations: worker -> observation with "images", "instruction" and "video".
        """
        recorded = {worker: row for worker, row in observations.items() if row["video"]}
        if not recorded or self._policy.cameras[0] != VIDEO_CAMERA:
            return
        rows = list(recorded.values())
        filling = [rows[0]] * (self._batch_size - len(rows))
        images = []
        questions = []
        for row in [*rows, *filling]:
            images.append(self._policy.camera_images(row["images"]))
            questions.append(path_question(row["instruction"]))
        answers = self._policy.answer(images, questions)
        for worker, answer in zip(recorded, answers[: len(rows)], strict=True):
            self._paths.setdefault(worker, []).append(parse_answer(PATH, answer))

    def finish(self, worker: Hashable, result: Any) -> Any:
        """Return an episode's result with the paths drawn into its frames, if it has frames.

        Args:
          worker: the worker that ran the episode.
          result: dataclass with `frames`, uint8[n, H, W, 3] or None.
        """
        paths = self._paths.pop(worker, [])
        if result.frames is None:
            return result
        adapter = self._policy.assets.adapter
        frames = [adapter.rotate(VIDEO_CAMERA, frame) for frame in result.frames]
        return dataclasses.replace(result, frames=draw_paths(np.stack(frames), paths))


def draw_paths(frames: np.ndarray, paths: Sequence[np.ndarray | None]) -> np.ndarray:
    """Draw a path into each frame, after enlarging small frames by a whole factor.

    Args:
      frames: uint8[n, H, W, 3].
      paths: float[k, 2], (y, x) in [0, 1], for the first frames. None (the answer was no path)
        and frames after the last path (the end of the episode) stay as they are.

    Returns:
      uint8[n, H * factor, W * factor, 3].
    """
    factor = math.ceil(MIN_SIDE / min(frames.shape[1:3]))
    drawn = []
    for frame, path in itertools.zip_longest(frames, paths):
        image = ImageOps.scale(Image.fromarray(frame), factor, Image.Resampling.NEAREST)
        if path is not None:
            width = max(2, image.width // 80)
            draw_shape(image, Shape(PATH, path), palette.PREDICTION, width)
        drawn.append(np.asarray(image))
    return np.stack(drawn)
