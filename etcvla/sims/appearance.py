"""Changing how a scene looks between episodes, and back: on a model that a `Renderer` draws already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import mujoco
import numpy as np

from etcvla.sims.conditions import AddedObject, Condition
from etcvla.sims.render import Extra, Renderer

if TYPE_CHECKING:
    from etcvla.sims.oracle import Placed, Tracked

_CLEARANCE = 0.07  # metres between what is added and everything else
_APART = 0.01  # metres between things that are moved
_DIRECTIONS = 32  # that are tried
_GEOMS = {
    "cube": mujoco.mjtGeom.mjGEOM_BOX,
    "ball": mujoco.mjtGeom.mjGEOM_SPHERE,
    "can": mujoco.mjtGeom.mjGEOM_CYLINDER,
    "egg": mujoco.mjtGeom.mjGEOM_ELLIPSOID,
    "capsule": mujoco.mjtGeom.mjGEOM_CAPSULE,
}
_FIELDS = ("light_diffuse", "geom_matid", "geom_rgba", "mat_rgba")


class AppearanceEditor:
    """A model's look.

    Args:
      view: what draws the model.
      table: geoms of what things stand on; room, things: geoms that tints apply to.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        view: Renderer,
        *,
        table: np.ndarray,
        room: np.ndarray,
        things: np.ndarray,
    ):
        self._model, self._view, self._table, self._tinted = model, view, table, (room, things)
        self._own = {name: getattr(model, name).copy() for name in _FIELDS}
        self._pictures = {
            texture: picture_of(model, texture).copy() for texture in textures_of(model, table)
        }
        headlight = model.vis.headlight
        self._headlight = headlight.diffuse.copy(), headlight.ambient.copy()
        self._extras, self._changed = len(view.extras), False

    def put(self, condition: Condition | None) -> list[Extra]:
        """Shows the scene under a condition (all but its camera and what it swaps), or as it was.

        Returns what it adds; the caller says where those stand.
        """
        self._restore()
        if condition is None:
            return []
        self._changed = True
        light_scene(self._model, condition.light, condition.ambient)
        paint_table(self._model, condition, self._table)
        for geoms, factors in zip(self._tinted, condition.tints, strict=False):
            self._tint(np.setdiff1d(geoms, self._table), np.array(factors))
        self._upload()
        added = [extra_of(thing) for thing in condition.added]
        self._view.extras += added
        return added

    def _tint(self, geoms: np.ndarray, factors: np.ndarray) -> None:
        materials = np.unique(self._model.geom_matid[geoms])
        self._model.mat_rgba[materials[materials >= 0], :3] *= factors
        plain = geoms[self._model.geom_matid[geoms] < 0]
        self._model.geom_rgba[plain, :3] *= factors

    def _restore(self) -> None:
        if not self._changed:
            return
        for name, value in self._own.items():
            getattr(self._model, name)[:] = value
        headlight = self._model.vis.headlight
        headlight.diffuse[:], headlight.ambient[:] = self._headlight
        for texture, picture in self._pictures.items():
            picture_of(self._model, texture)[:] = picture
        del self._view.extras[self._extras :]
        self._upload()
        self._changed = False

    def _upload(self) -> None:
        for texture in self._pictures:
            self._view.upload(texture)


def light_scene(model: mujoco.MjModel, factors: tuple[float, float, float], ambient: float) -> None:
    """Multiplies the lamps' colour, and what light there is everywhere."""
    model.light_diffuse[:] *= factors
    model.vis.headlight.diffuse[:] *= factors
    model.vis.headlight.ambient[:] *= ambient


def extra_of(thing: AddedObject) -> Extra:
    """A thing to be drawn, out of sight until it has a place."""
    return Extra(int(_GEOMS[thing.noun]), thing.size, thing.rgb, np.array([0.0, 0.0, -1.0]))


def free_spots(
    rng: np.random.Generator,
    area: np.ndarray,
    taken: np.ndarray,
    clearance: float,
    count: int = 1000,
) -> np.ndarray:
    """float[K, 2]: of `count` random points of a rectangle, float[2, 2] (low, high) in x and y, those that are clear of
    boxes float[N, 2, 2]."""
    points = rng.uniform(*area, (count, 2))
    gap = np.maximum(taken[:, 0] - points[:, None], points[:, None] - taken[:, 1]).clip(0)
    return points[np.hypot(*np.moveaxis(gap, -1, 0)).min(1) > clearance]


