"""Facts about a frame, read from MuJoCo's state and from a rendered segmentation.

Axes: C cameras, N objects, H W pixels. Facts are the step fields of `etcvla.etc.annotation`,
without the T axis.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import mujoco
import numpy as np

from etcvla.etc.annotation import project
from etcvla.sims.conditions import Orbit
from etcvla.sims.render import HIDDEN_GROUP, Extra, Renderer
from etcvla.sims.task import ObjectSpec

# Metres that an object has to move before its silhouette is measured again.
_MOVED = 1e-3
# Metres around the visible parts of an object within which a collision shape belongs to it.
_SOLID_MARGIN = 0.015
_BOX_CORNERS = np.array(list(itertools.product((-1, 1), repeat=3)))
_LOW_HIGH = np.array([[-1], [1]])
_NO_GEOMS = np.array([], int)

Bounds = np.ndarray  # float[2, 3], world-aligned corners (low, high) in metres
Point = np.ndarray  # float[3] metres in the world


class SceneObject:
    """A named object of a scene: a body's geoms, or a marker, which is a site.

    Attributes:
      spec: the object's description.
      site: id of the site; None for a body.
      geoms: ids of all its geoms.
      visible_geoms: ids of the geoms that are rendered.
      solid_geoms: ids of the geoms that count for contact.
      labels: labels in a segmentation of `Renderer`.
    """

    spec: ObjectSpec
    site: int | None = None
    geoms = _NO_GEOMS
    visible_geoms = _NO_GEOMS
    solid_geoms = _NO_GEOMS
    labels: np.ndarray

    def bounds(self) -> Bounds:
        """Return the world-aligned corners."""
        raise NotImplementedError

    def position(self) -> Point:
        """Return the centre."""
        return self.bounds().mean(0)

    def grasp_point(self) -> Point:
        """Return where to hold or touch the object; NaN where that is unknown."""
        offset = np.nan if self.spec.touch is None else self.spec.touch
        return self.position() + offset


class SimulatedObject(SceneObject):
    """An object of the model."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, spec: ObjectSpec):
        """Find the object in the model. Raises ValueError if it renders nothing."""
        self.spec = spec
        self._model = model
        self._data = data
        if spec.site:
            self.site = model.site(spec.site).id
            self.labels = np.array([model.ngeom + self.site])
            return
        self.geoms = _geoms_of(model, spec.body, spec.subtree)
        self.visible_geoms = self._find_visible_geoms()
        if not len(self.visible_geoms):
            raise ValueError(f"object {spec.name!r}: {spec.body!r} {spec.parts} renders nothing")
        self.labels = self.visible_geoms
        self.solid_geoms = self._solid_parts() if spec.parts else self.geoms

    def _find_visible_geoms(self) -> np.ndarray:
        model = self._model
        is_visible = (model.geom_group[self.geoms] < 3) & (model.geom_rgba[self.geoms, 3] > 0)
        visible = self.geoms[is_visible]
        parts = set(self.spec.parts)
        if not parts:
            return visible
        return np.array([geom for geom in visible if parts & _part_names(model, geom)], int)

    def _solid_parts(self) -> np.ndarray:
        """Return the geoms within the visible parts: collision shapes have no material."""
        low, high = self.bounds()
        centres = self._data.geom_xpos[self.geoms]
        is_within = (centres > low - _SOLID_MARGIN) & (centres < high + _SOLID_MARGIN)
        return self.geoms[is_within.all(-1)]

    def bounds(self) -> Bounds:
        """Return the world-aligned corners."""
        if self.site is not None:
            return self._data.site_xpos[self.site] + _LOW_HIGH * self._model.site_size[self.site, 0]
        geoms = self.visible_geoms
        boxes = self._model.geom_aabb[geoms, None]
        local = boxes[..., :3] + _BOX_CORNERS * boxes[..., 3:]
        rotations = self._data.geom_xmat[geoms].reshape(-1, 3, 3)
        corners = np.einsum("gij,gkj->gki", rotations, local) + self._data.geom_xpos[geoms, None]
        return np.stack([corners.min((0, 1)), corners.max((0, 1))])


