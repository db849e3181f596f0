"""From a camera's calibration to the annotation's camera matrix.

Camera axes are OpenCV's: x right, y down, z forward. A pose is the camera's in the robot's base frame, so that
base = R @ camera + t.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

_HALF_TURN = np.array([[-1.0, 0, 1], [0, -1, 1], [0, 0, 1]])  # of image points [x, y, 1]
_FIELDS = ("size", "intrinsics", "pose")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A camera that does not move.

    size: (width, height) in pixels of the images that `intrinsics` float[3, 3] was measured on; they may since have
    been resized, but not cropped. pose: float[4, 4], metres.
    """

    size: tuple[float, float]
    intrinsics: np.ndarray
    pose: np.ndarray

    def matrix(self, *, turned: bool = False) -> np.ndarray:
        """float32[3, 4]: base-frame metres [x, y, z, 1] to w * [x, y, 1], an image point in [0, 1] as it is shown.

        Args:
          turned: the stored image stands on its head, and is shown upright.
        """
        to_unit = np.diag([1 / self.size[0], 1 / self.size[1], 1])
        to_unit = _HALF_TURN @ to_unit if turned else to_unit
        return (to_unit @ self.intrinsics @ np.linalg.inv(self.pose)[:3]).astype(np.float32)


class Calibrations:
    """The calibrations in a JSON file: `cameras` for every episode, `episodes` for single ones, field over field.

        {"cameras": {"image_0": {"size": [640, 480], "intrinsics": [fx, fy, cx, cy], "pose": [x, y, z, r, p, y]}},
         "episodes": {"<episode id>": {"image_0": {"pose": [...]}}}}

    Intrinsics may be a 3x3 matrix, a pose a 4x4 matrix; roll, pitch, yaw are radians about the base's x, y, z in turn.
    """

    def __init__(self, path: str | Path):
        """Raises FileNotFoundError or ValueError that names the file."""
        self._path = Path(path)
        if not self._path.is_file():
            raise FileNotFoundError(f"no calibration file {path}")
        try:
            found = json.loads(self._path.read_text())
            self._cameras, self._episodes = found.get("cameras", {}), found.get("episodes", {})
        except (AttributeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path} is not a calibration file ({error}); see etcvla/etc/annotators/projection.py"
            ) from error

    def get(self, episode_id: str, camera: str) -> Calibration | None:
        """None where the file does not know this camera. Raises ValueError for a field that is missing or malformed."""
        entry = {
            **self._cameras.get(camera, {}),
            **self._episodes.get(episode_id, {}).get(camera, {}),
        }
        if not entry:
            return None
        where = f"{self._path}, camera {camera} of episode {episode_id}"
        if missing := [field for field in _FIELDS if field not in entry]:
            raise ValueError(f"{where}: {', '.join(missing)} missing")
        try:
            width, height = map(float, entry["size"])
            return Calibration(
                (width, height), _intrinsics(entry["intrinsics"]), _pose(entry["pose"])
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error


def _intrinsics(value: Sequence | Mapping) -> np.ndarray:
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
        pose[:3, 3], pose[:3, :3] = value[:3], Rotation.from_euler("xyz", value[3:]).as_matrix()
        return pose
    if value.shape != (4, 4):
        raise ValueError(
            f"pose of shape {value.shape}, expected (4, 4) or [x, y, z, roll, pitch, yaw]"
        )
    return value
