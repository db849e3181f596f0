"""Drawing a MuJoCo scene: colour, labels and camera matrices, at software-rendering prices.

Axes: H W pixels. Image points are (y, x) in [0, 1] with the origin at the top left.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import weakref

import numpy as np

from etcvla.errors import UserError
from etcvla.sims import headless

headless.require_egl()
import mujoco  # noqa: E402

from etcvla.sims.conditions import Orbit  # noqa: E402

HIDDEN_GROUP = 5  # MuJoCo draws geom and site groups 0 to 2
_SOLO_GROUP = 3


_OPEN: weakref.WeakSet[Renderer] = weakref.WeakSet()


@functools.cache
def _close_at_exit() -> None:
    """To be called after the first renderer: MuJoCo then has registered the end of EGL, and ours runs before it.

    (A renderer that outlives EGL prints tracebacks.)
    """
    atexit.register(lambda: [view.close() for view in list(_OPEN)])


@dataclasses.dataclass
class Extra:
    """A solid that is drawn but not simulated."""

    geom: int  # mujoco.mjtGeom
    size: tuple[float, float, float]  # as MuJoCo has it for the geom, metres
    rgb: tuple[float, float, float]
    position: np.ndarray  # float[3] of its centre, metres


class Renderer:
    """Renders one model at one size. Keep it: creating one costs half a second. Call `close` when done.

    Shadows, reflections and multisampling are off: they cost eight times the frame. `extras` are drawn along.

    Raises UserError whose first line is the apt command that mends a missing library.
    """

    def __init__(self, model: mujoco.MjModel, image_size: int):
        model.vis.quality.offsamples = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = image_size
        self._model, self.extras = model, []
        try:
            self._renderer = mujoco.Renderer(model, image_size, image_size)
        except Exception as error:  # MuJoCo and PyOpenGL raise a dozen types here
            raise UserError(
                f"{headless.FIX}\n(MuJoCo cannot draw without a display: {error})"
            ) from error
        _OPEN.add(self)
        _close_at_exit()
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._renderer.scene.flags[flag] = False
        self._solo = mujoco.MjvOption()
        self._solo.geomgroup[:] = self._solo.sitegroup[:] = np.arange(6) == _SOLO_GROUP

    def rgb(self, data: mujoco.MjData, camera: str | Orbit) -> np.ndarray:
        """uint8[H, W, 3]."""
        self._renderer.update_scene(data, _free_camera(camera))
        self._add(range(len(self.extras)))
        return self._renderer.render()

    def labels(self, data: mujoco.MjData, camera: str | Orbit) -> np.ndarray:
        """int32[H, W]: the geom id of each pixel, number of geoms + site id, or number of geoms and sites + index of
        an extra; -1 background."""
        return self._labels(data, camera, None, range(len(self.extras)))

    def silhouette(self, data: mujoco.MjData, camera: str | Orbit, ids: np.ndarray) -> int:
        """How many pixels the things `ids` (numbered as in `labels`) would cover with nothing before them."""
        model, first_extra = self._model, self._model.ngeom + self._model.nsite
        geoms, sites = (
            ids[ids < model.ngeom],
            ids[(ids >= model.ngeom) & (ids < first_extra)] - model.ngeom,
        )
        groups = model.geom_group[geoms], model.site_group[sites]
        model.geom_group[geoms], model.site_group[sites] = _SOLO_GROUP, _SOLO_GROUP
        extras = (ids[ids >= first_extra] - first_extra).tolist()
        count = (self._labels(data, camera, self._solo, extras) >= 0).sum()
        model.geom_group[geoms], model.site_group[sites] = groups
        return int(count)

    def _add(self, extras) -> None:
        """Puts extras into the scene that was just made of the model."""
        scene = self._renderer.scene
        for i in extras:
            extra, geom = self.extras[i], scene.geoms[scene.ngeom]
            mujoco.mjv_initGeom(
                geom,
                extra.geom,
                np.array(extra.size, float),
                np.array(extra.position, float),
                np.eye(3).ravel(),
                np.array([*extra.rgb, 1], np.float32),
            )
            geom.objtype, geom.objid = (
                int(mujoco.mjtObj.mjOBJ_GEOM),
                self._model.ngeom + self._model.nsite + i,
            )
            geom.segid, geom.category = scene.ngeom, int(mujoco.mjtCatBit.mjCAT_DYNAMIC)
            scene.ngeom += 1

    def _labels(self, data, camera, option, extras) -> np.ndarray:
        self._renderer.update_scene(data, _free_camera(camera), option)
        self._add(extras)
        self._renderer.enable_segmentation_rendering()
        ids, types = np.moveaxis(self._renderer.render(), -1, 0)
        self._renderer.disable_segmentation_rendering()
        # int(): comparing an array with the enum itself falls back to Python objects, 5 ms a frame.
        site, geom = types == int(mujoco.mjtObj.mjOBJ_SITE), types == int(mujoco.mjtObj.mjOBJ_GEOM)
        return np.where(geom, ids, np.where(site, ids + self._model.ngeom, -1))

    def upload(self, texture: int) -> None:
        """Draws with a texture as the model has it now."""
        self._renderer._gl_context.make_current()
        mujoco.mjr_uploadTexture(self._model, self._renderer._mjr_context, texture)

    def close(self) -> None:
        self._renderer.close()


def _free_camera(camera: str | Orbit) -> str | mujoco.MjvCamera:
    if isinstance(camera, str):
        return camera
    free = mujoco.MjvCamera()
    free.lookat[:], free.distance = camera.lookat, camera.distance
    free.azimuth, free.elevation = camera.azimuth, camera.elevation
    return free


def coarsen_mesh(model: mujoco.MjModel, mesh: int, cell: float) -> None:
    """Merges a mesh's vertices within cubes of `cell` metres for drawing; call before making a `Renderer`.

    Triangles are the price of software rendering. Only faces are rewired: vertices, hence collisions, stay as they are.
    """
    first, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
    cells = np.round(model.mesh_vert[first : first + count] / cell).astype(int)
    _, keep, merged = np.unique(cells, axis=0, return_index=True, return_inverse=True)
    start, number = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
    faces = keep[merged.reshape(-1)][model.mesh_face[start : start + number]]
    distinct = (faces != np.roll(faces, 1, axis=1)).all(1)
    _, once = np.unique(np.sort(faces, axis=1), axis=0, return_index=True)
    kept = np.intersect1d(np.flatnonzero(distinct), once)
    for table in (model.mesh_facenormal, model.mesh_facetexcoord):
        table[start : start + len(kept)] = table[start : start + number][kept]
    model.mesh_face[start : start + len(kept)] = faces[kept]
    model.mesh_facenum[mesh] = len(kept)


def camera_matrix(model: mujoco.MjModel, data: mujoco.MjData, camera: str | Orbit) -> np.ndarray:
    """float32[3, 4]: world metres [x, y, z, 1] to w * [x, y, 1] of the image point, for a square image."""
    if isinstance(camera, Orbit):
        fovy, axes = model.vis.global_.fovy, _orbit_axes(camera)
        position = np.array(camera.lookat) + camera.distance * axes[2]
    else:
        index = model.camera(camera).id
        fovy, axes, position = (
            model.cam_fovy[index],
            data.cam_xmat[index].reshape(3, 3).T,
            data.cam_xpos[index],
        )
    focal = 0.5 / np.tan(np.deg2rad(fovy) / 2)
    # MuJoCo's camera looks along its -z with y up; the image's y points down.
    intrinsics = np.array([[focal, 0, -0.5], [0, -focal, -0.5], [0, 0, -1]])
    return (intrinsics @ np.column_stack([axes, -axes @ position])).astype(np.float32)


def orbit_of(position: np.ndarray, backward: np.ndarray, distance: float) -> Orbit:
    """The orbit of an upright camera at `position` that looks `distance` metres against `backward`, float[3] each."""
    x, y, z = -np.asarray(backward)
    return Orbit(
        tuple((position - distance * np.asarray(backward)).tolist()),
        distance,
        float(np.rad2deg(np.arctan2(y, x))),
        float(np.rad2deg(np.arcsin(z))),
    )


def _orbit_axes(camera: Orbit) -> np.ndarray:
    """float64[3, 3]: the camera's right, up and backward axes in the world, one a row."""
    azimuth, elevation = np.deg2rad([camera.azimuth, camera.elevation])
    forward = np.array(
        [
            np.cos(elevation) * np.cos(azimuth),
            np.cos(elevation) * np.sin(azimuth),
            np.sin(elevation),
        ]
    )
    right = np.array([np.sin(azimuth), -np.cos(azimuth), 0])
    return np.stack([right, np.cross(right, forward), -forward])
