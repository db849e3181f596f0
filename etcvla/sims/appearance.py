"""Changes of a MuJoCo scene's appearance between episodes.

The model may already be in use by a `Renderer`. Every change can be undone, so a process keeps its
simulator over a whole evaluation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import mujoco
import numpy as np

from etcvla.sims.conditions import Condition, Rgb
from etcvla.sims.render import Extra, Renderer

if TYPE_CHECKING:
    from etcvla.sims.oracle import SceneObject

_CLEARANCE = 0.07  # metres between an added object and everything else
_MIN_GAP = 0.01  # metres between objects that are moved
_NUM_DIRECTIONS = 32  # random directions to try when an object is moved
_PATTERN_REPEATS = 8


@dataclasses.dataclass(frozen=True)
class SceneGeoms:
    """Ids of a model's geoms by their role in a condition."""

    table: np.ndarray  # the surface that objects are on
    room: np.ndarray  # what the first tint of a condition applies to
    objects: np.ndarray  # what the second tint applies to


class AppearanceEditor:
    """Applies conditions to a model and restores the original appearance."""

    def __init__(self, model: mujoco.MjModel, renderer: Renderer, geoms: SceneGeoms):
        self._model = model
        self._renderer = renderer
        self._geoms = geoms
        self._num_extras = len(renderer.extras)
        self._textures = _textures_of(model, geoms.table)
        headlight = model.vis.headlight
        changed = [model.light_diffuse, headlight.diffuse, headlight.ambient]
        changed += [model.geom_matid, model.geom_rgba, model.mat_rgba]
        changed += [_texture_data(model, texture) for texture in self._textures]
        self._changed = changed
        self._is_changed = False
        self._is_patterned = False
        self.remember()

    def remember(self) -> None:
        """Take the model's current appearance as the original one."""
        self._originals = [(values, values.copy()) for values in self._changed]

    def apply(self, condition: Condition | None) -> list[Extra]:
        """Apply a condition; None restores the original appearance.

        The condition's camera, colors and swapped object are ignored. Returns the objects that the
        condition adds. The caller sets their positions.
        """
        self._restore()
        if condition is None:
            return []
        self._is_changed = True
        light_scene(self._model, condition.light, condition.ambient)
        paint_table(self._model, condition, self._geoms.table)
        tinted = (self._geoms.room, self._geoms.objects)
        for geoms, factors in zip(tinted, condition.tints, strict=False):
            self._tint(np.setdiff1d(geoms, self._geoms.table), np.array(factors))
        self._is_patterned = bool(condition.pattern)
        if self._is_patterned:
            self._upload_textures()
        return [self._renderer.add(added) for added in condition.added]

    def _tint(self, geoms: np.ndarray, factors: np.ndarray) -> None:
        materials = np.unique(self._model.geom_matid[geoms])
        self._model.mat_rgba[materials[materials >= 0], :3] *= factors
        without_material = geoms[self._model.geom_matid[geoms] < 0]
        self._model.geom_rgba[without_material, :3] *= factors

    def _restore(self) -> None:
        if not self._is_changed:
            return
        for values, original in self._originals:
            values[:] = original
        del self._renderer.extras[self._num_extras :]
        if self._is_patterned:
            self._upload_textures()
        self._is_changed = False

    def _upload_textures(self) -> None:
        for texture in self._textures:
            self._renderer.upload_texture(texture)


def light_scene(model: mujoco.MjModel, factors: Rgb, ambient: float) -> None:
    """Multiply the color of the lights by `factors` and the ambient light by `ambient`."""
    headlight = model.vis.headlight
    model.light_diffuse[:] *= factors
    headlight.diffuse[:] *= factors
    headlight.ambient[:] *= ambient


def paint_table(model: mujoco.MjModel, condition: Condition, table: np.ndarray) -> None:
    """Give the table top, geoms `table`, the condition's pattern or plain color.

    Changes the model only: call `Renderer.upload_texture` for textures that a renderer has already
    uploaded.
    """
    if not condition.shades:
        return
    textures = _textures_of(model, table)
    if not condition.pattern or not textures:
        model.geom_matid[table] = -1
        model.geom_rgba[table] = (*condition.shades[0], 1)
        return
    first, second = np.array(condition.shades) * 255
    for texture in textures:
        pixels = _texture_data(model, texture)
        is_second = _pattern(condition.pattern, *pixels.shape[:2])
        pixels[..., :3] = np.where(is_second[..., None], second, first)


def _textures_of(model: mujoco.MjModel, geoms: np.ndarray) -> list[int]:
    """Return the ids of the textures that these geoms are rendered with."""
    materials = model.geom_matid[geoms]
    textures = np.unique(model.mat_texid[materials[materials >= 0]])
    return textures[textures >= 0].tolist()


