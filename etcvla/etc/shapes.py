"""Pictures of 2-D shapes with questions: a small substitute for the web data of VLM pre-training.

A scene is sampled and drawn, and questions are asked about it. All answers follow from the scene
alone. The vocabulary (left, right, above, below, yes, no, `<loc>` boxes and points) is that of
robot ETC items, so that what a model learns here transfers to them. Coordinates are those of
`annotation`: (y, x) in [0, 1] with the origin at the top left.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Sequence

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont

from etcvla.etc import scene_questions
from etcvla.etc.items import Item, format_loc
from etcvla.etc.scene import place
from etcvla.etc.scene_questions import (
    Fields,
    SceneQuestion,
    choose_rare,
    no_fields,
    propose_existence,
)

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (212, 40, 40),
    "green": (40, 160, 60),
    "blue": (45, 80, 215),
    "yellow": (235, 212, 45),
    "orange": (240, 132, 25),
    "purple": (140, 55, 170),
    "black": (25, 25, 25),
    "white": (242, 242, 242),
}
# Name -> plural.
SHAPES = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "star": "stars",
    "cross": "crosses",
    "diamond": "diamonds",
    "ring": "rings",
}
# Name -> range of the radius, relative to the image's side.
SIZES: dict[str, tuple[float, float]] = {"small": (0.09, 0.115), "large": (0.15, 0.19)}
MAX_SHAPES = 5
# Probabilities of 1 .. MAX_SHAPES shapes. Scenes with one shape teach names and locations, scenes
# with several shapes teach references and relations.
COUNT_PROBABILITIES = (0.45, 0.2, 0.15, 0.1, 0.1)
MARGIN = 0.12  # objects whose centres are nearer along an axis are not compared along it
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234679"  # without 0, 1, 5 and 8, similar to O, I, S and B
TEXT = "text"  # the name of objects that are texts
MIN_ITEMS = 5  # of a scene about which enough can be asked
MAX_ITEMS = 8
_GAP = 0.02  # between objects, and between objects and the border
_CONTRAST = 110  # minimal RGB distance between an object's colour and the background
_SUPERSAMPLE = 3
_FONT_SIZE = 96  # pixels, at which the proportions of a text are measured


@dataclasses.dataclass(frozen=True)
class ShapesObject:
    """A shape, or a text if `name` is "text"."""

    name: str
    color: str
    size: str
    box: tuple[float, float, float, float]  # ymin, xmin, ymax, xmax
    angle: float = 0.0  # radians
    text: str = ""  # the characters of a text

    @property
    def center(self) -> tuple[float, float]:
        """The centre (y, x) of the box."""
        ymin, xmin, ymax, xmax = self.box
        return (ymin + ymax) / 2, (xmin + xmax) / 2

    @property
    def full_name(self) -> str:
        """Colour and name, for instance "red circle"."""
        return f"{self.color} {self.name}"


@dataclasses.dataclass(frozen=True)
class ShapesScene:
    """The objects of a picture and its mean background colour."""

    objects: tuple[ShapesObject, ...]
    background: tuple[int, int, int]  # RGB

    @property
    def shapes(self) -> tuple[ShapesObject, ...]:
        """The objects that are not texts."""
        return tuple(obj for obj in self.objects if obj.name != TEXT)

    @property
    def text(self) -> str | None:
        """The characters of the text in the picture, None if there is none."""
        return next((obj.text for obj in self.objects if obj.name == TEXT), None)

    def find(self, phrase: str) -> list[ShapesObject]:
        """Return the objects that match a phrase: "a large red circle", "blue shape" or "text".

        Raises ValueError if a word is not a size, a colour or a name.
        """
        *adjectives, noun = re.sub(r"^(a|an|the) ", "", phrase).split()
        if noun not in {"shape", TEXT, *SHAPES} or not set(adjectives) <= {*SIZES, *COLORS}:
            raise ValueError(f"{phrase!r} names no shape")
        candidates = self.shapes if noun == "shape" else self.objects
        return [
            obj
            for obj in candidates
            if noun in ("shape", obj.name) and set(adjectives) <= {obj.size, obj.color}
        ]

    def find_one(self, phrase: str) -> ShapesObject:
        """Return the object that matches a phrase. Raises ValueError if not exactly one does."""
        matches = self.find(phrase)
        if len(matches) != 1:
            raise ValueError(f"{phrase!r} matches {len(matches)} objects")
        return matches[0]

    def is_unique(self, phrase: str) -> bool:
        """Return whether exactly one object matches a phrase."""
        return len(self.find(phrase)) == 1


# --- drawing -------------------------------------------------------------------------------------


def _regular_polygon(corners: int, turn: float = 0.0) -> np.ndarray:
    """Return the corners of a polygon in the unit circle, float[corners, 2] (y, x).

    Args:
      corners: number of corners.
      turn: position of the first corner, in corners clockwise from the top.
    """
    angles = (np.arange(corners) + turn) * 2 * np.pi / corners
    return np.stack([-np.cos(angles), np.sin(angles)], axis=-1)


def _rotation(angle: float) -> np.ndarray:
    """Return float[2, 2], which turns rows (y, x) clockwise on the screen."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _cross(arm: float) -> np.ndarray:
    """Return the corners of a cross whose arms are 2 `arm` wide, float[12, 2]."""
    quarter = np.array([[-1, -arm], [-1, arm], [-arm, arm]])
    quarters = [quarter @ _rotation(angle) for angle in np.arange(4) * np.pi / 2]
    return np.concatenate(quarters) / np.hypot(1, arm)