def scatter(
    extras: Sequence[Extra],
    heights: Sequence[float],
    ground: float,
    objects: Sequence[Tracked | Placed],
    data: mujoco.MjData,
    area: np.ndarray,
    hand: np.ndarray,
    seed: int,
) -> None:
    """Puts extras on the ground, clear of everything, the hand and one another. What finds no room stays unseen.

    Args:
      heights: of their centres over the ground, whose height in the world is `ground`, metres.
      area: float[2, 2] (low, high) in x and y. hand: float[3].
    """
    rng = np.random.default_rng(seed)
    taken = [tuple(corner[:2] for corner in tracked.bounds(data)) for tracked in objects] + [
        (hand[:2], hand[:2])
    ]
    for extra, height in zip(extras, heights, strict=True):
        spots = free_spots(rng, area, np.array(taken), _CLEARANCE)
        if len(spots):
            extra.position = np.array([*spots[0], ground + height])
            taken.append((spots[0], spots[0]))


def shift_free(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    objects: Sequence[Tracked | Placed],
    distance: float,
    seed: int,
) -> None:
    """Moves every thing that has a free joint and stands apart from the others by `distance` metres in the plane, in a
    random direction in which it stays clear of them."""
    if not distance:
        return
    rng = np.random.default_rng(seed)
    for tracked in objects:
        joint = _free_joint(model, tracked)
        others = [
            tuple(corner[:2] for corner in other.bounds(data))
            for other in objects
            if other is not tracked
        ]
        low, high = (corner[:2] for corner in tracked.bounds(data))
        angle = rng.uniform(0, 2 * np.pi, _DIRECTIONS)
        steps = distance * np.column_stack([np.cos(angle), np.sin(angle)])
        clear = [_gap(low + step, high + step, others) > _APART for step in steps]
        if joint is not None and _gap(low, high, others) > _APART and any(clear):
            data.qpos[joint : joint + 2] += steps[clear.index(True)]
    mujoco.mj_forward(model, data)


def _free_joint(model: mujoco.MjModel, tracked: Tracked | Placed) -> int | None:
    """Where in qpos the thing's free joint begins, if it has one."""
    if not len(tracked.drawn):
        return None
    body = int(model.geom_bodyid[tracked.drawn[0]])
    joint = int(model.body_jntadr[model.body_rootid[body]])
    free = joint >= 0 and model.jnt_type[joint] == int(mujoco.mjtJoint.mjJNT_FREE)
    return int(model.jnt_qposadr[joint]) if free else None


def _gap(
    low: np.ndarray, high: np.ndarray, others: Sequence[tuple[np.ndarray, np.ndarray]]
) -> float:
    """Metres in the plane between a box and the nearest of others; 0 where they meet."""
    if not others:
        return np.inf
    lows, highs = np.array(others).transpose(1, 0, 2)
    return float(np.hypot(*np.maximum(lows - high, low - highs).clip(0).T).min())


def paint_table(model: mujoco.MjModel, condition: Condition, table: np.ndarray) -> None:
    """Gives the table top, geoms `table`, its pattern or plain colour; what a renderer has uploaded stays as it was."""
    if not condition.shades:
        return
    textures = textures_of(model, table)
    if not condition.pattern or not textures:
        model.geom_matid[table], model.geom_rgba[table] = -1, (*condition.shades[0], 1)
        return
    for texture in textures:
        picture = picture_of(model, texture)
        second = _pattern(condition.pattern, *picture.shape[:2])[..., None]
        picture[..., :3] = np.where(
            second, *(np.array(shade) * 255 for shade in condition.shades[::-1])
        )


def textures_of(model: mujoco.MjModel, geoms: np.ndarray) -> list[int]:
    """The textures that these geoms are drawn with."""
    materials = model.geom_matid[geoms]
    found = np.unique(model.mat_texid[materials[materials >= 0]])
    return found[found >= 0].tolist()


def picture_of(model: mujoco.MjModel, texture: int) -> np.ndarray:
    """uint8[H, W, channels], a view of the model's own."""
    shape = [
        int(field[texture]) for field in (model.tex_height, model.tex_width, model.tex_nchannel)
    ]
    start = int(model.tex_adr[texture])
    return model.tex_data[start : start + np.prod(shape)].reshape(shape)


def _pattern(name: str, height: int, width: int, repeats: int = 8) -> np.ndarray:
    """bool[height, width]: where the second shade is."""
    y, x = np.meshgrid(
        np.arange(height) / height * repeats, np.arange(width) / width * repeats, indexing="ij"
    )
    if name == "stripes":
        return x % 1 < 0.5
    if name == "dots":
        return np.hypot(y % 1 - 0.5, x % 1 - 0.5) < 0.3
    return (y % 1 < 0.5) ^ (x % 1 < 0.5)
