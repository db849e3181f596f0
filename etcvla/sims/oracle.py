"""Facts about a frame, read from a MuJoCo simulator's state and from a segmentation of the rendered view.

Axes: C cameras, N objects, H W pixels. Facts are the step fields of `etcvla.etc.annotation`, without the T axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np

from etcvla.etc.annotation import project
from etcvla.sims.render import HIDDEN_GROUP, Extra, Orbit, Renderer, camera_matrix
from etcvla.sims.task import ObjectSpec

# Silhouettes are measured again only after an object moved this far, in metres.
_STILL = 1e-3
_SIGNS = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), -1).reshape(8, 3)


class Tracked:
    """One named object in a model: its visible parts, where they are, and what counts as touching it."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, spec: ObjectSpec):
        """Raises ValueError if the model has nothing of that description."""
        self.spec, self._model = spec, model
        self.site = model.site(spec.site).id if spec.site else None
        self.geoms = geoms = np.array(
            [] if spec.site else _geoms_of(model, spec.body, spec.subtree), int
        )
        drawn = geoms[(model.geom_group[geoms] < 3) & (model.geom_rgba[geoms, 3] > 0)]
        drawn = drawn[
            [not spec.parts or bool(_part_names(model, geom) & set(spec.parts)) for geom in drawn]
        ]
        if self.site is None and not len(drawn):
            raise ValueError(
                f"object {spec.name!r}: body {spec.body!r} draws nothing, parts {spec.parts or 'all'}"
            )
        self.drawn = drawn
        self.labels = drawn if self.site is None else np.array([model.ngeom + self.site])
        self.solid = self._solid(data, geoms) if spec.parts else geoms

    def _solid(self, data, geoms: np.ndarray) -> np.ndarray:
        """Of a body's geoms those that stand within the drawn ones: collision shapes carry no material of their own."""
        low, high = self.bounds(data)
        centres = data.geom_xpos[geoms]
        return geoms[((centres > low - 0.015) & (centres < high + 0.015)).all(-1)]

    def bounds(self, data: mujoco.MjData) -> tuple[np.ndarray, np.ndarray]:
        """World-aligned corners (low, high) in metres."""
        if self.site is not None:
            centre, radius = data.site_xpos[self.site], self._model.site_size[self.site, 0]
            return centre - radius, centre + radius
        boxes = self._model.geom_aabb[self.drawn]
        local = boxes[:, None, :3] + _SIGNS * boxes[:, None, 3:]
        frames = data.geom_xmat[self.drawn].reshape(-1, 3, 3)
        corners = np.einsum("gij,gkj->gki", frames, local) + data.geom_xpos[self.drawn, None]
        return corners.min((0, 1)), corners.max((0, 1))

    def position(self, data: mujoco.MjData) -> np.ndarray:
        """The centre, float[3] metres."""
        return np.mean(self.bounds(data), axis=0)

    def grasp_point(self, data: mujoco.MjData) -> np.ndarray:
        """Where to hold or touch it, float[3] metres; NaN where that is unknown."""
        return self.position(data) + (np.nan if self.spec.touch is None else self.spec.touch)


class Placed:
    """A named thing that is drawn only (see `render.Extra`), standing still or riding on an object that it replaces."""

    def __init__(
        self,
        spec: ObjectSpec,
        extra: Extra,
        half: np.ndarray,
        label: int,
        rides: Tracked | None = None,
    ):
        self.spec, self._extra, self._half, self._rides = spec, extra, half, rides
        self.site, self.labels = None, np.array([label])
        self.drawn = self.solid = np.array([], int) if rides is None else rides.solid

    def bounds(self, data: mujoco.MjData) -> tuple[np.ndarray, np.ndarray]:
        """World-aligned corners (low, high) in metres."""
        centre = self.position(data)
        return centre - self._half, centre + self._half

    def position(self, data: mujoco.MjData) -> np.ndarray:
        """The centre, float[3] metres."""
        return self._extra.position if self._rides is None else self._rides.position(data)

    def follow(self, data: mujoco.MjData) -> None:
        """To be called before anything is drawn: what is ridden on may have moved."""
        self._extra.position = self.position(data)

    def grasp_point(self, data: mujoco.MjData) -> np.ndarray:
        """Where to hold it, float[3] metres; NaN for what is not to be held."""
        return self.position(data) + (np.nan if self.spec.touch is None else self.spec.touch)


