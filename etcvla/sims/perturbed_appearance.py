"""The looks of `perturbations`' axes. The random numbers give the direction, the strength how far it goes.

Arguments are (random numbers, strength 1 to 3, where the front camera stands).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from etcvla.sims.conditions import HELD_OUT, AddedObject, Condition, Orbit

_COLORS = {
    "pink": (0.95, 0.5, 0.7),
    "turquoise": (0.2, 0.75, 0.75),
    "violet": (0.4, 0.25, 0.75),
    "olive": (0.45, 0.5, 0.15),
    "orange": (0.95, 0.5, 0.1),
    "white": (0.9, 0.9, 0.88),
}
_THINGS = {
    "cube": (0.025, 0.025, 0.025),
    "ball": (0.026, 0.0, 0.0),
    "can": (0.024, 0.04, 0.0),
    "egg": (0.028, 0.028, 0.036),
    "capsule": (0.02, 0.026, 0.0),
}


def camera(rng: np.random.Generator, strength: int, orbit: Orbit) -> Condition:
    angle, share = (6, 14, 25)[strength - 1], (0.05, 0.12, 0.2)[strength - 1]
    around, up, away = rng.choice((-1, 1), 3)
    elevation = float(np.clip(orbit.elevation + up * angle / 2, -85, -5))
    return Condition(
        HELD_OUT,
        camera=dataclasses.replace(
            orbit,
            azimuth=orbit.azimuth + float(around * angle),
            elevation=elevation,
            distance=orbit.distance * float(1 + away * share),
        ),
    )


def light(rng: np.random.Generator, strength: int, _: Orbit) -> Condition:
    factor = (0.75, 0.5, 0.3)[
        strength - 1
    ]  # never brighter: surfaces are lit fully, and light beyond that is cut off
    color = 1 - rng.uniform(0.3, 1, 3) * (0.1, 0.25, 0.4)[strength - 1]
    return Condition(HELD_OUT, light=tuple(factor * color / color.max()), ambient=factor)


def texture(rng: np.random.Generator, strength: int, _: Orbit) -> Condition:
    shades = rng.uniform(0.2, 0.9, (2, 3))
    shades[1] = (shades[0] + 0.5) % 1  # two that can be told apart
    pattern = str(rng.choice(("checker", "stripes", "dots"))) if strength > 1 else ""
    tints = rng.uniform(0.45, 1.0, (2, 3)) if strength > 2 else ()
    return Condition(
        HELD_OUT,
        pattern=pattern,
        shades=tuple(map(tuple, shades if pattern else shades[:1])),
        tints=tuple(map(tuple, tints)),
    )


def layout(rng: np.random.Generator, strength: int, _: Orbit) -> Condition:
    return Condition(
        HELD_OUT,
        added=tuple(
            AddedObject(noun, color, _COLORS[color], _THINGS[noun])
            for noun, color in zip(
                rng.choice(list(_THINGS), 2 * strength - 1),
                rng.choice(list(_COLORS), 2 * strength - 1),
                strict=True,
            )
        ),
    )


APPEARANCE_AXES = {"camera": camera, "light": light, "texture": texture, "layout": layout}