def _texture_data(model: mujoco.MjModel, texture: int) -> np.ndarray:
    """Return a writable view of a texture's pixels, uint8[H, W, channels]."""
    height = int(model.tex_height[texture])
    width = int(model.tex_width[texture])
    channels = int(model.tex_nchannel[texture])
    start = int(model.tex_adr[texture])
    pixels = model.tex_data[start : start + height * width * channels]
    return pixels.reshape(height, width, channels)


def _pattern(name: str, height: int, width: int) -> np.ndarray:
    """Return where the second shade of a pattern is, bool[height, width]."""
    rows = np.arange(height) / height * _PATTERN_REPEATS
    columns = np.arange(width) / width * _PATTERN_REPEATS
    y, x = np.meshgrid(rows % 1, columns % 1, indexing="ij")
    if name == "stripes":
        return x < 0.5
    if name == "dots":
        return np.hypot(y - 0.5, x - 0.5) < 0.3
    return (y < 0.5) ^ (x < 0.5)


def free_points(
    rng: np.random.Generator, area: np.ndarray, occupied: np.ndarray, clearance: float
) -> np.ndarray:
    """Draw 1000 random points of a rectangle and return those that are clear of boxes.

    Args:
      rng: draws the points.
      area: float[2, 2], corners (low, high) in x and y.
      occupied: float[N, 2, 2], corners (low, high) of the boxes.
      clearance: metres to keep from every box.

    Returns float[K, 2].
    """
    points = rng.uniform(*area, (1000, 2))
    boxes = np.stack([points, points], axis=1)
    return points[_gap(boxes, occupied) > clearance]


def _gap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the distance, float[M] metres, from boxes in the plane to the nearest other box.

    It is 0 on overlap.

    Args:
      boxes: float[M, 2, 2], corners (low, high).
      others: float[K, 2, 2].
    """
    low = boxes[:, None, 0]
    high = boxes[:, None, 1]
    offset = np.maximum(others[:, 0] - high, low - others[:, 1]).clip(0)
    return np.hypot(offset[..., 0], offset[..., 1]).min(1, initial=np.inf)


@dataclasses.dataclass(frozen=True)
class ScatterArea:
    """Where `scatter` places objects. Metres."""

    corners: np.ndarray  # float[2, 2], (low, high) in x and y
    ground: float  # height of the surface in the world
    hand: np.ndarray  # float[3], to keep clear of


def scatter(extras: Sequence[Extra], area: ScatterArea, bounds: np.ndarray, seed: int) -> None:
    """Place added objects at random, clear of occupied boxes, the hand and one another.

    An object for which there is no room stays out of view.

    Args:
      extras: the added objects.
      area: where to place them.
      bounds: corners (low, high) of all other objects, float[N, 2, 3].
      seed: seed of the positions.
    """
    rng = np.random.default_rng(seed)
    hand = area.hand[:2]
    occupied = [*bounds[..., :2], (hand, hand)]
    for extra in extras:
        points = free_points(rng, area.corners, np.array(occupied), _CLEARANCE)
        if len(points):
            point = points[0]
            extra.position = np.array([*point, area.ground + extra.added.half_extent[2]])
            occupied.append((point, point))


def shift_free_objects(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    objects: Sequence[SceneObject],
    distance: float,
    seed: int,
) -> None:
    """Move every object with a free joint by `distance` metres in the plane.

    Objects that touch others stay. The direction is the first of several random ones in which the
    object stays clear of the others.
    """
    if not distance:
        return
    rng = np.random.default_rng(seed)
    for n, scene_object in enumerate(objects):
        joint = _free_joint(model, scene_object)
        boxes = np.array([other.bounds()[:, :2] for other in objects])
        others = np.delete(boxes, n, axis=0)
        angles = rng.uniform(0, 2 * np.pi, _NUM_DIRECTIONS)
        steps = distance * np.column_stack([np.cos(angles), np.sin(angles)])
        is_clear = _gap(boxes[n] + steps[:, None], others) > _MIN_GAP
        touches = _gap(boxes[n : n + 1], others)[0] <= _MIN_GAP
        if joint is not None and is_clear.any() and not touches:
            data.qpos[joint : joint + 2] += steps[is_clear][0]
    mujoco.mj_forward(model, data)


def _free_joint(model: mujoco.MjModel, scene_object: SceneObject) -> int | None:
    """Return the index in qpos of the object's free joint, or None if it has none."""
    if not len(scene_object.visible_geoms):
        return None
    body = model.geom_bodyid[scene_object.visible_geoms[0]]
    joint = model.body_jntadr[model.body_rootid[body]]
    if joint < 0 or model.jnt_type[joint] != int(mujoco.mjtJoint.mjJNT_FREE):
        return None
    return model.jnt_qposadr[joint]
