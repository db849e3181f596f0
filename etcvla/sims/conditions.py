"""Named looks that a recorded episode is rendered again in: ETC about what no action was recorded for.

A condition is for training or held out, never both: `together` asserts it, and the two sides share no camera, colour,
pattern, added thing or swapped thing. A dataset of held-out ones has no split "train".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from etcvla.names import lookup

TRAIN, HELD_OUT = "train", "held_out"
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
class Orbit:
    """A free camera that looks at a point. Metres and degrees; elevation is negative from above."""

    lookat: tuple[float, float, float]
    distance: float
    azimuth: float
    elevation: float


@dataclasses.dataclass(frozen=True)
class AddedObject:
    """A thing that Meta-World does not have: a simple solid with a name and a colour."""

    noun: str  # a key of `_SHAPES`
    color: str
    rgb: tuple[float, float, float]
    size: tuple[float, float, float]  # half sizes as MuJoCo has them for the solid, metres

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


def shared_side(names: Sequence[str]) -> str:
    """The side that all conditions of `names` are on.

    Raises ValueError for an unknown name, and if some are for training and others held out.
    """
    sides = {name: lookup(CONDITIONS, name, "condition").side for name in names}
    if len(set(sides.values())) != 1:
        raise ValueError(
            f"conditions {sides}: those for training and those held out must not meet in one dataset"
        )
    return next(iter(sides.values()))
