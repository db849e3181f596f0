"""Annotation: the facts about an episode from which all ETC items are made.

Axes: T steps, C cameras, N objects. Simulators fill an annotation completely. For real data, only
the fields that calibration, detectors or people provide are filled. **An unknown value is NaN (or
-1, or ""), never zero.**

Conventions: an image point is (y, x) with both coordinates in [0, 1] and the origin at the top left
of the image *as the model receives it*. A box is (ymin, xmin, ymax, xmax) in the same units.
Positions are metres in the robot's base frame.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from etcvla.errors import UserError

# Field name -> trailing shape; the leading axis is T. The order is the order of the fields on disk.
STEP_FIELDS: dict[str, tuple[str | int, ...]] = {
    # Maps base-frame metres [x, y, z, 1] to w * [x, y, 1] of the image point.
    "camera_matrix": ("C", 3, 4),
    "gripper_pixel": ("C", 2),  # image point of the grasp centre; may be outside [0, 1]
    "gripper_position": (3,),  # grasp centre, metres
    "gripper_open": (),  # 0 closed .. 1 open
    "box": ("C", "N", 4),  # tight box around the object's visible pixels
    "visible": ("C", "N"),  # visible fraction of the object's silhouette, 0 .. 1
    "position": ("N", 3),  # object centre, metres
    "grasp_pixel": ("C", "N", 2),  # image point where a gripper should hold or touch the object
    "contact": ("N",),  # 1 if the gripper touches the object, else 0
    "phase": (),  # index into `phases` of the current subtask; -1 unknown
}
INT_FIELDS = frozenset({"phase"})
OPPOSITE = {"front": "back", "left": "right", "up": "down"}  # directions from the robot's viewpoint
AXES = frozenset(OPPOSITE) | frozenset(OPPOSITE.values())


@dataclasses.dataclass
class Annotation:
    """Facts of one episode. See the module docstring for units.

    Arrays are float32, except `phase`, which is int32. `STEP_FIELDS` gives their shapes.
    """

    instruction: str  # the language instruction of the episode
    cameras: tuple[str, ...]  # C names; items refer to the first camera unless they name another
    objects: tuple[str, ...]  # N nouns without article ("drawer handle"), unique in the episode
    colors: tuple[str, ...]  # N colour words, "" if unknown or mixed
    phases: tuple[str, ...]  # the ordered subtasks as imperatives ("move to the drawer handle")
    target: int  # index of the object that the instruction refers to; -1 unknown
    success: bool | None  # whether the episode reached its goal; None unknown
    rate: float  # control steps per second; NaN unknown

    camera_matrix: np.ndarray
    gripper_pixel: np.ndarray
    gripper_position: np.ndarray
    gripper_open: np.ndarray
    box: np.ndarray
    visible: np.ndarray
    position: np.ndarray
    grasp_pixel: np.ndarray
    contact: np.ndarray
    phase: np.ndarray

    shapes: tuple[str, ...] = ()  # N shape words, "" if unknown; () if none is known
    axes: tuple[str, ...] = ()  # directions (of `AXES`) of the base frame's x, y and z; () unknown

    def __post_init__(self):
        """Convert the arrays to their dtypes.

        Raises ValueError if the shape of a field does not match the documented one.
        """
        num_objects = len(self.objects)
        if len(self.colors) != num_objects:
            raise ValueError(f"annotation: {num_objects} objects but {len(self.colors)} colors")
        if len(self.shapes) not in (0, num_objects):
            raise ValueError(f"annotation: {num_objects} objects but {len(self.shapes)} shapes")
        if self.axes and (len(self.axes) != 3 or set(self.axes) - AXES):
            raise ValueError(f"annotation.axes: {self.axes}, expected three of {sorted(AXES)}")
        sizes = {"C": len(self.cameras), "N": num_objects}
        for name, axes in STEP_FIELDS.items():
            value = np.asarray(getattr(self, name), np.int32 if name in INT_FIELDS else np.float32)
            shape = (len(self), *(sizes.get(axis, axis) for axis in axes))
            if value.shape != shape:
                raise ValueError(f"annotation.{name}: shape {value.shape}, expected {shape}")
            setattr(self, name, value)

    def __len__(self) -> int:
        """Return T, the number of steps."""
        return len(self.gripper_open)

    @property
    def has_exact_names(self) -> bool:
        """Whether every object's name consists of its color and its shape ("red cube")."""
        described = zip(self.colors, self.shapes, strict=False)
        return self.objects == tuple(f"{color} {shape}" for color, shape in described)

    def direction_vector(self, direction: str) -> np.ndarray:
        """Return the unit vector of "front", "left" or "up" in the base frame, NaN if unknown."""
        signs = {direction: 1.0, OPPOSITE[direction]: -1.0}
        vector = np.array([signs.get(axis, 0.0) for axis in self.axes])
        return vector if vector.any() else np.full(3, np.nan)

    def pad_objects(self, num_objects: int) -> dict[str, np.ndarray]:
        """Return the step fields with the object axis padded with NaN to `num_objects`, as in RLDS.

        Raises UserError if the episode has more than `num_objects` objects.
        """
        missing = num_objects - len(self.objects)
        if missing < 0:
            raise UserError(
                f"{len(self.objects)} objects ({', '.join(self.objects)}), but the dataset holds "
                f"{num_objects}: raise num_objects"
            )
        padded = {}
        for name, axes in STEP_FIELDS.items():
            value = getattr(self, name)
            if "N" in axes:
                widths = [(0, 0)] * value.ndim
                widths[1 + axes.index("N")] = (0, missing)
                value = np.pad(value, widths, constant_values=np.nan)
            padded[name] = value
        return padded


def project(camera_matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Project base-frame points to image points (y, x); NaN for points behind the camera.

    Args:
      camera_matrix: float[..., 3, 4].
      points: float[..., 3] metres; the leading axes broadcast against those of the matrix.

    Returns:
      float32[..., 2].
    """
    homogeneous = np.concatenate([points, np.ones_like(points[..., :1])], axis=-1)
    projected = np.einsum("...ij,...j->...i", camera_matrix, homogeneous)
    x, y, w = np.moveaxis(projected, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        image_points = np.stack([y / w, x / w], axis=-1)
    return np.where(w[..., None] > 0, image_points, np.nan).astype(np.float32)
