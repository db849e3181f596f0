"""Rendering of MuJoCo scenes in software: color images, segmentations and camera matrices.

Axes: H W pixels. Image points are (y, x) in [0, 1] with the origin at the top left.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import weakref
from collections.abc import Sequence

import numpy as np

from etcvla.errors import UserError
from etcvla.sims import headless

headless.require_egl()
import mujoco  # noqa: E402

from etcvla.sims.conditions import COLORS, AddedObject, Orbit  # noqa: E402

HIDDEN_GROUP = 5  # MuJoCo renders the geom and site groups 0 to 2
_SOLO_GROUP = 3
# int(): a comparison of an array with the enum itself falls back to Python objects, which costs 5
# ms a frame.
_GEOM = int(mujoco.mjtObj.mjOBJ_GEOM)
_SITE = int(mujoco.mjtObj.mjOBJ_SITE)
# Noun of an added object -> its solid.
_SOLIDS = {
    "cube": mujoco.mjtGeom.mjGEOM_BOX,
    "ball": mujoco.mjtGeom.mjGEOM_SPHERE,
    "can": mujoco.mjtGeom.mjGEOM_CYLINDER,
    "egg": mujoco.mjtGeom.mjGEOM_ELLIPSOID,
    "capsule": mujoco.mjtGeom.mjGEOM_CAPSULE,
}

_OPEN_RENDERERS: weakref.WeakSet[Renderer] = weakref.WeakSet()


@functools.cache
def _close_renderers_at_exit() -> None:
    """Close all renderers at exit. Call it after the first renderer exists.

    MuJoCo then has registered its own cleanup of EGL, and ours runs before it. A renderer that
    outlives EGL prints tracebacks.
    """

    @atexit.register
    def _close_renderers() -> None:
        for renderer in list(_OPEN_RENDERERS):
            renderer.close()


@dataclasses.dataclass
class Extra:
    """A solid that is rendered but not simulated."""

    added: AddedObject
    label: int  # in a segmentation
    position: np.ndarray  # of its centre, float[3] metres


class Renderer:
    """Renders one model at one size.

    Creating a renderer takes half a second, so keep it; call `close` at the end.

    Shadows, reflections and multisampling are off, because they make a frame eight times slower.
    The solids in `extras` are rendered with the model.

    Raises UserError whose first line is the apt command that installs a missing library.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, image_size: int):
        model.vis.quality.offsamples = 0
        model.vis.global_.offwidth = image_size
        model.vis.global_.offheight = image_size
        self._model = model
        self._data = data
        self.extras: list[Extra] = []
        try:
            self._renderer = mujoco.Renderer(model, image_size, image_size)
        except Exception as error:  # MuJoCo and PyOpenGL raise many types here
            raise UserError(
                f"{headless.FIX}\n(MuJoCo cannot render without a display: {error})"
            ) from error
        _OPEN_RENDERERS.add(self)
        _close_renderers_at_exit()
        flags = self._renderer.scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        self._solo = mujoco.MjvOption()
        self._solo.geomgroup[:] = np.arange(6) == _SOLO_GROUP
        self._solo.sitegroup[:] = np.arange(6) == _SOLO_GROUP

    @property
    def num_labels(self) -> int:
        """The number of labels of a segmentation, without the background."""
        return self._model.ngeom + self._model.nsite + len(self.extras)

    def add(self, added: AddedObject) -> Extra:
        """Render an added object from now on, below the floor until its position is set."""
        extra = Extra(added, self.num_labels, np.array([0.0, 0.0, -1.0]))
        self.extras.append(extra)
        return extra

    def rgb(self, camera: str | Orbit) -> np.ndarray:
        """Render a color image, uint8[H, W, 3]."""
        self._renderer.update_scene(self._data, _mujoco_camera(camera))
        self._add_extras(self.extras)
        return self._renderer.render()

    def labels(self, camera: str | Orbit) -> np.ndarray:
        """Render a segmentation, int32[H, W].

        A label is a geom's id; the number of geoms + a site's id; the number of geoms and sites +
        an extra's index; or -1 for the background.
        """
        return self._labels(camera, None, self.extras)

    def silhouette(self, camera: str | Orbit, labels: np.ndarray) -> int:
        """Return how many pixels the geoms, sites and extras with these labels cover alone."""
        model = self._model
        geoms = labels[labels < model.ngeom]
        sites = labels[labels >= model.ngeom] - model.ngeom
        sites = sites[sites < model.nsite]
        extras = [extra for extra in self.extras if extra.label in labels]
        geom_groups = model.geom_group[geoms]
        site_groups = model.site_group[sites]
        model.geom_group[geoms] = _SOLO_GROUP
        model.site_group[sites] = _SOLO_GROUP
        segmentation = self._labels(camera, self._solo, extras)
        model.geom_group[geoms] = geom_groups
        model.site_group[sites] = site_groups
        return int((segmentation >= 0).sum())

    def _add_extras(self, extras: Sequence[Extra]) -> None:
        """Add extras to the scene that MuJoCo just built from the model."""
        scene = self._renderer.scene
        upright = np.eye(3).ravel()
        for extra in extras:
            added = extra.added
            geom = scene.geoms[scene.ngeom]
            rgba = (*COLORS[added.color], 1)
            solid = _SOLIDS[added.noun]
            mujoco.mjv_initGeom(geom, solid, added.size, extra.position, upright, rgba)
            geom.objtype = _GEOM
            geom.objid = extra.label
            geom.segid = scene.ngeom
            geom.category = int(mujoco.mjtCatBit.mjCAT_DYNAMIC)
            scene.ngeom += 1

    def _labels(
        self,
        camera: str | Orbit,
        option: mujoco.MjvOption | None,
        extras: Sequence[Extra],
    ) -> np.ndarray:
        self._renderer.update_scene(self._data, _mujoco_camera(camera), option)
        self._add_extras(extras)
        self._renderer.enable_segmentation_rendering()
        segmentation = self._renderer.render()
        self._renderer.disable_segmentation_rendering()
        ids = segmentation[..., 0]
        types = segmentation[..., 1]
        sites = np.where(types == _SITE, ids + self._model.ngeom, -1)
        return np.where(types == _GEOM, ids, sites)

    def camera_matrix(self, camera: str | Orbit) -> np.ndarray:
        """Return the matrix float32[3, 4] from world metres [x, y, z, 1] to image w * [x, y, 1]."""
        if isinstance(camera, Orbit):
            fovy = self._model.vis.global_.fovy
            axes = _orbit_axes(camera)
            position = np.array(camera.lookat) + camera.distance * axes[2]
        else:
            fovy = self._model.camera(camera).fovy[0]
            pose = self._data.camera(camera)
            axes = pose.xmat.reshape(3, 3).T
            position = pose.xpos
        focal = 0.5 / np.tan(np.deg2rad(fovy) / 2)
        # MuJoCo's camera points along its -z with y up; the image's y points down.
        intrinsics = np.array([[focal, 0, -0.5], [0, -focal, -0.5], [0, 0, -1]])
        return (intrinsics @ np.column_stack([axes, -axes @ position])).astype(np.float32)

    def upload_texture(self, texture: int) -> None:
        """Render with the model's current pixels of a texture from now on."""
        self._renderer._gl_context.make_current()
        mujoco.mjr_uploadTexture(self._model, self._renderer._mjr_context, texture)

    def close(self) -> None:
        """Free MuJoCo's renderer."""
        self._renderer.close()


