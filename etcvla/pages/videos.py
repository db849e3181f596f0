"""Films of episodes, with the path that the policy expects of its gripper drawn into every look."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from etcvla.etc.question_types import PATH, clean_instruction, format_question
from etcvla.etc.score import parse_answer
from etcvla.policy import Policy
from etcvla.results_schema import VIDEO_CAMERA

MIN_SIDE = 192  # pixels: smaller frames are enlarged by a whole factor, so that a line is finer than what it crosses
LINE, RIM = (216, 27, 154), (255, 255, 255)  # the report's colour of predictions


class VideoRecorder:
    """Paths of the episodes that are recorded, by who plays them, where the policy looks through the recorded camera first.

    Args:
      batch: rows that questions are filled up to, so that one shape is compiled.
    """

    def __init__(self, policy: Policy, batch: int):
        self._policy, self._batch, self._paths = policy, batch, {}

    def predict_paths(self, looks: Mapping[Hashable, Mapping[str, Any]]) -> None:
        """Asks for the paths of one look of each player; an observation without "video" is passed over."""
        recorded = {player: look for player, look in looks.items() if look["video"]}
        if not recorded or self._policy.cameras[0] != VIDEO_CAMERA:
            return
        rows = (list(recorded.values()) * self._batch)[: max(self._batch, len(recorded))]
        said = self._policy.answer(
            [self._policy.camera_images(row["images"]) for row in rows],
            [
                format_question(
                    "path_task", 0.0, {"instruction": clean_instruction(row["instruction"])}
                )
                for row in rows
            ],
        )
        for player, text in zip(recorded, said, strict=False):
            self._paths.setdefault(player, []).append(parse_answer(PATH, text))

    def finish(self, player: Hashable, result: Any) -> Any:
        """The player's result (a dataclass with `frames`) with its paths drawn in, where it was recorded."""
        paths = self._paths.pop(player, [])
        if result.frames is None:
            return result
        seen = np.stack(
            [self._policy.assets.adapter.rotate(VIDEO_CAMERA, frame) for frame in result.frames]
        )
        return dataclasses.replace(result, frames=draw_paths(seen, paths))


def draw_paths(frames: np.ndarray, paths: Sequence[np.ndarray | None]) -> np.ndarray:
    """uint8[n, H, W, 3] frames, enlarged by a whole factor, with their paths float[k, 2] (y, x) in [0, 1].

    Frames behind the last path (the one that shows how it ended), and those whose answer was no path, stay plain.
    """
    factor = max(1, -(-MIN_SIDE // min(frames.shape[1:3])))
    paths = [*paths, *[None] * len(frames)]
    return np.stack(
        [
            _draw(
                Image.fromarray(frame).resize(
                    (frame.shape[1] * factor, frame.shape[0] * factor), Image.Resampling.NEAREST
                ),
                path,
            )
            for frame, path in zip(frames, paths, strict=False)
        ]
    )


def _draw(image: Image.Image, path: np.ndarray | None) -> np.ndarray:
    if path is not None:
        pen, width = ImageDraw.Draw(image), max(2, image.width // 80)
        points = [(x * image.width, y * image.height) for y, x in path.tolist()]
        for color, extra in ((RIM, 2), (LINE, 0)):
            if len(points) > 1:
                pen.line(points, color, width + extra, joint="curve")
            pen.circle(points[-1], 2 * width + extra / 2, fill=color)
    return np.asarray(image)
