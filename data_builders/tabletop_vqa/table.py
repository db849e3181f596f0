"""Renders the tabletop without its robot: any objects, light, table color and camera."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.random import Generator

from data_builders.tabletop_vqa.questions import PicturedObject, PicturedScene
from etcvla.sims import headless

headless.require_egl()
from etcvla.sims.conditions import Orbit  # noqa: E402
from etcvla.sims.oracle import mask_box  # noqa: E402
from etcvla.sims.render import HIDDEN_GROUP, Renderer  # noqa: E402
from etcvla.sims.tabletop.layouts import (  # noqa: E402
    HOME,
    NUM_OBJECTS,
    Layout,
    TableObject,
    sample_positions,
)
from etcvla.sims.tabletop.scene import CAMERA, TableScene  # noqa: E402
from etcvla.sims.tabletop.words import COLORS, NOUNS  # noqa: E402

MIN_OBJECTS = 3
HALF_AREA = np.array([0.18, 0.155])  # metres; objects are placed in a rectangle around the origin
MIN_DISTANCE = 0.085  # metres between the centres of two objects
MIN_PIXELS = 20  # visible pixels of an object
ROBOT_BODIES = ("upper", "fore", "hand")
# Largest changes, uniform in both directions.
LOOKAT_CHANGE = np.array([0.02, 0.02, 0.0])  # metres
DISTANCE_CHANGE = 0.05  # metres
AZIMUTH_CHANGE = 8.0  # degrees
ELEVATION_CHANGE = 6.0  # degrees
LIGHT_CHANGE = 0.25  # relative
DIRECTION_CHANGE = 0.35  # of each component of the light's direction
COLOR_CHANGE = 0.04  # of each channel of an object's color
TABLE_CHANGE = 0.08  # of each channel of the table's color
ROOM_CHANGE = 0.1  # of each channel of the room's color


class Table:
    """The tabletop's model with a renderer. Creating one takes half a second, so keep it."""

    def __init__(self, image_size: int):
        self._scene = TableScene()
        model = self._scene.model
        self._renderer = Renderer(model, self._scene.data, image_size)
        bodies = [model.body(name).id for name in ROBOT_BODIES]
        robot = np.isin(model.geom_bodyid, bodies)
        robot[model.geom("column").id] = True
        model.geom_group[robot] = HIDDEN_GROUP
        headlight = model.vis.headlight
        self._lights = [model.light_diffuse, headlight.diffuse, headlight.ambient]
        self._default_lights = [values.copy() for values in self._lights]
        self._default_direction = model.light_dir.copy()
        self._default_room = model.geom("room").rgba[:3].copy()

    def draw(self, rng: Generator) -> tuple[np.ndarray, PicturedScene]:
        """Render a random picture uint8[H, W, 3] in which all objects are clearly visible."""
        while True:
            layout = sample_layout(rng)
            count = int(rng.integers(MIN_OBJECTS, NUM_OBJECTS + 1))
            camera = sample_camera(rng)
            self._set_up(layout, count, rng)
            scene = self._read(layout, count, camera)
            if scene is not None:
                return self._renderer.rgb(camera), scene

    def _set_up(self, layout: Layout, count: int, rng: Generator) -> None:
        """Show the first `count` objects of a layout, and vary lights and colors."""
        model = self._scene.model
        self._scene.show(layout)
        objects = self._scene.objects
        model.geom_group[objects] = HIDDEN_GROUP
        model.geom_group[objects[:count]] = 0
        for values, default in zip(self._lights, self._default_lights, strict=True):
            values[:] = default * rng.uniform(1 - LIGHT_CHANGE, 1 + LIGHT_CHANGE)
        change = rng.uniform(-DIRECTION_CHANGE, DIRECTION_CHANGE, 3)
        model.light_dir[:] = self._default_direction + change
        for geom in objects:
            _vary(model.geom_rgba[geom, :3], COLOR_CHANGE, rng)
        _vary(model.mat_rgba[model.geom_matid[self._scene.table], :3], TABLE_CHANGE, rng)
        room = model.geom("room").rgba[:3]
        room[:] = self._default_room
        _vary(room, ROOM_CHANGE, rng)
        self._scene.reset(layout, layout.hand)

    def _read(self, layout: Layout, count: int, camera: Orbit) -> PicturedScene | None:
        """Return the picture's objects, or None if one is hidden or cut off by the border."""
        labels = self._renderer.labels(camera)
        azimuth = np.deg2rad(camera.azimuth)
        direction = np.array([np.cos(azimuth), np.sin(azimuth)])  # of view, on the table
        objects = []
        for geom, shown, position in zip(
            self._scene.objects[:count], layout.objects, layout.positions, strict=False
        ):
            mask = labels == geom
            box = mask_box(mask)
            if mask.sum() < MIN_PIXELS or box.min() <= 0 or box.max() >= 1:
                return None
            distance = float(direction @ position)
            objects.append(PicturedObject(shown.noun, shown.color, tuple(box.tolist()), distance))
        return PicturedScene(tuple(objects))

    def close(self) -> None:
        """Free the renderer."""
        self._renderer.close()


def sample_layout(rng: Generator) -> Layout:
    """Draw five objects with different names and their poses."""
    objects = []
    for noun, color in sample_pairs(rng):
        objects.append(TableObject(noun, color, novelty="none"))
    return Layout(
        number=0,
        objects=tuple(objects),
        positions=sample_positions(rng, HALF_AREA, MIN_DISTANCE),
        yaws=rng.uniform(0, 2 * np.pi, NUM_OBJECTS),
        hand=HOME,
        table=int(rng.integers(1 << 16)),
    )


def sample_pairs(rng: Generator) -> list[tuple[str, str]]:
    """Draw five different pairs (noun, color).

    Half of the draws have two nouns and three colors, so that objects often share a word, as on
    the robot's table.
    """
    nouns = NOUNS
    colors = COLORS
    if rng.random() < 0.5:
        nouns = rng.permutation(NOUNS)[:2].tolist()
        colors = rng.permutation(COLORS)[:3].tolist()
    pairs = list(itertools.product(nouns, colors))
    return [pairs[index] for index in rng.permutation(len(pairs))[:NUM_OBJECTS]]


def sample_camera(rng: Generator) -> Orbit:
    """Draw a camera near the robot's."""
    lookat = np.array(CAMERA.lookat) + rng.uniform(-LOOKAT_CHANGE, LOOKAT_CHANGE)
    return Orbit(
        lookat=tuple(lookat.tolist()),
        distance=CAMERA.distance + rng.uniform(-DISTANCE_CHANGE, DISTANCE_CHANGE),
        azimuth=CAMERA.azimuth + rng.uniform(-AZIMUTH_CHANGE, AZIMUTH_CHANGE),
        elevation=CAMERA.elevation + rng.uniform(-ELEVATION_CHANGE, ELEVATION_CHANGE),
    )


def _vary(color: np.ndarray, change: float, rng: Generator) -> None:
    """Change the channels of a color float[3] in place."""
    color[:] = np.clip(color + rng.uniform(-change, change, 3), 0, 1)
