"""Annotation: the facts about an episode from which every ETC label is made.

Axes: T steps, C cameras, N objects. Simulators fill an annotation exactly; real data as far as calibration, detectors
or people allow. **Unknown is NaN (or -1, or ""), never zero.**

Conventions. An image point is (y, x) with both in [0, 1], origin at the top left, of the image *as it is shown* to the
model. A box is (ymin, xmin, ymax, xmax) in the same units. Positions are metres in the robot's base frame.
"""

from __future__ import annotations

import dataclasses

import numpy as np

# name -> trailing shape as axis letters; the leading axis is T. Order is the order on disk.
STEP_FIELDS: dict[str, tuple[str | int, ...]] = {
    "camera_matrix": (
        "C",
        3,
        4,
    ),  # base-frame metres [x, y, z, 1] -> w * [x, y, 1] of the image point
    "gripper_pixel": ("C", 2),  # image point of the grasp centre; may lie outside [0, 1]
    "gripper_position": (3,),  # grasp centre, metres
    "gripper_open": (),  # 0 closed .. 1 open
    "box": ("C", "N", 4),  # tight box around the object's visible pixels
    "visible": ("C", "N"),  # visible share of the object's silhouette, 0 .. 1
    "position": ("N", 3),  # object centre, metres
    "grasp_pixel": ("C", "N", 2),  # image point where a gripper should hold or touch the object
    "contact": ("N",),  # 1 the gripper touches the object, 0 it does not
    "phase": (),  # index into `phases` of the subtask in progress; -1 unknown
}
INT_FIELDS = frozenset({"phase"})
AXES = frozenset({"front", "back", "left", "right", "up", "down"})  # as the robot sees it


@dataclasses.dataclass
class Annotation:
    """Facts of one episode; see the module docstring for units. Arrays are float32 except `phase`, int32."""

    instruction: str  # what the robot was told
    cameras: tuple[str, ...]  # C names; the first is the primary view, the one that ETC speaks of
    objects: tuple[str, ...]  # N nouns without article ("drawer handle"), unique in the episode
    colors: tuple[str, ...]  # N colour words, "" where unknown or mixed
    phases: tuple[str, ...]  # the ordered subtasks as imperatives ("move to the drawer handle")
    target: int  # index of the object that the instruction is about; -1 unknown
    success: bool | None  # did the episode reach its goal; None unknown
    rate: float  # control steps a second; NaN unknown

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

    shapes: tuple[str, ...] = ()  # N shape words, "" where unknown; () none is known
    axes: tuple[str, ...] = ()  # where x, y, z of the base frame point, of AXES; () unknown

    def __post_init__(self):
        """Raises ValueError where a field's shape or dtype is not the documented one."""
        sizes = {"C": len(self.cameras), "N": len(self.objects)}
        steps = len(self.gripper_open)
        if len(self.colors) != sizes["N"]:
            raise ValueError(f"annotation: {sizes['N']} objects but {len(self.colors)} colors")
        if len(self.shapes) not in (0, sizes["N"]):
            raise ValueError(f"annotation: {sizes['N']} objects but {len(self.shapes)} shapes")
        if self.axes and (len(self.axes) != 3 or set(self.axes) - AXES):
            raise ValueError(f"annotation.axes: {self.axes}, expected three of {sorted(AXES)}")
        for name, axes in STEP_FIELDS.items():
            dtype = np.int32 if name in INT_FIELDS else np.float32
            value = np.asarray(getattr(self, name), dtype)
            shape = (steps, *(sizes.get(axis, axis) for axis in axes))
            if value.shape != shape:
                raise ValueError(f"annotation.{name}: shape {value.shape}, expected {shape}")
            setattr(self, name, value)

    def direction_vector(self, direction: str) -> np.ndarray:
        """float[3]: the unit vector of the base frame that points to the robot's "front", "left" or "up"; NaN unknown."""
        opposite = {"front": "back", "left": "right", "up": "down"}[direction]
        vector = [(axis == direction) - float(axis == opposite) for axis in self.axes]
        return np.array(vector) if any(vector) else np.full(3, np.nan)

    def __len__(self) -> int:
        return len(self.gripper_open)

    def pad_objects(self, num_objects: int) -> dict[str, np.ndarray]:
        """Step fields with the object axis padded by NaN to `num_objects`, as they stand in an RLDS file.

        Raises ValueError if the episode has more objects than that.
        """
        if len(self.objects) > num_objects:
            raise ValueError(
                f"{len(self.objects)} objects ({', '.join(self.objects)}), but the dataset holds "
                f"{num_objects}: raise num_objects"
            )
        missing = num_objects - len(self.objects)
        padded = {}
        for name, axes in STEP_FIELDS.items():
            widths = [(0, 0)] + [(0, missing if axis == "N" else 0) for axis in axes]
            value = getattr(self, name)
            padded[name] = np.pad(value, widths, constant_values=np.nan) if "N" in axes else value
        return padded


def project(camera_matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Image points (y, x) of base-frame points; NaN behind the camera.

    Args:
      camera_matrix: float[..., 3, 4].
      points: float[..., 3] metres; leading axes broadcast against the matrix's.
    """
    homogeneous = np.concatenate([points, np.ones_like(points[..., :1])], axis=-1)
    x, y, w = np.moveaxis(np.einsum("...ij,...j->...i", camera_matrix, homogeneous), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(w[..., None] > 0, np.stack([y / w, x / w], axis=-1), np.nan).astype(
            np.float32
        )
