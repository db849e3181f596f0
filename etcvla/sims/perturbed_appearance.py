"""Random conditions for the perturbation axes that change a scene's appearance.

Every function takes random numbers (the direction of the change) and the strength (its size, 1 to
3).
"""

from __future__ import annotations

import numpy as np

from etcvla.sims.conditions import HELD_OUT, AddedObject, CameraMove, Condition

_COLORS = ("pink", "turquoise", "violet", "olive", "orange", "white")
# Noun -> half sizes, see `AddedObject`.
_SIZES = {
    "cube": (0.025, 0.025, 0.025),
    "ball": (0.026, 0.0, 0.0),
    "can": (0.024, 0.04, 0.0),
    "egg": (0.028, 0.028, 0.036),
    "capsule": (0.02, 0.026, 0.0),
}


def move_camera(rng: np.random.Generator, strength: int) -> Condition:
    """Turn the front camera around the scene, tilt it, and change its distance."""
    angle = (6, 14, 25)[strength - 1]
    share = (0.05, 0.12, 0.2)[strength - 1]
    around, up, away = rng.choice((-1, 1), 3)
    move = CameraMove(
        azimuth=float(around * angle),
        elevation=float(up * angle / 2),
        distance=float(1 + away * share),
    )
    return Condition(HELD_OUT, camera=move)


def change_light(rng: np.random.Generator, strength: int) -> Condition:
    """Dim and color the lights.

    They never get brighter, because lit surfaces are already near saturation.
    """
    factor = (0.75, 0.5, 0.3)[strength - 1]
    saturation = (0.1, 0.25, 0.4)[strength - 1]
    color = 1 - rng.uniform(0.3, 1, 3) * saturation
    return Condition(HELD_OUT, light=tuple(factor * color / color.max()), ambient=factor)


def change_table(rng: np.random.Generator, strength: int) -> Condition:
    """Recolor the table; add a pattern from strength 2; tint room and objects at strength 3."""
    shades = rng.uniform(0.2, 0.9, (2, 3))
    shades[1] = (shades[0] + 0.5) % 1  # clearly different from the first
    pattern = ""
    if strength > 1:
        pattern = str(rng.choice(("checker", "stripes", "dots")))
    else:
        shades = shades[:1]
    tints = rng.uniform(0.45, 1.0, (2, 3)) if strength > 2 else ()
    return Condition(
        HELD_OUT,
        pattern=pattern,
        shades=tuple(tuple(shade) for shade in shades),
        tints=tuple(tuple(tint) for tint in tints),
    )


def add_objects(rng: np.random.Generator, strength: int) -> Condition:
    """Add 1, 3 or 5 objects to the scene."""
    count = 2 * strength - 1
    nouns = rng.choice(list(_SIZES), count)
    colors = rng.choice(_COLORS, count)
    added = []
    for noun, color in zip(nouns, colors, strict=True):
        added.append(AddedObject(noun, color, _SIZES[noun]))
    return Condition(HELD_OUT, added=tuple(added))


APPEARANCE_AXES = {
    "camera": move_camera,
    "light": change_light,
    "texture": change_table,
    "layout": add_objects,
}