class RenderedObject(SceneObject):
    """An object that is not simulated (see `render.Extra`).

    It stays where it is, or follows the simulated object that it replaces.
    """

    def __init__(self, spec: ObjectSpec, extra: Extra, replaces: SceneObject | None = None):
        self.spec = spec
        self.labels = np.array([extra.label])
        self._extra = extra
        self._replaces = replaces
        if replaces:
            self.geoms = replaces.geoms
            self.visible_geoms = replaces.solid_geoms
            self.solid_geoms = replaces.solid_geoms

    def bounds(self) -> Bounds:
        """Return the world-aligned corners."""
        return self.position() + _LOW_HIGH * self._extra.added.half_extent

    def position(self) -> Point:
        """Return the centre."""
        return self._replaces.position() if self._replaces else self._extra.position

    def follow(self) -> None:
        """Move to the replaced object's position. Call it before rendering."""
        self._extra.position = self.position()


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
        cameras: Iterable[str | Orbit],
        gripper_body: str,
    ):
        self._model = model
        self._data = data
        self._renderer = renderer
        self._cameras = tuple(cameras)
        self._gripper = _geoms_of(model, gripper_body, subtree=True)
        self.objects: list[SceneObject] = [SimulatedObject(model, data, spec) for spec in objects]
        # Geoms of a body that belong to no other object count for contact as well.
        for own in self.objects:
            others = [other.geoms for other in self.objects if other is not own]
            own.solid_geoms = np.union1d(own.solid_geoms, without(own.geoms, others))
        self.refresh()

    def refresh(self) -> None:
        """Update the tables after `objects` or the renderer's extras have changed."""
        # bool[N, labels]; the last column is the background, label -1.
        self._has_label = np.zeros((len(self.objects), self._renderer.num_labels + 1), bool)
        for row, scene_object in zip(self._has_label, self.objects, strict=True):
            row[scene_object.labels] = True
        self._silhouettes: dict[int, tuple[np.ndarray, int]] = {}

    def follow(self) -> None:
        """Move the rendered objects that replace simulated ones. Call it before rendering."""
        for scene_object in self.objects:
            if isinstance(scene_object, RenderedObject):
                scene_object.follow()

    def visible_geoms(self) -> np.ndarray:
        """Return the sorted ids of the geoms that the objects are rendered with."""
        geoms = [scene_object.visible_geoms for scene_object in self.objects]
        return np.unique(np.concatenate(geoms))

    def bounds(self) -> np.ndarray:
        """Return the world-aligned corners (low, high) of all objects, float[N, 2, 3] metres."""
        return np.array([scene_object.bounds() for scene_object in self.objects])

    def positions(self) -> np.ndarray:
        """Return the centres of all objects, float[N, 3] metres."""
        return np.array([scene_object.position() for scene_object in self.objects])

    def facts(self, grasp_centre: Point, all_views: bool = True) -> dict[str, Any]:
        """Return every step field of an annotation except gripper_open and phase.

        Visible shares are measured in the first camera. In the others they are 0 where nothing of
        an object is visible and NaN elsewhere: a camera that moves would need new silhouettes at
        every frame.

        Args:
          grasp_centre: the gripper's grasp centre.
          all_views: search objects in the other cameras as well. If False, boxes and shares there
            are NaN, which halves the cost.
        """
        self.follow()
        matrix = np.stack([self._renderer.camera_matrix(camera) for camera in self._cameras])
        grasp = np.array([scene_object.grasp_point() for scene_object in self.objects])
        box, visible = self._boxes_and_shares(all_views)
        return {
            "camera_matrix": matrix,
            "gripper_pixel": project(matrix, grasp_centre),
            "gripper_position": grasp_centre,
            "box": box,
            "visible": visible,
            "position": self.positions(),
            "contact": self.contact(grasp_centre),
            "grasp_pixel": project(matrix[:, None], grasp),
        }

    def contact(self, grasp_centre: Point) -> np.ndarray:
        """Return float32[N]: 1 where the gripper touches the object.

        A marker is touched if it contains the grasp centre.
        """
        pairs = self._data.contact.geom
        is_gripper = np.isin(pairs, self._gripper)
        touching_geoms = pairs[is_gripper.any(1) & ~is_gripper.all(1)]
        contact = np.zeros(len(self.objects), np.float32)
        for n, scene_object in enumerate(self.objects):
            site = scene_object.site
            if site is None:
                contact[n] = np.isin(touching_geoms, scene_object.solid_geoms).any()
            else:
                distance = np.linalg.norm(self._data.site_xpos[site] - grasp_centre)
                contact[n] = distance < self._model.site_size[site, 0]
        return contact

    def _boxes_and_shares(self, all_views: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return boxes float32[C, N, 4] and visible shares float32[C, N]."""
        shape = (len(self._cameras), len(self.objects))
        box = np.full((*shape, 4), np.nan, np.float32)
        visible = np.full(shape, np.nan, np.float32)
        for c, camera in enumerate(self._cameras if all_views else self._cameras[:1]):
            labels = self._renderer.labels(camera)
            for n, has_label in enumerate(self._has_label):
                mask = has_label[labels]
                box[c, n] = mask_box(mask)
                silhouette = self._silhouette(n) if c == 0 else 0
                if silhouette:
                    visible[c, n] = min(1.0, mask.sum() / silhouette)
                elif c == 0 or not mask.any():
                    visible[c, n] = 0
        return box, visible

    def _silhouette(self, n: int) -> int:
        """Return how many pixels object n covers in the first camera if nothing is in front of it.

        The first camera does not move, so the count is kept until the object moves.
        """
        pose = self.objects[n].bounds()
        measured_at, count = self._silhouettes.get(n, (np.inf, 0))
        if np.abs(pose - measured_at).max() > _MOVED:
            count = self._renderer.silhouette(self._cameras[0], self.objects[n].labels)
            self._silhouettes[n] = (pose, count)
        return count


def mask_box(mask: np.ndarray) -> np.ndarray:
    """Return the bounding box of a mask's true pixels.

    Args:
      mask: bool[H, W].

    Returns float32[4], (ymin, xmin, ymax, xmax) of the pixels' outer edges in [0, 1]; NaN without a
    true pixel.
    """
    pixels = np.argwhere(mask)
    if not len(pixels):
        return np.full(4, np.nan, np.float32)
    corners = np.stack([pixels.min(0), pixels.max(0) + 1])
    return (corners / mask.shape).astype(np.float32).ravel()


def without(geoms: np.ndarray, others: Iterable[np.ndarray]) -> np.ndarray:
    """Return the sorted ids of `geoms` that are in none of `others`."""
    return functools.reduce(np.setdiff1d, others, np.unique(geoms))


def hide_sites(model: mujoco.MjModel, keep: Sequence[str]) -> None:
    """Hide every site except those named in `keep`."""
    model.site_group[:] = HIDDEN_GROUP
    for name in keep:
        model.site_group[model.site(name).id] = 0


def _geoms_of(model: mujoco.MjModel, body: str, subtree: bool) -> np.ndarray:
    """Return the ids of the geoms of a body, or of the body and all bodies below it."""
    bodies = [model.body(body).id]
    if subtree:
        for child, parent in enumerate(model.body_parentid):  # parents come before their children
            if parent in bodies:
                bodies.append(child)
    return np.flatnonzero(np.isin(model.geom_bodyid, bodies))


def _part_names(model: mujoco.MjModel, geom: int) -> set[str]:
    """Return the names of a geom's material and mesh."""
    names = set()
    if model.geom_matid[geom] >= 0:
        names.add(model.material(model.geom_matid[geom]).name)
    if model.geom_dataid[geom] >= 0:
        names.add(model.mesh(model.geom_dataid[geom]).name)
    return names
