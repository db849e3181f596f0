"""Named conditions: appearances in which a recorded episode is rendered again, or a policy acts.

Frames that are rendered again have no actions; they are for ETC questions only. A condition belongs
to one side, training or held-out, and the two sides share no camera, color, pattern, added object
or swapped object. A dataset of held-out conditions has no split "train".

This module imports no simulator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from etcvla.errors import UserError
from etcvla.names import lookup

TRAIN = "train"
HELD_OUT = "held_out"
Rgb = tuple[float, float, float]
COLORS: dict[str, Rgb] = {
    "purple": (0.5, 0.15, 0.6),
    "orange": (0.95, 0.5, 0.1),
    "blue": (0.15, 0.3, 0.85),
    "yellow": (0.95, 0.85, 0.2),
    "pink": (0.95, 0.5, 0.7),
    "turquoise": (0.2, 0.75, 0.75),
    "violet": (0.4, 0.25, 0.75),
    "olive": (0.45, 0.5, 0.15),
    "white": (0.9, 0.9, 0.88),
}
# Noun of an added object -> its shape word.
ADDED_SHAPES = {
    "cube": "box",
    "ball": "sphere",
    "can": "cylinder",
    "egg": "ellipsoid",
    "capsule": "capsule",
}
# Names of free objects that `Condition.swapped` may replace.
SWAPPABLE = ("puck", "block", "basketball", "soccer ball")


@dataclasses.dataclass(frozen=True)
class Orbit:
    """The pose of a camera that points at `lookat`.

    Metres and degrees; a camera above has a negative elevation.
    """

    lookat: tuple[float, float, float]
    distance: float
    azimuth: float
    elevation: float

    def moved(self, move: CameraMove) -> Orbit:
        """Return this pose after a move. Its elevation stays between -85 and -5 degrees."""
        elevation = min(max(self.elevation + move.elevation, -85.0), -5.0)
        return dataclasses.replace(
            self,
            distance=self.distance * move.distance,
            azimuth=self.azimuth + move.azimuth,
            elevation=elevation,
        )


@dataclasses.dataclass(frozen=True)
class CameraMove:
    """How a camera moves around the point that it is directed at."""

    azimuth: float = 0.0  # degrees
    elevation: float = 0.0  # degrees
    distance: float = 1.0  # factor


@dataclasses.dataclass(frozen=True)
class AddedObject:
    """An object that the simulator does not have: a simple solid with a name and a color."""

    noun: str  # a key of `ADDED_SHAPES`
    color: str  # a key of `COLORS`
    size: tuple[float, float, float]  # half sizes, metres, as MuJoCo defines them for the solid

    @property
    def half_extent(self) -> np.ndarray:
        """Half the size of an upright bounding box, float[3] metres."""
        x, y, _ = self.size
        by_noun = {"ball": (x, x, x), "can": (x, x, y), "capsule": (x, x, x + y)}
        return np.array(by_noun.get(self.noun, self.size))


@dataclasses.dataclass(frozen=True)
class Condition:
    """What changes in a scene. The default of every field changes nothing."""

    side: str  # TRAIN or HELD_OUT
    camera: CameraMove | None = None  # of "front"
    pattern: str = ""  # of the table top, in two `shades`: "checker", "stripes" or "dots"
    shades: tuple[Rgb, ...] = ()  # one shade and no pattern: a plain table top
    light: Rgb = (1.0, 1.0, 1.0)  # factors of the lights' color
    ambient: float = 1.0  # factor of the ambient light
    colors: tuple[str, ...] = ()  # keys of `COLORS`, assigned to the objects in turn
    added: tuple[AddedObject, ...] = ()  # placed on the table, out of the gripper's way
    tints: tuple[Rgb, ...] = ()  # color factors of the room and of its objects
    swapped: AddedObject | None = None  # replaces an object of `SWAPPABLE`


NO_CONDITION = Condition(TRAIN)
CONDITIONS: dict[str, Condition] = {
    "evening": Condition(TRAIN, light=(1.1, 0.75, 0.5), ambient=0.7),
    "checker_table": Condition(
        TRAIN, pattern="checker", shades=((0.75, 0.72, 0.62), (0.3, 0.34, 0.4))
    ),
    "striped_table": Condition(
        TRAIN, pattern="stripes", shades=((0.25, 0.42, 0.36), (0.66, 0.7, 0.6))
    ),
    "side_camera": Condition(TRAIN, camera=CameraMove(-20, 5, 1.08)),
    "recolored": Condition(TRAIN, colors=("purple", "orange", "blue", "yellow")),
    "clutter": Condition(
        TRAIN,
        added=(
            AddedObject("cube", "blue", (0.03, 0.03, 0.03)),
            AddedObject("can", "yellow", (0.028, 0.045, 0)),
        ),
    ),
    "cube_for_it": Condition(TRAIN, swapped=AddedObject("cube", "blue", (0.025, 0.025, 0.025))),
    "night": Condition(HELD_OUT, light=(0.45, 0.55, 0.85), ambient=0.55),
    "dotted_table": Condition(
        HELD_OUT, pattern="dots", shades=((0.62, 0.35, 0.3), (0.9, 0.85, 0.8))
    ),
    "plain_table": Condition(HELD_OUT, shades=((0.5, 0.3, 0.5),)),
    "high_camera": Condition(HELD_OUT, camera=CameraMove(10, -25)),
    "repainted": Condition(HELD_OUT, colors=("pink", "turquoise", "violet", "olive")),
    "new_things": Condition(
        HELD_OUT,
        added=(
            AddedObject("egg", "pink", (0.03, 0.03, 0.04)),
            AddedObject("capsule", "turquoise", (0.022, 0.03, 0)),
        ),
    ),
    "ball_for_it": Condition(HELD_OUT, swapped=AddedObject("ball", "turquoise", (0.028, 0, 0))),
}


def combine(base: Condition, change: Condition) -> Condition:
    """Return `base` with the fields of `change` that change something."""
    changes = {}
    for field in dataclasses.fields(change):
        value = getattr(change, field.name)
        if value != field.default:
            changes[field.name] = value
    return dataclasses.replace(base, **changes)


# Conditions that keep the objects of the task, so that instructions stay right.
CONTEXT_CONDITIONS = tuple(
    name for name, value in CONDITIONS.items() if not value.colors and not value.swapped
)


def conditions_for(object_names: Collection[str]) -> tuple[str, ...]:
    """Return the conditions that fit a scene with these objects, keys of `CONDITIONS`.

    A condition that swaps an object needs one of `SWAPPABLE`.
    """
    is_swappable = not set(SWAPPABLE).isdisjoint(object_names)
    return tuple(name for name, value in CONDITIONS.items() if is_swappable or not value.swapped)


def shared_side(names: Sequence[str]) -> str:
    """Return the side, TRAIN or HELD_OUT, that all conditions of `names` belong to.

    Raises UserError for an unknown name, and if the conditions belong to different sides.
    """
    sides = {name: lookup(CONDITIONS, name, "condition").side for name in names}
    distinct = set(sides.values())
    if len(distinct) != 1:
        raise UserError(f"conditions {sides}: cannot mix {TRAIN} and {HELD_OUT} in one dataset")
    return distinct.pop()
