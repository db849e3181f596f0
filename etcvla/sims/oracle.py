"""Facts about a frame, read from MuJoCo's state and from a rendered segmentation.

Axes: C cameras, N objects, H W pixels. Facts are the step fields of `etcvla.etc.annotation`,
without the T axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np

from etcvla.etc.annotation import project
from etcvla.sims.conditions import Orbit
from etcvla.sims.render import HIDDEN_GROUP, Extra, Renderer, camera_matrix
from etcvla.sims.task import ObjectSpec

# Metres that an object has to move before its silhouette is measured again.
_MOVED = 1e-3
# Metres around the visible parts of an object within which a collision shape belongs to it.
_SOLID_MARGIN = 0.015
_BOX_CORNERS = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), -1).reshape(8, 3)


Bounds = tuple[np.ndarray, np.ndarray]  # world-aligned corners (low, high), float[3] metres


class _Located:
    """What simulated and rendered objects share: a centre and a grasp point."""

    spec: ObjectSpec

    def position(self, data: mujoco.MjData) -> np.ndarray:
        """Return the centre, float[3] metres."""
        raise NotImplementedError

    def grasp_point(self, data: mujoco.MjData) -> np.ndarray:
        """Return where to hold or touch the object, float[3] metres; NaN where that is unknown."""
        offset = np.nan if self.spec.touch is None else self.spec.touch
        return self.position(data) + offset


class Tracked(_Located):
    """A named object of a model.

    Attributes:
      spec: the object's description.
      site: id of the site, for a marker; None for a body.
      geoms: ids of all its geoms.
      visible_geoms: ids of the geoms that are rendered.
      solid_geoms: ids of the geoms that count for contact.
      labels: labels in a segmentation of `Renderer`.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, spec: ObjectSpec):
        """Find the object in the model. Raises ValueError if it renders nothing."""
        self.spec = spec
        self._model = model
        if spec.site:
            self.site = model.site(spec.site).id
            self.geoms = np.array([], int)
        else:
            self.site = None
            self.geoms = _geoms_of(model, spec.body, spec.subtree)
        self.visible_geoms = self._find_visible_geoms()
        if self.site is None and not len(self.visible_geoms):
            raise ValueError(
                f"object {spec.name!r}: body {spec.body!r} renders nothing, parts "
                f"{spec.parts or 'all'}"
            )
        self.labels = self.visible_geoms
        if self.site is not None:
            self.labels = np.array([model.ngeom + self.site])
        self.solid_geoms = self._solid_parts(data) if spec.parts else self.geoms

    def _find_visible_geoms(self) -> np.ndarray:
        model = self._model
        is_visible = (model.geom_group[self.geoms] < 3) & (model.geom_rgba[self.geoms, 3] > 0)
        visible = self.geoms[is_visible]
        if not self.spec.parts:
            return visible
        parts = set(self.spec.parts)
        is_part = [bool(_part_names(model, geom) & parts) for geom in visible]
        return visible[np.array(is_part, bool)]

    def _solid_parts(self, data: mujoco.MjData) -> np.ndarray:
        """Return the geoms within the visible parts: collision shapes have no material."""
        low, high = self.bounds(data)
        centres = data.geom_xpos[self.geoms]
        is_within = (centres > low - _SOLID_MARGIN) & (centres < high + _SOLID_MARGIN)
        return self.geoms[is_within.all(-1)]

    def bounds(self, data: mujoco.MjData) -> Bounds:
        """Return the world-aligned corners (low, high), float[3] metres each."""
        if self.site is not None:
            centre = data.site_xpos[self.site]
            radius = self._model.site_size[self.site, 0]
            return centre - radius, centre + radius
        boxes = self._model.geom_aabb[self.visible_geoms]
        local = boxes[:, None, :3] + _BOX_CORNERS * boxes[:, None, 3:]
        rotations = data.geom_xmat[self.visible_geoms].reshape(-1, 3, 3)
        corners = np.einsum("gij,gkj->gki", rotations, local)
        corners += data.geom_xpos[self.visible_geoms, None]
        return corners.min((0, 1)), corners.max((0, 1))

    def position(self, data: mujoco.MjData) -> np.ndarray:
        """Return the centre, float[3] metres."""
        return np.mean(self.bounds(data), axis=0)


