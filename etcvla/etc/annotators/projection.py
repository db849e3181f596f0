"""Compute the annotation's camera matrix from a camera's calibration.

Camera axes are those of OpenCV: x right, y down, z forward. A pose is the camera's pose in the
robot's base frame: base = R @ camera + t.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from etcvla.errors import UserError

_HALF_TURN = np.array([[-1.0, 0, 1], [0, -1, 1], [0, 0, 1]])  # of image points [x, y, 1]
_FIELDS = ("size", "intrinsics", "pose")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The calibration of a camera that does not move.

    Attributes:
      size: (width, height) in pixels of the images on which the intrinsics were measured. The
        stored images may be resized, but not cropped.
      intrinsics: float[3, 3].
      pose: float[4, 4], metres.
    """

    size: tuple[float, float]
    intrinsics: np.ndarray
    pose: np.ndarray

    def matrix(self, *, rotated: bool = False) -> np.ndarray:
        """Return the camera matrix, float32[3, 4].

        It maps base-frame metres [x, y, z, 1] to w * [x, y, 1] of an image point in [0, 1].

        Args:
          rotated: the stored images are upside down and are rotated by 180 degrees when read.
        """
        to_unit = np.diag([1 / self.size[0], 1 / self.size[1], 1])
        if rotated:
            to_unit = _HALF_TURN @ to_unit
        return (to_unit @ self.intrinsics @ np.linalg.inv(self.pose)[:3]).astype(np.float32)


class Calibrations:
    """The calibrations in a JSON file.

    `cameras` applies to all episodes. `episodes` overrides single fields for single episodes:

        {"cameras": {"image_0": {"size": [640, 480],
                                 "intrinsics": [fx, fy, cx, cy],
                                 "pose": [x, y, z, roll, pitch, yaw]}},
         "episodes": {"<episode id>": {"image_0": {"pose": [...]}}}}

    Intrinsics may also be a 3x3 matrix and a pose a 4x4 matrix. Roll, pitch and yaw are radians
    about the base frame's x, y and z, in this order.
    """

    def __init__(self, path: str | Path):
        """Read the file. Raises UserError if it is missing or is not a calibration file."""
        self._path = Path(path)
        if not self._path.is_file():
            raise UserError(f"no calibration file {path}")
        try:
            content = json.loads(self._path.read_text())
            self._cameras = content.get("cameras", {})
            self._episodes = content.get("episodes", {})
        except (AttributeError, json.JSONDecodeError) as error:
            raise UserError(
                f"{path} is not a calibration file ({error}); see "
                "etcvla/etc/annotators/projection.py"
            ) from error

    def get(self, episode_id: str, camera: str) -> Calibration | None:
        """Return the calibration of a camera in an episode, None if the file has none.

        Raises UserError if a field is missing or malformed.
        """
        override = self._episodes.get(episode_id, {}).get(camera, {})
        fields = {**self._cameras.get(camera, {}), **override}
        if not fields:
            return None
        where = f"{self._path}, camera {camera} of episode {episode_id}"
        missing = [field for field in _FIELDS if field not in fields]
        if missing:
            raise UserError(f"{where}: {', '.join(missing)} missing")
        try:
            width, height = fields["size"]
            size = (float(width), float(height))
            return Calibration(size, _intrinsics(fields["intrinsics"]), _pose(fields["pose"]))
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: {error}") from error


def _intrinsics(value: Sequence) -> np.ndarray:
    value = np.asarray(value, np.float64)
    if value.shape == (4,):
        fx, fy, cx, cy = value
        value = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    if value.shape != (3, 3):
        raise ValueError(f"intrinsics of shape {value.shape}, expected (3, 3) or [fx, fy, cx, cy]")
    return value


def _pose(value: Sequence) -> np.ndarray:
    value = np.asarray(value, np.float64)
    if value.shape == (6,):
        pose = np.eye(4)
        pose[:3, 3] = value[:3]
        pose[:3, :3] = Rotation.from_euler("xyz", value[3:]).as_matrix()
        return pose
    if value.shape != (4, 4):
        raise ValueError(
            f"pose of shape {value.shape}, expected (4, 4) or [x, y, z, roll, pitch, yaw]"
        )
    return value
