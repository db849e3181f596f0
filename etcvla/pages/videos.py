"""Predicted gripper paths, drawn into the videos of episodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from etcvla.etc.question_types import PATH, clean_instruction, format_question
from etcvla.etc.score import parse_answer
from etcvla.pages import palette
from etcvla.policy import Policy
from etcvla.results_schema import VIDEO_CAMERA

MIN_SIDE = 192  # smaller frames are enlarged, so that a line is finer than the objects, pixels
LINE_COLOR = ImageColor.getrgb(palette.PREDICTION)
EDGE_COLOR = (255, 255, 255)


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
        recorded = {}
        for worker, observation in observations.items():
            if observation["video"]:
                recorded[worker] = observation
        if not recorded or self._policy.cameras[0] != VIDEO_CAMERA:
            return
        rows = list(recorded.values())
        filling = [rows[0]] * (self._batch_size - len(rows))
        images = []
        questions = []
        for row in [*rows, *filling]:
            images.append(self._policy.camera_images(row["images"]))
            slots = {"instruction": clean_instruction(row["instruction"])}
            questions.append(format_question("path_task", 0.0, slots))
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
    height, width = frames.shape[1:3]
    factor = max(1, -(-MIN_SIDE // min(height, width)))
    size = (width * factor, height * factor)
    drawn = []
    for i, frame in enumerate(frames):
        image = Image.fromarray(frame).resize(size, Image.Resampling.NEAREST)
        path = paths[i] if i < len(paths) else None
        if path is not None:
            _draw_path(image, path)
        drawn.append(np.asarray(image))
    return np.stack(drawn)


def _draw_path(image: Image.Image, path: np.ndarray) -> None:
    """Draw a path float[k, 2] with a dot at its end, on a white edge."""
    draw = ImageDraw.Draw(image)
    line_width = max(2, image.width // 80)
    points = [(x * image.width, y * image.height) for y, x in path.tolist()]
    for color, edge in ((EDGE_COLOR, 2), (LINE_COLOR, 0)):
        if len(points) > 1:
            draw.line(points, color, line_width + edge, joint="curve")
        draw.circle(points[-1], 2 * line_width + edge / 2, fill=color)
