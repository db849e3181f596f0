"""Meshes of the objects: few triangles, because their number decides the cost of a frame.

A vertex that several faces share gets a smooth normal; faces with vertices of their own are flat.
Lengths are metres, and every shape is centred on the origin.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Mesh:
    """A triangle mesh."""

    vertices: np.ndarray  # float[V, 3]
    faces: np.ndarray  # int[F, 3], counter-clockwise from outside


def boxes(*parts: tuple[tuple[float, ...], tuple[float, ...]]) -> Mesh:
    """Return a union of axis-aligned boxes, each given as (centre, half sizes)."""
    corners = np.array(list(itertools.product((-1, 1), repeat=3)))
    # The corners of each side, counter-clockwise from outside.
    sides = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
    triangles = []
    for centre, half_size in parts:
        points = np.array(centre) + corners * half_size
        for a, b, c, d in sides:
            triangles += [points[[a, b, c]], points[[a, c, d]]]
    return _flat(triangles)


def prism(outline: np.ndarray, half_height: float) -> Mesh:
    """Return an upright prism.

    Args:
      outline: float[K, 2], counter-clockwise corners, all of them visible from the origin.
      half_height: half its height.
    """
    up = np.array([0, 0, half_height])
    corners = np.column_stack([outline, np.zeros(len(outline))])
    triangles = []
    for first, second in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        triangles += [
            (first - up, second - up, second + up),  # side
            (first - up, second + up, first + up),
            (up, first + up, second + up),  # top
            (-up, second - up, first - up),  # bottom
        ]
    return _flat(triangles)


def star_outline(points: int, outer: float, inner: float) -> np.ndarray:
    """Return the corners of a star, float[2 * points, 2]."""
    angles = np.arange(2 * points) * np.pi / points
    radii = np.where(np.arange(2 * points) % 2, inner, outer)
    return radii[:, None] * np.column_stack([np.cos(angles), np.sin(angles)])


def cone(radius: float, half_height: float) -> Mesh:
    """Return an upright cone."""
    sides = 14
    angles = np.arange(sides) * 2 * np.pi / sides
    rim = np.column_stack([np.cos(angles), np.sin(angles)]) * radius
    base = np.column_stack([rim, np.full(sides, -half_height)])
    following = np.roll(np.arange(sides), -1)
    # The rim is there twice, so that the base is flat; each side has an apex of its own.
    apex = np.tile([0, 0, half_height], (sides, 1))
    vertices = np.concatenate([base, apex, base, [[0, 0, -half_height]]])
    rim_ids = np.arange(sides)
    mantle = np.column_stack([rim_ids, following, rim_ids + sides])
    bottom = np.column_stack(
        [following + 2 * sides, rim_ids + 2 * sides, np.full(sides, 3 * sides)]
    )
    return Mesh(vertices, np.concatenate([mantle, bottom]))


def torus(radius: float, thickness: float) -> Mesh:
    """Return a flat-lying torus; `thickness` is the radius of its tube."""
    segments = 16
    sides = 8
    around, tube = np.meshgrid(np.arange(segments), np.arange(sides), indexing="ij")
    angle = around.ravel() * 2 * np.pi / segments
    tilt = tube.ravel() * 2 * np.pi / sides
    distance = radius + thickness * np.cos(tilt)
    vertices = np.column_stack(
        [distance * np.cos(angle), distance * np.sin(angle), thickness * np.sin(tilt)]
    )
    next_around = (around + 1) % segments
    next_tube = (tube + 1) % sides
    first = (around * sides + tube).ravel()
    second = (next_around * sides + tube).ravel()
    third = (next_around * sides + next_tube).ravel()
    fourth = (around * sides + next_tube).ravel()
    faces = [np.column_stack([first, second, third]), np.column_stack([first, third, fourth])]
    return Mesh(vertices, np.concatenate(faces))


def _flat(triangles: Sequence[Sequence[np.ndarray]]) -> Mesh:
    """Return a mesh of triangles with flat normals."""
    vertices = np.array(triangles).reshape(-1, 3)
    return Mesh(vertices, np.arange(len(vertices)).reshape(-1, 3))