class Oracle:
    """Reads facts; knows which objects, cameras and gripper to look at."""

    def __init__(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        objects: Sequence[ObjectSpec],
        view: Renderer,
        cameras: Sequence[str | Orbit],
        gripper_body: str,
    ):
        self._model, self._view, self._cameras = model, view, tuple(cameras)
        self.objects: list[Tracked | Placed] = [Tracked(model, data, spec) for spec in objects]
        self._gripper = _geoms_of(model, gripper_body, subtree=True)
        for tracked in (
            self.objects
        ):  # to touch what bears no name of its own is to touch the part that has one
            named = [
                np.array([], int),
                *(other.geoms for other in self.objects if other is not tracked),
            ]
            tracked.solid = np.union1d(
                tracked.solid, np.setdiff1d(tracked.geoms, np.concatenate(named))
            )
        self.forget()

    def forget(self) -> None:
        """Call when `objects`, or what the view adds to the scene, has changed."""
        size = (
            self._model.ngeom + self._model.nsite + len(self._view.extras) + 1
        )  # the last column: background
        self._member = np.zeros((len(self.objects), size), bool)
        for row, tracked in zip(self._member, self.objects, strict=True):
            row[tracked.labels] = True
        self._silhouettes: dict[int, tuple[np.ndarray, int]] = {}

    def follow(self, data: mujoco.MjData) -> None:
        """To be called before anything is drawn, where things ride on others."""
        for tracked in self.objects:
            if isinstance(tracked, Placed):
                tracked.follow(data)

    def facts(
        self, data: mujoco.MjData, grasp_centre: np.ndarray, all_views: bool = True
    ) -> dict[str, np.ndarray]:
        """Every annotation field but gripper_open and phase.

        Visible shares are measured in the first camera. In others they are 0 where nothing of an object is seen and
        else unknown: silhouettes of a camera that moves would have to be drawn again at every frame.

        Args:
          grasp_centre: float[3] metres.
          all_views: look for objects in the other cameras too; else that is unknown, and half of the price.
        """
        self.follow(data)
        matrix = np.stack([camera_matrix(self._model, data, camera) for camera in self._cameras])
        position = np.array([tracked.position(data) for tracked in self.objects])
        grasp = np.array([tracked.grasp_point(data) for tracked in self.objects])
        box, visible = self._measure(data, all_views)
        return {
            "camera_matrix": matrix,
            "gripper_pixel": project(matrix, grasp_centre),
            "gripper_position": grasp_centre,
            "box": box,
            "visible": visible,
            "position": position,
            "contact": self.contact(data, grasp_centre),
            "grasp_pixel": project(
                matrix[:, None], np.broadcast_to(grasp, (len(matrix), *grasp.shape))
            ),
        }

    def contact(self, data: mujoco.MjData, grasp_centre: np.ndarray) -> np.ndarray:
        """float32[N]: 1 where the gripper touches; a marker counts as touched with the grasp centre inside it."""
        pairs = data.contact.geom
        of_gripper = np.isin(pairs, self._gripper)
        others = pairs[of_gripper.any(1) & ~of_gripper.all(1)]
        return np.array(
            [
                np.isin(others, tracked.solid).any()
                if tracked.site is None
                else np.linalg.norm(data.site_xpos[tracked.site] - grasp_centre)
                < self._model.site_size[tracked.site, 0]
                for tracked in self.objects
            ],
            np.float32,
        )

    def _measure(self, data, all_views: bool) -> tuple[np.ndarray, np.ndarray]:
        """Boxes float32[C, N, 4] and visible shares float32[C, N]."""
        shape = len(self._cameras), len(self.objects)
        box, visible = np.full((*shape, 4), np.nan, np.float32), np.full(shape, np.nan, np.float32)
        labels = self._view.labels(data, self._cameras[0])
        for n, member in enumerate(self._member):
            mask = member[labels]
            box[0, n] = mask_box(mask)
            whole = self._silhouette(data, n)
            visible[0, n] = min(1.0, mask.sum() / whole) if whole else 0.0
        for c, camera in enumerate(self._cameras[1:] if all_views else (), 1):
            labels = self._view.labels(data, camera)
            box[c] = [mask_box(member[labels]) for member in self._member]
            visible[c] = np.where(np.isnan(box[c, :, 0]), 0, np.nan)
        return box, visible

    def _silhouette(self, data, n: int) -> int:
        """Pixels of object n with nothing before it. The first camera stands still, so a resting object keeps it."""
        pose = np.concatenate(self.objects[n].bounds(data))
        at, count = self._silhouettes.get(n, (np.inf, 0))
        if np.abs(pose - at).max() > _STILL:
            count = self._view.silhouette(data, self._cameras[0], self.objects[n].labels)
            self._silhouettes[n] = pose, count
        return count


def mask_box(mask: np.ndarray) -> np.ndarray:
    """float32[4] (ymin, xmin, ymax, xmax) in [0, 1] of the true pixels' outer edges; NaN if there are none."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.full(4, np.nan, np.float32)
    height, width = mask.shape
    return np.array(
        [rows[0] / height, columns[0] / width, (rows[-1] + 1) / height, (columns[-1] + 1) / width],
        np.float32,
    )


def hide_sites(model: mujoco.MjModel, keep: Sequence[str]) -> None:
    """Takes every site but `keep` out of the picture."""
    model.site_group[:] = HIDDEN_GROUP
    model.site_group[[model.site(name).id for name in keep]] = 0


def _geoms_of(model: mujoco.MjModel, body: str, subtree: bool) -> np.ndarray:
    """Ids of the geoms of a body, or of the body and all below it."""
    bodies = {model.body(body).id}
    if subtree:  # parents come before children in a model
        for index in range(min(bodies), model.nbody):
            if model.body_parentid[index] in bodies:
                bodies.add(index)
    return np.flatnonzero(np.isin(model.geom_bodyid, list(bodies)))


def _part_names(model: mujoco.MjModel, geom: int) -> set[str]:
    """What a geom may be called by: its material, its mesh."""
    material, mesh = model.geom_matid[geom], model.geom_dataid[geom]
    is_mesh = model.geom_type[geom] == int(mujoco.mjtGeom.mjGEOM_MESH)
    return {
        model.material(material).name if material >= 0 else "",
        model.mesh(mesh).name if is_mesh else "",
    } - {""}