# Shape -> corners in the unit circle, float[V, 2] (y, x).
_OUTLINES = {
    "triangle": _regular_polygon(3),
    "square": _regular_polygon(4, 0.5),
    # A diamond is narrower than a square, which would otherwise be a turned diamond.
    "diamond": _regular_polygon(4) * [1.0, 0.62],
    "star": _regular_polygon(10) * np.tile([[1.0], [0.42]], (5, 1)),
    "cross": _cross(0.3),
}


def _corners(name: str, angle: float) -> np.ndarray:
    """Return the turned outline, float[V, 2], or for a circle or ring its bounding square."""
    if name in _OUTLINES:
        return _OUTLINES[name] @ _rotation(angle)
    return np.array([[-1.0, -1.0], [1.0, 1.0]])


@functools.lru_cache(maxsize=256)
def _font(pixels: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(pixels)


@functools.lru_cache(maxsize=4096)
def _text_box(text: str, pixels: int) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of the drawn pixels, relative to the pen position."""
    return _font(pixels).getbbox(text)


def _extent(name: str, radius: float, angle: float, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the box's corners relative to the object's centre, in image sides."""
    if name == TEXT:
        left, top, right, bottom = _text_box(text, _FONT_SIZE)
        half = np.array([bottom - top, right - left]) / _FONT_SIZE * radius
        return -half, half
    corners = _corners(name, angle) * radius
    return corners.min(0), corners.max(0)


def _draw(draw: ImageDraw.ImageDraw, obj: ShapesObject, side: int, fill: tuple[int, ...]) -> None:
    """Draw an object on a transparent layer of `side` pixels in the colour `fill` (RGBA)."""
    box = np.array(obj.box) * side
    ymin, xmin, ymax, xmax = box.tolist()
    if obj.name == TEXT:
        _, top, _, bottom = _text_box(obj.text, _FONT_SIZE)
        pixels = max(6, round((ymax - ymin) / (bottom - top) * _FONT_SIZE))
        left, top, *_ = _text_box(obj.text, pixels)
        draw.text((xmin - left, ymin - top), obj.text, fill=fill, font=_font(pixels))
    elif obj.name in _OUTLINES:
        corners = _corners(obj.name, obj.angle)
        low = corners.min(0)
        high = corners.max(0)
        scaled = (corners - low) / (high - low) * (box[2:] - box[:2]) + box[:2]
        draw.polygon(scaled[:, ::-1].ravel().tolist(), fill=fill)
    else:
        draw.ellipse((xmin, ymin, xmax, ymax), fill=fill)
        if obj.name == "ring":
            inset = (xmax - xmin) * 0.25
            hole = (xmin + inset, ymin + inset, xmax - inset, ymax - inset)
            draw.ellipse(hole, fill=(*fill[:3], 0))


def _place(
    rng: Generator,
    objects: Sequence[ShapesObject],
    name: str,
    color: str,
    size: str,
    text: str = "",
) -> ShapesObject | None:
    """Return an object that overlaps no other object, or None if 40 attempts fail."""
    radius = rng.uniform(*SIZES[size])
    angle = float(rng.uniform(-0.3, 0.3)) if name != TEXT else 0.0
    low, high = _extent(name, radius, angle, text)
    others = np.array([obj.box for obj in objects]).reshape(-1, 4)
    for center in rng.uniform(_GAP - low, 1 - _GAP - high, size=(40, 2)):
        box = np.concatenate([center + low, center + high])
        apart = (box[:2] > others[:, 2:] + _GAP) | (box[2:] < others[:, :2] - _GAP)
        if apart.any(1).all():
            return ShapesObject(name, color, size, tuple(box.tolist()), angle, text)
    return None


def sample_scene(rng: Generator) -> ShapesScene:
    """Sample one to five shapes that do not overlap, and in a third of the scenes a text.

    The text has one to three characters.
    """
    # The background is nearly grey, so that colour words refer to objects.
    background = rng.uniform(40, 215) + rng.uniform(-15, 15, 3)
    colors = [word for word, rgb in COLORS.items() if np.linalg.norm(background - rgb) > _CONTRAST]
    names = list(SHAPES)
    if rng.random() < 0.5:  # few colours and names, otherwise most counts would be zero or one
        colors = list(rng.choice(colors, rng.integers(1, 3), replace=False))
        names = list(rng.choice(names, rng.integers(1, 3), replace=False))
    objects: list[ShapesObject] = []
    if rng.random() < 1 / 3:
        text = "".join(rng.choice(list(CHARACTERS), rng.integers(1, 4)))
        objects.append(_place(rng, objects, TEXT, str(rng.choice(colors)), "small", text))
    for _ in range(1 + rng.choice(MAX_SHAPES, p=COUNT_PROBABILITIES)):
        name = str(rng.choice(names))
        color = str(rng.choice(colors))
        size = str(rng.choice(list(SIZES)))
        obj = _place(rng, objects, name, color, size)
        if obj:
            objects.append(obj)
    return ShapesScene(tuple(objects), tuple(background.astype(int).tolist()))


def render(scene: ShapesScene, rng: Generator, image_size: int) -> np.ndarray:
    """Draw a scene.

    Args:
      scene: the scene.
      rng: draws the cloudy background, the noise and small variations of the colours.
      image_size: side in pixels.

    Returns:
      uint8[image_size, image_size, 3].
    """
    clouds = np.array(scene.background) + rng.uniform(-12, 12, (3, 3, 3))
    picture = Image.fromarray(clouds.clip(0, 255).astype(np.uint8))
    picture = picture.resize((image_size, image_size), Image.BICUBIC)
    # Objects are drawn large on a transparent layer, which is then reduced: Pillow does not
    # antialias.
    side = image_size * _SUPERSAMPLE
    layer = Image.new("RGBA", (side, side), (*scene.background, 0))
    draw = ImageDraw.Draw(layer)
    for obj in scene.objects:
        color = np.clip(np.array(COLORS[obj.color]) + rng.uniform(-14, 14, 3), 0, 255)
        _draw(draw, obj, side, (*color.astype(int).tolist(), 255))
    layer = layer.reduce(_SUPERSAMPLE)
    picture.paste(layer, mask=layer.getchannel("A"))
    noise = rng.standard_normal((image_size, image_size, 3), np.float32)
    noise *= np.float32(rng.uniform(0, 10))
    return (np.asarray(picture) + noise).clip(0, 255).astype(np.uint8)


def draw_scene(rng: Generator, image_size: int) -> tuple[np.ndarray, ShapesScene]:
    """Sample a scene and draw it, uint8[image_size, image_size, 3]."""
    scene = sample_scene(rng)
    return render(scene, rng, image_size), scene


# --- proposing questions -------------------------------------------------------------------------
#
# These functions return the possible fields of a question about a scene. One of them is drawn.


def _referable(scene: ShapesScene, rng: Generator) -> dict[str, ShapesObject]:
    """Return a unique phrase for every shape that has one, in random order."""
    phrases = {}
    for index in rng.permutation(len(scene.shapes)):
        obj = scene.shapes[index]
        options = [obj.full_name, f"{obj.size} {obj.full_name}"]
        if rng.random() < 0.3:
            options = [obj.name, f"{obj.color} shape", *options]
        phrase = next(filter(scene.is_unique, options), None)
        if phrase:
            phrases[phrase] = obj
    return phrases


def _text(scene: ShapesScene, rng: Generator) -> list[Fields]:
    return [{}] if scene.text else []


def _objects(scene: ShapesScene, rng: Generator) -> list[Fields]:
    phrases = list(_referable(scene, rng))
    if scene.text and rng.random() < 0.15:
        phrases = [TEXT]
    return [{"a": phrase} for phrase in phrases]


def _boxes(scene: ShapesScene, rng: Generator) -> list[Fields]:
    return [{"box": format_loc(obj.box)} for obj in scene.shapes]


def _unique_names(scene: ShapesScene, rng: Generator) -> list[Fields]:
    return [{"a": name} for name in SHAPES if scene.is_unique(name)]


def _placed_names(scene: ShapesScene, rng: Generator) -> list[Fields]:
    """Propose shapes whose name is unique and whose place in the image is unambiguous."""
    options = []
    for fields in _unique_names(scene, rng):
        _, is_clear = place(scene.find_one(fields["a"]).center)
        if is_clear:
            options.append(fields)
    return options


def _unique_colors(scene: ShapesScene, rng: Generator) -> list[Fields]:
    return [{"color": color} for color in COLORS if scene.is_unique(f"{color} shape")]


def _color(scene: ShapesScene, rng: Generator) -> list[Fields]:
    counts = {color: len(scene.find(f"{color} shape")) for color in COLORS}
    return [{"color": choose_rare(counts, rng)}]


def _plural(scene: ShapesScene, rng: Generator) -> list[Fields]:
    counts = {plural: len(scene.find(name)) for name, plural in SHAPES.items()}
    return [{"plural": choose_rare(counts, rng)}]


def _existence(scene: ShapesScene, rng: Generator) -> list[Fields]:
    obj = scene.shapes[rng.integers(len(scene.shapes))]
    return propose_existence(obj.full_name, SHAPES, COLORS, scene.find, rng)


def _pairs(scene: ShapesScene, rng: Generator, axis: int) -> list[Fields]:
    """Propose two objects that are clearly apart along an axis (0 y, 1 x)."""
    centers = {phrase: obj.center[axis] for phrase, obj in _referable(scene, rng).items()}
    return [
        {"a": a, "b": b}
        for a, b in itertools.permutations(centers, 2)
        if abs(centers[a] - centers[b]) > MARGIN
    ]


def _relations(scene: ShapesScene, rng: Generator) -> list[Fields]:
    axis = int(rng.integers(2))
    pairs = _pairs(scene, rng, axis)
    if not pairs:
        return []
    pair = pairs[rng.integers(len(pairs))]
    relations = [relation for relation, (_, along) in _RELATIONS.items() if along == axis]
    return [pair | {"relation": str(rng.choice(relations))}]


# --- answering questions -------------------------------------------------------------------------
#
# An answer raises ValueError if the question has no unique answer.


# Relation -> its short name and the axis along which objects are compared.
_RELATIONS = {
    "above": ("above", 0),
    "below": ("below", 0),
    "to the left of": ("left", 1),
    "to the right of": ("right", 1),
}


def _compare(scene: ShapesScene, a: str, b: str, axis: int) -> str:
    difference = scene.find_one(a).center[axis] - scene.find_one(b).center[axis]
    if abs(difference) <= MARGIN:
        raise ValueError(f"{a!r} and {b!r} are too close along that axis")
    if axis == 0:
        return "below" if difference > 0 else "above"
    return "right" if difference > 0 else "left"


def _relation_holds(scene: ShapesScene, a: str, b: str, relation: str) -> str:
    word, axis = _RELATIONS[relation]
    return "yes" if _compare(scene, a, b, axis) == word else "no"


def _caption(scene: ShapesScene) -> str:
    from_left = sorted(scene.shapes, key=lambda obj: obj.center[::-1])
    return ", ".join(obj.full_name for obj in from_left)


def _describe(scene: ShapesScene, a: str) -> str:
    obj = scene.find_one(a)
    where, is_clear = place(obj.center)
    if not is_clear:
        raise ValueError(f"{a!r} is between two places")
    return f"{obj.full_name}, {where}"


def _identify(scene: ShapesScene, box: str) -> str:
    matches = [obj for obj in scene.shapes if format_loc(obj.box) == box]
    if len(matches) != 1:
        raise ValueError(f"{len(matches)} shapes in the box {box}")
    return matches[0].full_name


def _count_plural(scene: ShapesScene, plural: str) -> str:
    names = {value: name for name, value in SHAPES.items()}
    return str(len(scene.find(names[plural])))


def _read_text(scene: ShapesScene) -> str:
    if scene.text is None:
        raise ValueError("the scene has no text")
    return scene.text.lower()


_SIZE = "|".join(SIZES)
_COLOR = "|".join(COLORS)
_NOUN = "|".join(["shape", TEXT, *SHAPES])
_PHRASE = rf"(?:an? )?(?:(?:{_SIZE}) )?(?:(?:{_COLOR}) )?(?:{_NOUN})"
_FIELD_PATTERNS = {
    "a": _PHRASE,
    "b": _PHRASE,
    "color": _COLOR,
    "plural": "|".join(SHAPES.values()),
    "box": r"(?:<loc\d{4}>){4}",
    "relation": "|".join(_RELATIONS),
}


class ShapesQuestion(SceneQuestion):
    """A question type about scenes of shapes."""

    field_patterns = _FIELD_PATTERNS


SHAPES_QUESTIONS: dict[str, ShapesQuestion] = {
    "caption": ShapesQuestion(
        "caption",
        (
            "describe the image.",
            "what is in the image?",
            "list the shapes from left to right.",
        ),
        no_fields,
        _caption,
    ),
    "describe": ShapesQuestion(
        "caption",
        (
            "describe the {a}.",
            "what color is the {a}, and where in the image?",
            "name the color and the place of the {a}.",
        ),
        _placed_names,
        _describe,
    ),
    "color": ShapesQuestion(
        "caption",
        (
            "what color is the {a}?",
            "which color does the {a} have?",
            "name the color of the {a}.",
        ),
        _unique_names,
        lambda scene, a: scene.find_one(a).color,
    ),
    "shape": ShapesQuestion(
        "caption",
        (
            "what is the {color} shape?",
            "which shape is {color}?",
            "name the {color} shape.",
        ),
        _unique_colors,
        lambda scene, color: scene.find_one(f"{color} shape").name,
    ),
    "locate_box": ShapesQuestion(
        "locate",
        (
            "locate the {a}.",
            "detect the {a}.",
            "where is the {a}? answer with a box.",
        ),
        _objects,
        lambda scene, a: format_loc(scene.find_one(a).box),
    ),
    "locate_point": ShapesQuestion(
        "locate",
        (
            "point to the {a}.",
            "mark the {a}.",
            "where is the {a}? answer with a point.",
        ),
        _objects,
        lambda scene, a: format_loc(scene.find_one(a).center),
    ),
    "identify": ShapesQuestion(
        "locate",
        (
            "what is in the box {box}?",
            "name the object in the box {box}.",
            "which object is at {box}?",
        ),
        _boxes,
        _identify,
    ),
    "count_color": ShapesQuestion(
        "count",
        (
            "how many {color} shapes are there?",
            "count the {color} shapes.",
            "how many shapes are {color}?",
        ),
        _color,
        lambda scene, color: str(len(scene.find(f"{color} shape"))),
    ),
    "count_shape": ShapesQuestion(
        "count",
        (
            "how many {plural} are there?",
            "count the {plural}.",
            "how many {plural} do you see?",
        ),
        _plural,
        _count_plural,
    ),
    "count_all": ShapesQuestion(
        "count",
        (
            "how many shapes are there?",
            "count the shapes.",
            "how many shapes do you see?",
        ),
        no_fields,
        lambda scene: str(len(scene.shapes)),
    ),
    "exist": ShapesQuestion(
        "count",
        (
            "is {a} in the image?",
            "do you see {a}?",
            "yes or no: the image shows {a}.",
        ),
        _existence,
        lambda scene, a: "yes" if scene.find(a) else "no",
    ),
    "relation_side": ShapesQuestion(
        "relation",
        (
            "is the {a} to the left or to the right of the {b}?",
            "where is the {a} relative to the {b}, left or right?",
            "on which side of the {b} is the {a}, left or right?",
        ),
        functools.partial(_pairs, axis=1),
        functools.partial(_compare, axis=1),
    ),
    "relation_height": ShapesQuestion(
        "relation",
        (
            "is the {a} above or below the {b}?",
            "where is the {a} relative to the {b}, above or below?",
            "compare the heights: is the {a} above or below the {b}?",
        ),
        functools.partial(_pairs, axis=0),
        functools.partial(_compare, axis=0),
    ),
    "relation_holds": ShapesQuestion(
        "relation",
        (
            "is the {a} {relation} the {b}?",
            "yes or no: the {a} is {relation} the {b}.",
        ),
        _relations,
        _relation_holds,
    ),
    "read_text": ShapesQuestion(
        "read",
        (
            "read the text.",
            "what does the text say?",
            "what is written in the image?",
        ),
        _text,
        _read_text,
    ),
}


def make_items(scene: ShapesScene, rng: Generator) -> list[Item]:
    """Make five to eight items about a scene, each of another question type.

    Scenes about which little can be asked may have fewer.
    """
    num_items = rng.integers(MIN_ITEMS, MAX_ITEMS + 1)
    # Question types that few scenes allow come first. Otherwise they would be rare.
    first = ["read_text", "relation_side", "relation_height"]
    others = [name for name in rng.permutation(list(SHAPES_QUESTIONS)) if name not in first]
    items: list[Item] = []
    for name in [*first, *others]:
        question_type = SHAPES_QUESTIONS[name]
        is_trivial = question_type.kind == "count" and len(scene.shapes) == 1
        if is_trivial and rng.random() < 0.85:
            continue  # otherwise the answer to most counts would be one
        options = question_type.propose(scene, rng)
        if not options:
            continue
        fields = options[rng.integers(len(options))]
        if len(items) == num_items:
            continue
        answer = question_type.answer(scene, **fields)
        items.append(question_type.write(name, fields, answer, rng))
    return items


def check(item: Item, scene: ShapesScene) -> str | None:
    """Return the reason why `item` is wrong about the scene, None if it is correct."""
    return scene_questions.check(item, scene, SHAPES_QUESTIONS)