class Placed(_Located):
    """A named object that is only rendered (see `render.Extra`).

    It stays where it is, or follows the simulated object that it replaces.
    """

    def __init__(
        self,
        spec: ObjectSpec,
        extra: Extra,
        half_extent: np.ndarray,
        label: int,
        replaces: Tracked | None = None,
    ):
        self.spec = spec
        self._extra = extra
        self._half_extent = half_extent
        self._replaces = replaces
        self.site = None
        self.labels = np.array([label])
        self.geoms = np.array([], int)
        self.solid_geoms = np.array([], int)
        if replaces is not None:
            self.geoms = replaces.geoms
            self.solid_geoms = replaces.solid_geoms
        self.visible_geoms = self.solid_geoms

    def bounds(self, data: mujoco.MjData) -> Bounds:
        """Return the world-aligned corners (low, high), float[3] metres each."""
        centre = self.position(data)
        return centre - self._half_extent, centre + self._half_extent

    def position(self, data: mujoco.MjData) -> np.ndarray:
        """Return the centre, float[3] metres."""
        return self._extra.position if self._replaces is None else self._replaces.position(data)

    def follow(self, data: mujoco.MjData) -> None:
        """Move to the replaced object's position. Call it before rendering."""
        self._extra.position = self.position(data)


class Oracle:
    """Reads facts about the objects, as seen by the cameras.

    `objects` may be changed; call `refresh` afterwards.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        objects: Sequence[ObjectSpec],
        renderer: Renderer,
        cameras: Sequence[str | Orbit],
        gripper_body: str,
    ):
        self._model = model
        self._renderer = renderer
        self._cameras = tuple(cameras)
        self.objects: list[Tracked | Placed] = [Tracked(model, data, spec) for spec in objects]
        self._gripper = _geoms_of(model, gripper_body, subtree=True)
        for tracked in self.objects:
            self._add_unnamed_geoms(tracked)
        self.refresh()

    def _add_unnamed_geoms(self, tracked: Tracked) -> None:
        """Add the geoms of the object's body that belong to no other object to its solid geoms."""
        named = [other.geoms for other in self.objects if other is not tracked]
        unnamed = np.setdiff1d(tracked.geoms, np.concatenate([np.array([], int), *named]))
        tracked.solid_geoms = np.union1d(tracked.solid_geoms, unnamed)

    def refresh(self) -> None:
        """Update the tables after `objects` or the renderer's extras have changed."""
        # The last column is the background, label -1.
        num_labels = self._model.ngeom + self._model.nsite + len(self._renderer.extras) + 1
        self._has_label = np.zeros((len(self.objects), num_labels), bool)
        for row, tracked in zip(self._has_label, self.objects, strict=True):
            row[tracked.labels] = True
        self._silhouettes: dict[int, tuple[np.ndarray, int]] = {}

    def follow(self, data: mujoco.MjData) -> None:
        """Move the rendered objects that replace simulated ones. Call it before rendering."""
        for tracked in self.objects:
            if isinstance(tracked, Placed):
                tracked.follow(data)

    def visible_geoms(self) -> np.ndarray:
        """Return the sorted ids of the geoms that the objects are rendered with."""
        return np.unique(np.concatenate([tracked.visible_geoms for tracked in self.objects]))

    def facts(
        self, data: mujoco.MjData, grasp_centre: np.ndarray, all_views: bool = True
    ) -> dict[str, Any]:
        """Return every step field of an annotation except gripper_open and phase.

        Visible shares are measured in the first camera. In the others they are 0 where nothing of
        an object is visible and NaN elsewhere: a camera that moves would need new silhouettes at
        every frame.

        Args:
          data: the simulator's state.
          grasp_centre: float[3] metres.
          all_views: search objects in the other cameras as well. If False, boxes and shares there
            are NaN, which halves the cost.
        """
        self.follow(data)
        matrices = [camera_matrix(self._model, data, camera) for camera in self._cameras]
        matrix = np.stack(matrices)
        position = np.array([tracked.position(data) for tracked in self.objects])
        grasp = np.array([tracked.grasp_point(data) for tracked in self.objects])
        grasp_in_cameras = np.broadcast_to(grasp, (len(matrix), *grasp.shape))
        box, visible = self._boxes_and_shares(data, all_views)
        return {
            "camera_matrix": matrix,
            "gripper_pixel": project(matrix, grasp_centre),
            "gripper_position": grasp_centre,
            "box": box,
            "visible": visible,
            "position": position,
            "contact": self.contact(data, grasp_centre),
            "grasp_pixel": project(matrix[:, None], grasp_in_cameras),
        }

    def contact(self, data: mujoco.MjData, grasp_centre: np.ndarray) -> np.ndarray:
        """Return float32[N]: 1 where the gripper touches the object.

        A marker is touched if it contains the grasp centre.
        """
        pairs = data.contact.geom
        is_gripper = np.isin(pairs, self._gripper)
        is_touch = is_gripper.any(1) & ~is_gripper.all(1)
        touching_geoms = pairs[is_touch]
        contact = np.zeros(len(self.objects), np.float32)
        for n, tracked in enumerate(self.objects):
            if tracked.site is None:
                contact[n] = np.isin(touching_geoms, tracked.solid_geoms).any()
            else:
                distance = np.linalg.norm(data.site_xpos[tracked.site] - grasp_centre)
                contact[n] = distance < self._model.site_size[tracked.site, 0]
        return contact

    def _boxes_and_shares(
        self, data: mujoco.MjData, all_views: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return boxes float32[C, N, 4] and visible shares float32[C, N]."""
        shape = (len(self._cameras), len(self.objects))
        box = np.full((*shape, 4), np.nan, np.float32)
        visible = np.full(shape, np.nan, np.float32)
        labels = self._renderer.labels(data, self._cameras[0])
        for n, has_label in enumerate(self._has_label):
            mask = has_label[labels]
            box[0, n] = mask_box(mask)
            silhouette = self._silhouette(data, n)
            visible[0, n] = min(1.0, mask.sum() / silhouette) if silhouette else 0.0
        if not all_views:
            return box, visible
        for c, camera in enumerate(self._cameras[1:], 1):
            labels = self._renderer.labels(data, camera)
            box[c] = [mask_box(has_label[labels]) for has_label in self._has_label]
            visible[c] = np.where(np.isnan(box[c, :, 0]), 0, np.nan)
        return box, visible

    def _silhouette(self, data: mujoco.MjData, n: int) -> int:
        """Return how many pixels object n covers in the first camera if nothing is in front of it.

        The first camera does not move, so the count is kept until the object moves.
        """
        pose = np.concatenate(self.objects[n].bounds(data))
        measured_at, count = self._silhouettes.get(n, (np.inf, 0))
        if np.abs(pose - measured_at).max() > _MOVED:
            count = self._renderer.silhouette(data, self._cameras[0], self.objects[n].labels)
            self._silhouettes[n] = (pose, count)
        return count


def mask_box(mask: np.ndarray) -> np.ndarray:
    """Return the bounding box of a mask's true pixels.

    Args:
      mask: bool[H, W].

    Returns float32[4], (ymin, xmin, ymax, xmax) of the pixels' outer edges in [0, 1]; NaN without a
    true pixel.
    """
    rows = np.flatnonzero(mask.any(1))
    columns = np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.full(4, np.nan, np.float32)
    height, width = mask.shape
    top_left = [rows[0] / height, columns[0] / width]
    bottom_right = [(rows[-1] + 1) / height, (columns[-1] + 1) / width]
    return np.array(top_left + bottom_right, np.float32)


def hide_sites(model: mujoco.MjModel, keep: Sequence[str]) -> None:
    """Hide every site except those named in `keep`."""
    model.site_group[:] = HIDDEN_GROUP
    for name in keep:
        model.site_group[model.site(name).id] = 0


def _geoms_of(model: mujoco.MjModel, body: str, subtree: bool) -> np.ndarray:
    """Return the ids of the geoms of a body, or of the body and all bodies below it."""
    root = model.body(body).id
    bodies = {root}
    if subtree:  # parents come before children in a model
        for index in range(root, model.nbody):
            if model.body_parentid[index] in bodies:
                bodies.add(index)
    return np.flatnonzero(np.isin(model.geom_bodyid, list(bodies)))


def _part_names(model: mujoco.MjModel, geom: int) -> set[str]:
    """Return the names of a geom's material and mesh."""
    names = set()
    material = model.geom_matid[geom]
    if material >= 0:
        names.add(model.material(material).name)
    if model.geom_type[geom] == int(mujoco.mjtGeom.mjGEOM_MESH):
        names.add(model.mesh(model.geom_dataid[geom]).name)
    return names - {""}
