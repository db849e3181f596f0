"""Renders the tabletop without its robot: any objects, light, table color and camera."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.random import Generator

from data_builders.tabletop_vqa.questions import PicturedObject, TableScene
from etcvla.sims import headless

headless.require_egl()
import mujoco  # noqa: E402

from etcvla.sims.conditions import Orbit  # noqa: E402
from etcvla.sims.oracle import mask_box  # noqa: E402
from etcvla.sims.render import HIDDEN_GROUP, Renderer  # noqa: E402
from etcvla.sims.tabletop import scene as table_scene  # noqa: E402
from etcvla.sims.tabletop.layouts import NUM_OBJECTS  # noqa: E402
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
        self._model = table_scene.make_model()
        self._data = mujoco.MjData(self._model)
        self._renderer = Renderer(self._model, self._data, image_size)
        self._geoms = [self._model.geom(name).id for name in table_scene.SLOTS]
        bodies = [self._model.body(name).id for name in ROBOT_BODIES]
        robot = np.isin(self._model.geom_bodyid, bodies)
        robot[self._model.geom("column").id] = True
        self._model.geom_group[robot] = HIDDEN_GROUP
        headlight = self._model.vis.headlight
        self._lights = [self._model.light_diffuse, headlight.diffuse, headlight.ambient]
        self._default_lights = [values.copy() for values in self._lights]
        self._default_direction = self._model.light_dir.copy()
        self._default_room = self._model.geom("room").rgba.copy()

    def draw(self, rng: Generator) -> tuple[np.ndarray, TableScene]:
        """Render a random picture uint8[H, W, 3] in which all objects are clearly visible."""
        while True:
            pairs = sample_pairs(rng)
            positions = sample_positions(rng, len(pairs))
            self._place(pairs, positions, rng)
            self._light(rng)
            camera = sample_camera(rng)
            mujoco.mj_kinematics(self._model, self._data)
            mujoco.mj_camlight(self._model, self._data)
            scene = self._scene(pairs, positions, camera)
            if scene is not None:
                return self._renderer.rgb(camera), scene

    def _place(self, pairs: list[tuple[str, str]], positions: np.ndarray, rng: Generator) -> None:
        """Put one object for each pair (noun, color) on the table, and hide the other slots."""
        poses = self._data.qpos.reshape(NUM_OBJECTS, 7)
        poses[:, 3:] = 0
        yaws = rng.uniform(0, 2 * np.pi, NUM_OBJECTS)
        poses[:, 3] = np.cos(yaws / 2)
        poses[:, 6] = np.sin(yaws / 2)
        self._model.geom_group[self._geoms] = HIDDEN_GROUP
        for slot, (noun, color) in enumerate(pairs):
            table_scene.set_shape(self._model, slot, noun, color)
            geom = self._geoms[slot]
            self._model.geom_group[geom] = 0
            self._model.geom_rgba[geom, :3] = _vary(table_scene.RGB[color], COLOR_CHANGE, rng)
            height = table_scene.half_height(self._model, noun)
            poses[slot, :3] = [*positions[slot], height]

    def _light(self, rng: Generator) -> None:
        """Vary the lights and the colors of table and room."""
        for values, default in zip(self._lights, self._default_lights, strict=True):
            values[:] = default * rng.uniform(1 - LIGHT_CHANGE, 1 + LIGHT_CHANGE)
        change = rng.uniform(-DIRECTION_CHANGE, DIRECTION_CHANGE, 3)
        self._model.light_dir[:] = self._default_direction + change
        table_colors = table_scene.TABLE_RGB
        color = table_colors[rng.integers(len(table_colors))]
        self._model.material("table").rgba[:3] = _vary(color, TABLE_CHANGE, rng)
        self._model.geom("room").rgba[:3] = _vary(self._default_room[:3], ROOM_CHANGE, rng)

    def _scene(
        self, pairs: list[tuple[str, str]], positions: np.ndarray, camera: Orbit
    ) -> TableScene | None:
        """Return the picture's objects, or None if one is hidden or cut off by the border."""
        labels = self._renderer.labels(camera)
        objects = []
        for slot, (noun, color) in enumerate(pairs):
            mask = labels == self._geoms[slot]
            box = mask_box(mask)
            if mask.sum() < MIN_PIXELS or box.min() <= 0 or box.max() >= 1:
                return None
            distance = _viewing_direction(camera) @ positions[slot]
            objects.append(PicturedObject(noun, color, tuple(box.tolist()), float(distance)))
        return TableScene(tuple(objects))

    def close(self) -> None:
        """Free the renderer."""
        self._renderer.close()


def sample_pairs(rng: Generator) -> list[tuple[str, str]]:
    """Draw three to five different pairs (noun, color).

    Half of the draws have two nouns and three colors, so that objects often share a word, as on
    the robot's table.
    """
    count = int(rng.integers(MIN_OBJECTS, NUM_OBJECTS + 1))
    nouns = NOUNS
    colors = COLORS
    if rng.random() < 0.5:
        nouns = rng.permutation(NOUNS)[:2].tolist()
        colors = rng.permutation(COLORS)[:3].tolist()
    pairs = list(itertools.product(nouns, colors))
    return [pairs[index] for index in rng.permutation(len(pairs))[:count]]


def sample_positions(rng: Generator, count: int) -> np.ndarray:
    """Draw points float[count, 2] of the area that are `MIN_DISTANCE` apart."""
    while True:
        points = rng.uniform(-HALF_AREA, HALF_AREA, (32, count, 2))
        gaps = np.linalg.norm(points[:, :, None] - points[:, None], axis=-1)
        gaps += np.eye(count)  # an object's distance to itself does not count
        fits = gaps.min((1, 2)) > MIN_DISTANCE
        if fits.any():
            return points[fits][0]


def sample_camera(rng: Generator) -> Orbit:
    """Draw a camera near the robot's."""
    default = table_scene.CAMERA
    lookat = np.array(default.lookat) + rng.uniform(-LOOKAT_CHANGE, LOOKAT_CHANGE)
    return Orbit(
        lookat=tuple(lookat.tolist()),
        distance=default.distance + rng.uniform(-DISTANCE_CHANGE, DISTANCE_CHANGE),
        azimuth=default.azimuth + rng.uniform(-AZIMUTH_CHANGE, AZIMUTH_CHANGE),
        elevation=default.elevation + rng.uniform(-ELEVATION_CHANGE, ELEVATION_CHANGE),
    )


def _viewing_direction(camera: Orbit) -> np.ndarray:
    """Return the camera's viewing direction on the table, a unit vector float[2]."""
    azimuth = np.deg2rad(camera.azimuth)
    return np.array([np.cos(azimuth), np.sin(azimuth)])


def _vary(color: tuple[float, ...], change: float, rng: Generator) -> np.ndarray:
    return np.clip(np.array(color) + rng.uniform(-change, change, 3), 0, 1)