def _mujoco_camera(camera: str | Orbit) -> str | mujoco.MjvCamera:
    if isinstance(camera, str):
        return camera
    free = mujoco.MjvCamera()
    free.lookat[:] = camera.lookat
    free.distance = camera.distance
    free.azimuth = camera.azimuth
    free.elevation = camera.elevation
    return free


def coarsen_mesh(model: mujoco.MjModel, mesh: int, cell: float) -> None:
    """Merge a mesh's vertices within cubes of `cell` metres for rendering.

    Call it before creating a `Renderer`.

    The number of triangles determines the cost of software rendering. Only faces change; vertices,
    and with them collisions, stay as they are.
    """
    vertex_rows, face_rows = mesh_slices(model, mesh)
    cells = np.round(model.mesh_vert[vertex_rows] / cell).astype(int)
    _, representative, cell_of_vertex = np.unique(
        cells, axis=0, return_index=True, return_inverse=True
    )
    merged = representative[cell_of_vertex.reshape(-1)]
    faces = model.mesh_face[face_rows]
    faces[:] = merged[faces]
    has_area = (faces != np.roll(faces, 1, axis=1)).all(1)
    _, first_copies = np.unique(np.sort(faces, axis=1), axis=0, return_index=True)
    kept = np.intersect1d(np.flatnonzero(has_area), first_copies)
    for table in (model.mesh_face, model.mesh_facenormal, model.mesh_facetexcoord):
        rows = table[face_rows]
        rows[: len(kept)] = rows[kept]
    model.mesh_facenum[mesh] = len(kept)


def mesh_slices(model: mujoco.MjModel, mesh: int) -> tuple[slice, slice]:
    """Return the rows of `mesh_vert` and of `mesh_face` that belong to a mesh."""
    vertex = model.mesh_vertadr[mesh]
    face = model.mesh_faceadr[mesh]
    return (
        slice(vertex, vertex + model.mesh_vertnum[mesh]),
        slice(face, face + model.mesh_facenum[mesh]),
    )


def orbit_of(position: np.ndarray, backward: np.ndarray, distance: float) -> Orbit:
    """Return the orbit of an upright camera.

    Args:
      position: of the camera, float[3] metres.
      backward: unit vector against the viewing direction, float[3].
      distance: metres from the camera to the point that it is directed at.
    """
    x, y, z = -backward
    return Orbit(
        lookat=tuple((position - distance * backward).tolist()),
        distance=distance,
        azimuth=float(np.rad2deg(np.arctan2(y, x))),
        elevation=float(np.rad2deg(np.arcsin(z))),
    )


def _orbit_axes(camera: Orbit) -> np.ndarray:
    """Return the camera's right, up and backward axes in the world as rows of float64[3, 3]."""
    azimuth, elevation = np.deg2rad([camera.azimuth, camera.elevation])
    horizontal = np.array([np.cos(azimuth), np.sin(azimuth)])
    forward = np.append(np.cos(elevation) * horizontal, np.sin(elevation))
    right = np.array([np.sin(azimuth), -np.cos(azimuth), 0])
    return np.stack([right, np.cross(right, forward), -forward])
