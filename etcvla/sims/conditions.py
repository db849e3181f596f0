"""Named looks that a recorded episode is rendered again in: ETC about what no action was recorded for.

A condition is for training or held out, never both: `together` asserts it, and the two sides share no camera, colour,
pattern, added thing or swapped thing. A dataset of held-out ones has no split "train".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import mujoco
import numpy as np

from etcvla.names import lookup
from etcvla.sims.render import Orbit

TRAIN, HELD_OUT = "train", "held_out"
_GEOMS = {
    "cube": mujoco.mjtGeom.mjGEOM_BOX,
    "ball": mujoco.mjtGeom.mjGEOM_SPHERE,
    "can": mujoco.mjtGeom.mjGEOM_CYLINDER,
    "egg": mujoco.mjtGeom.mjGEOM_ELLIPSOID,
    "capsule": mujoco.mjtGeom.mjGEOM_CAPSULE,
}
_SHAPES = {
    "cube": "box",
    "ball": "sphere",
    "can": "cylinder",
    "egg": "ellipsoid",
    "capsule": "capsule",
}
SWAPPABLE = (
    "puck",
    "block",
    "basketball",
    "soccer ball",
)  # free things that may be something else instead


@dataclasses.dataclass(frozen=True)
class AddedObject:
    """A thing that Meta-World does not have: a simple solid with a name and a colour."""

    noun: str  # a name of `_GEOMS`
    color: str
    rgb: tuple[float, float, float]
    size: tuple[float, float, float]  # half sizes as MuJoCo has them for the solid, metres

    @property
    def geom(self) -> int:
        return int(_GEOMS[self.noun])

    @property
    def shape(self) -> str:
        return _SHAPES[self.noun]

    @property
    def half(self) -> np.ndarray:
        """float[3] metres: half of an upright bounding box."""
        x, y, z = self.size
        return {
            "ball": np.full(3, x),
            "can": np.array([x, x, y]),
            "capsule": np.array([x, x, x + y]),
        }.get(self.noun, np.array([x, y, z]))


@dataclasses.dataclass(frozen=True)
class Condition:
    """What is changed; None, 1 and () leave as it is."""

    side: str  # TRAIN or HELD_OUT
    camera: Orbit | None = None  # of "front"
    pattern: str = ""  # of the table top, in two `shades`: "checker", "stripes" or "dots"
    shades: tuple[tuple[float, float, float], ...] = ()  # one without a pattern: a plain table top
    light: tuple[float, float, float] = (1.0, 1.0, 1.0)  # factors on the lamps
    ambient: float = 1.0
    colors: tuple[tuple[str, tuple[float, float, float]], ...] = ()  # of the objects, in turn
    added: tuple[AddedObject, ...] = ()  # put on the table, out of the gripper's way
    tints: tuple[
        tuple[float, float, float], ...
    ] = ()  # factors on the colours of the room, and of the things in it
    swapped: AddedObject | None = None  # stands in for a thing of `SWAPPABLE`


CONDITIONS: dict[str, Condition] = {
    "evening": Condition(TRAIN, light=(1.1, 0.75, 0.5), ambient=0.7),
    "checker_table": Condition(
        TRAIN, pattern="checker", shades=((0.75, 0.72, 0.62), (0.3, 0.34, 0.4))
    ),
    "striped_table": Condition(
        TRAIN, pattern="stripes", shades=((0.25, 0.42, 0.36), (0.66, 0.7, 0.6))
    ),
    "side_camera": Condition(TRAIN, camera=Orbit((0, 0.7, 0.08), 1.3, 140, -35)),
    "recolored": Condition(
        TRAIN,
        colors=(
            ("purple", (0.5, 0.15, 0.6)),
            ("orange", (0.95, 0.5, 0.1)),
            ("blue", (0.15, 0.3, 0.85)),
            ("yellow", (0.95, 0.85, 0.2)),
        ),
    ),
    "clutter": Condition(
        TRAIN,
        added=(
            AddedObject("cube", "blue", (0.15, 0.3, 0.85), (0.03, 0.03, 0.03)),
            AddedObject("can", "yellow", (0.95, 0.85, 0.2), (0.028, 0.045, 0)),
        ),
    ),
    "cube_for_it": Condition(
        TRAIN, swapped=AddedObject("cube", "blue", (0.15, 0.3, 0.85), (0.025, 0.025, 0.025))
    ),
    "night": Condition(HELD_OUT, light=(0.45, 0.55, 0.85), ambient=0.55),
    "dotted_table": Condition(
        HELD_OUT, pattern="dots", shades=((0.62, 0.35, 0.3), (0.9, 0.85, 0.8))
    ),
    "plain_table": Condition(HELD_OUT, shades=((0.5, 0.3, 0.5),)),
    "high_camera": Condition(HELD_OUT, camera=Orbit((0, 0.72, 0.05), 1.2, 170, -65)),
    "repainted": Condition(
        HELD_OUT,
        colors=(
            ("pink", (0.95, 0.5, 0.7)),
            ("turquoise", (0.2, 0.75, 0.75)),
            ("violet", (0.4, 0.25, 0.75)),
            ("olive", (0.45, 0.5, 0.15)),
        ),
    ),
    "new_things": Condition(
        HELD_OUT,
        added=(
            AddedObject("egg", "pink", (0.95, 0.5, 0.7), (0.03, 0.03, 0.04)),
            AddedObject("capsule", "turquoise", (0.2, 0.75, 0.75), (0.022, 0.03, 0)),
        ),
    ),
    "ball_for_it": Condition(
        HELD_OUT, swapped=AddedObject("ball", "turquoise", (0.2, 0.75, 0.75), (0.028, 0, 0))
    ),
}


def together(names: Sequence[str]) -> str:
    """The side that all conditions of `names` are on.

    Raises ValueError for an unknown name, and if some are for training and others held out.
    """
    sides = {name: lookup(CONDITIONS, name, "condition").side for name in names}
    if len(set(sides.values())) != 1:
        raise ValueError(
            f"conditions {sides}: those for training and those held out must not meet in one dataset"
        )
    return next(iter(sides.values()))


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
