"""Pictures of 2-D shapes with questions about them: a small stand-in for the web data that a VLM is pre-trained on.

A scene is sampled, drawn, and asked about; every answer follows from the scene alone. The words (left, right, above,
below, yes, no, `<loc>` boxes and points) are those of robot ETC, so that a model that has learnt them here finds them
again there. Coordinates are as in `annotation`: (y, x) in [0, 1], origin at the top left.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from etcvla.etc.items import Item, format_loc
from etcvla.etc.scene import place

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
SHAPES = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "star": "stars",
    "cross": "crosses",
    "diamond": "diamonds",
    "ring": "rings",
}  # with plurals
SIZES: dict[str, tuple[float, float]] = {
    "small": (0.09, 0.115),
    "large": (0.15, 0.19),
}  # radius, share of the side
MAX_SHAPES = 5
# Of 1 .. MAX_SHAPES shapes: naming and pointing are learnt where there is one, choosing where there are several.
_COUNT_ODDS = (0.45, 0.2, 0.15, 0.1, 0.1)
MARGIN = 0.12  # centres nearer than this along an axis are not asked which is left, or above
# Without 0, 1, 5 and 8, which look like O, I, S and B.
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234679"
TEXT = "text"  # the name of a text among the shapes' names
_GAP = 0.02  # between things, and to the border
_CONTRAST = 110  # RGB distance between a thing's colour and the background
_SUPERSAMPLE = 3


@dataclasses.dataclass(frozen=True)
class ShapesObject:
    """A shape, or a text (`name` is "text" and `text` what it says)."""

    name: str
    color: str
    size: str
    box: tuple[float, float, float, float]  # ymin, xmin, ymax, xmax
    angle: float = 0.0  # radians
    text: str = ""

    @property
    def center(self) -> tuple[float, float]:
        ymin, xmin, ymax, xmax = self.box
        return (ymin + ymax) / 2, (xmin + xmax) / 2


@dataclasses.dataclass(frozen=True)
class ShapesScene:
    objects: tuple[ShapesObject, ...]
    background: tuple[int, int, int]  # mean RGB

    @property
    def shapes(self) -> tuple[ShapesObject, ...]:
        return tuple(thing for thing in self.objects if thing.name != TEXT)

    def find(self, phrase: str) -> list[ShapesObject]:
        """The things that a phrase such as "a large red circle", "blue shape" or "text" fits.

        Raises ValueError for a word that is no size, colour or name.
        """
        *adjectives, noun = re.sub(r"^(a|an|the) ", "", phrase).split()
        if noun not in {"shape", TEXT, *SHAPES} or not set(adjectives) <= {*SIZES, *COLORS}:
            raise ValueError(f"{phrase!r} names no shape")
        named = (
            self.shapes
            if noun == "shape"
            else [thing for thing in self.objects if thing.name == noun]
        )
        return [thing for thing in named if set(adjectives) <= {thing.size, thing.color}]


# --- drawing -------------------------------------------------------------------------------------------------------


@functools.cache
def _outline(name: str) -> np.ndarray:
    """float[V, 2] (y, x) corners of a polygon within the unit circle."""
    if name in ("triangle", "square", "diamond", "star"):
        corners, turn = {
            "triangle": (3, 0),
            "square": (4, 0.5),
            "diamond": (4, 0),
            "star": (10, 0),
        }[name]
        angles = (np.arange(corners) + turn) * 2 * np.pi / corners
        radius = np.where(np.arange(corners) % 2, 0.42, 1.0) if name == "star" else np.ones(corners)
        # A diamond is narrower than it is high, or a turned square would pass for one.
        width = 0.62 if name == "diamond" else 1.0
        return np.stack([-radius * np.cos(angles), width * radius * np.sin(angles)], axis=-1)
    arm = 0.3
    quarter = np.array([[-1, -arm], [-1, arm], [-arm, arm]])
    return np.concatenate(
        [quarter @ _turn(angle) for angle in np.arange(4) * np.pi / 2]
    ) / np.hypot(1, arm)


def _turn(angle: float) -> np.ndarray:
    """float[2, 2]: turns rows (y, x) clockwise as seen on the screen."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _corners(name: str, angle: float) -> np.ndarray:
    """float[V, 2]: the outline turned by `angle`; a circle's or ring's are its bounding square's."""
    if name in ("circle", "ring"):
        return np.array([[-1.0, -1.0], [1.0, 1.0]])
    return _outline(name) @ _turn(angle)


@functools.lru_cache(maxsize=256)
def _font(pixels: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(pixels)


@functools.lru_cache(maxsize=4096)
def _ink(text: str, pixels: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the drawn pixels, from the pen position."""
    return _font(pixels).getbbox(text)


def _extent(name: str, radius: float, angle: float, text: str) -> tuple[np.ndarray, np.ndarray]:
    """The box's two corners from the centre of the thing, as shares of the side."""
    if name == TEXT:
        left, top, right, bottom = _ink(text, 96)
        half = np.array([bottom - top, right - left]) / 96 * radius
        return -half, half
    corners = _corners(name, angle) * radius
    return corners.min(0), corners.max(0)


def _draw(
    draw: ImageDraw.ImageDraw,
    thing: ShapesObject,
    side: int,
    fill: tuple[int, ...],
    hole: tuple[int, ...],
) -> None:
    ymin, xmin, ymax, xmax = (value * side for value in thing.box)
    if thing.name == TEXT:
        pixels = max(
            6, round((ymax - ymin) / (_ink(thing.text, 96)[3] - _ink(thing.text, 96)[1]) * 96)
        )
        left, top, *_ = _ink(thing.text, pixels)
        draw.text((xmin - left, ymin - top), thing.text, fill=fill, font=_font(pixels))
    elif thing.name in ("circle", "ring"):
        draw.ellipse((xmin, ymin, xmax, ymax), fill=fill)
        if thing.name == "ring":
            inset = (xmax - xmin) * 0.25
            draw.ellipse((xmin + inset, ymin + inset, xmax - inset, ymax - inset), fill=hole)
    else:
        corners = _corners(thing.name, thing.angle)
        low, high = corners.min(0), corners.max(0)
        scaled = (corners - low) / (high - low) * [ymax - ymin, xmax - xmin] + [ymin, xmin]
        draw.polygon([(x, y) for y, x in scaled], fill=fill)


def _place(
    rng: np.random.Generator,
    things: list[ShapesObject],
    name: str,
    color: str,
    size: str,
    text: str = "",
) -> ShapesObject | None:
    """A thing where no other is, or None after some tries."""
    radius = rng.uniform(*SIZES[size])
    angle = float(rng.uniform(-0.3, 0.3)) if name != TEXT else 0.0
    low, high = _extent(name, radius, angle, text)
    room = np.stack([_GAP - low, 1 - _GAP - high])
    others = np.array([thing.box for thing in things]).reshape(-1, 4)
    for center in rng.uniform(*room, size=(40, 2)):
        box = np.concatenate([center + low, center + high])
        apart = (box[:2] > others[:, 2:] + _GAP) | (box[2:] < others[:, :2] - _GAP)
        if apart.any(1).all():
            return ShapesObject(name, color, size, tuple(map(float, box)), angle, text)
    return None


def sample_scene(rng: np.random.Generator) -> ShapesScene:
    """One to five shapes that do not overlap, and in one scene of three a text of one to three characters."""
    background = rng.uniform(40, 215) + rng.uniform(
        -15, 15, 3
    )  # nearly grey, so that colour means a thing
    colors = [word for word, rgb in COLORS.items() if np.linalg.norm(background - rgb) > _CONTRAST]
    names = list(SHAPES)
    if rng.random() < 0.5:  # few kinds, or counting would only ever find none or one
        colors = list(rng.choice(colors, rng.integers(1, 3), replace=False))
        names = list(rng.choice(names, rng.integers(1, 3), replace=False))
    things: list[ShapesObject] = []
    if rng.random() < 1 / 3:
        text = "".join(rng.choice(list(CHARACTERS), rng.integers(1, 4)))
        things.append(_place(rng, things, TEXT, str(rng.choice(colors)), "small", text))
    for _ in range(1 + rng.choice(MAX_SHAPES, p=_COUNT_ODDS)):
        thing = _place(
            rng,
            things,
            str(rng.choice(names)),
            str(rng.choice(colors)),
            str(rng.choice(list(SIZES))),
        )
        things += [thing] if thing else []
    return ShapesScene(tuple(things), tuple(int(value) for value in background))


def render(scene: ShapesScene, rng: np.random.Generator, image_size: int) -> np.ndarray:
    """uint8[H, W, 3]: the scene before a cloudy background, with noise and unsteady colours drawn from `rng`."""
    clouds = np.array(scene.background) + rng.uniform(-12, 12, (3, 3, 3))
    side = image_size * _SUPERSAMPLE
    small = Image.fromarray(clouds.clip(0, 255).astype(np.uint8)).resize(
        (image_size, image_size), Image.BICUBIC
    )
    # Things are drawn large on a transparent layer, then shrunk: Pillow's own edges are jagged.
    layer = Image.new("RGBA", (side, side), (*scene.background, 0))
    draw = ImageDraw.Draw(layer)
    for thing in scene.objects:
        fill = tuple(
            int(value)
            for value in np.clip(np.array(COLORS[thing.color]) + rng.uniform(-14, 14, 3), 0, 255)
        )
        _draw(draw, thing, side, (*fill, 255), (*fill, 0))
    layer = layer.reduce(_SUPERSAMPLE)
    small.paste(layer, mask=layer.getchannel("A"))
    noise = rng.standard_normal((image_size, image_size, 3), np.float32) * np.float32(
        rng.uniform(0, 10)
    )
    return (np.asarray(small) + noise).clip(0, 255).astype(np.uint8)


def draw_scene(rng: np.random.Generator, image_size: int) -> tuple[np.ndarray, ShapesScene]:
    """A new scene and its picture, uint8[image_size, image_size, 3]."""
    scene = sample_scene(rng)
    return render(scene, rng, image_size), scene


# --- asking --------------------------------------------------------------------------------------------------------


def _unique(scene: ShapesScene, phrase: str) -> ShapesObject:
    found = scene.find(phrase)
    if len(found) != 1:
        raise ValueError(f"{phrase!r} fits {len(found)} things")
    return found[0]


def _full_name(thing: ShapesObject) -> str:
    return f"{thing.color} {thing.name}"


def _article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _referable(scene: ShapesScene, rng: np.random.Generator) -> dict[str, ShapesObject]:
    """A phrase for every shape that some phrase singles out, in random order."""
    phrases = {}
    for index in rng.permutation(len(scene.shapes)):
        thing = scene.shapes[index]
        tries = [_full_name(thing), f"{thing.size} {_full_name(thing)}"]
        if rng.random() < 0.3:
            tries = [thing.name, f"{thing.color} shape", *tries]
        found = next((phrase for phrase in tries if len(scene.find(phrase)) == 1), None)
        if found:
            phrases[found] = thing
    return phrases


def _any(options: list[dict[str, str]], rng: np.random.Generator) -> dict[str, str] | None:
    return options[rng.integers(len(options))] if options else None


def _rarest(options: Mapping[str, int], rng: np.random.Generator) -> str:
    """A key drawn with odds that favour high counts, which scenes show seldom."""
    odds = np.array(
        [{0: 0.5, 1: 1, 2: 5, 3: 18, 4: 30, 5: 50}[count] for count in options.values()], float
    )
    return str(rng.choice(list(options), p=odds / odds.sum()))


def _propose_thing(scene: ShapesScene, rng: np.random.Generator) -> dict[str, str] | None:
    options = [{"a": phrase} for phrase in _referable(scene, rng)]
    if len(scene.shapes) < len(scene.objects) and rng.random() < 0.15:
        return {"a": TEXT}
    return _any(options, rng)


def _propose_box(scene: ShapesScene, rng: np.random.Generator) -> dict[str, str] | None:
    return _any([{"box": format_loc(thing.box)} for thing in scene.shapes], rng)


def _propose_color_of(scene: ShapesScene, rng: np.random.Generator) -> dict[str, str] | None:
    return _any([{"a": name} for name in SHAPES if len(scene.find(name)) == 1], rng)


def _propose_place_of(scene: ShapesScene, rng: np.random.Generator) -> dict[str, str] | None:
    names = [name for name in SHAPES if len(scene.find(name)) == 1]
    return _any(
        [{"a": name} for name in names if place(np.array(scene.find(name)[0].center))[1]], rng
    )


def _propose_shape_of(scene: ShapesScene, rng: np.random.Generator) -> dict[str, str] | None:
    return _any(
        [{"color": color} for color in COLORS if len(scene.find(f"{color} shape")) == 1], rng
    )


def _propose_color(scene: ShapesScene, rng: np.random.Generator) -> dict[str, str]:
    return {"color": _rarest({color: len(scene.find(f"{color} shape")) for color in COLORS}, rng)}


def _propose_name(scene: ShapesScene, rng: np.random.Generator) -> dict[str, str]:
    return {"plural": SHAPES[_rarest({name: len(scene.find(name)) for name in SHAPES}, rng)]}


def _propose_existence(scene: ShapesScene, rng: np.random.Generator) -> dict[str, str]:
    """Half present; of the absent half share a colour or a shape with something present."""
    thing = scene.shapes[rng.integers(len(scene.shapes))]
    if rng.random() < 0.5:
        return {"a": _article(_full_name(thing))}
    colors, names = ([thing.color], SHAPES) if rng.random() < 0.5 else (COLORS, [thing.name])
    absent = [
        f"{color} {name}" for color in colors for name in names if not scene.find(f"{color} {name}")
    ]
    return {"a": _article(str(rng.choice(absent)))}


def _propose_pair(axis: int) -> Callable[[ShapesScene, np.random.Generator], dict[str, str] | None]:
    def propose(scene: ShapesScene, rng: np.random.Generator) -> dict[str, str] | None:
        things = _referable(scene, rng)
        return _any(
            [
                {"a": a, "b": b}
                for a in things
                for b in things
                if abs(things[a].center[axis] - things[b].center[axis]) > MARGIN
            ],
            rng,
        )

    return propose


def _propose_relation(scene: ShapesScene, rng: np.random.Generator) -> dict[str, str] | None:
    axis = int(rng.integers(2))
    relations = [("above", "below"), ("to the left of", "to the right of")][axis]
    pair = _propose_pair(axis)(scene, rng)
    return pair and {**pair, "relation": str(rng.choice(relations))}


def _compare(scene: ShapesScene, a: str, b: str, axis: int) -> str:
    difference = _unique(scene, a).center[axis] - _unique(scene, b).center[axis]
    if abs(difference) <= MARGIN:
        raise ValueError(f"{a!r} and {b!r} are too close along that axis")
    return (("above", "below"), ("left", "right"))[axis][int(difference > 0)]


def _relation_holds(scene: ShapesScene, a: str, b: str, relation: str) -> str:
    word = relation.removeprefix("to the ").removesuffix(" of")
    return "yes" if _compare(scene, a, b, int(word in ("left", "right"))) == word else "no"


def _caption(scene: ShapesScene) -> str:
    return ", ".join(
        _full_name(thing) for thing in sorted(scene.shapes, key=lambda thing: thing.center[::-1])
    )


def _describe(scene: ShapesScene, a: str) -> str:
    thing = _unique(scene, a)
    where, clear = place(np.array(thing.center))
    if not clear:
        raise ValueError(f"{a!r} lies between two places")
    return f"{_full_name(thing)}, {where}"


def _identify(scene: ShapesScene, box: str) -> str:
    found = [thing for thing in scene.shapes if format_loc(thing.box) == box]
    if len(found) != 1:
        raise ValueError(f"{len(found)} shapes in the box {box}")
    return _full_name(found[0])


def _count_name(scene: ShapesScene, plural: str) -> str:
    return str(len(scene.find(next(name for name, value in SHAPES.items() if value == plural))))


def _no_slots(scene: ShapesScene, rng: np.random.Generator) -> dict[str, str]:
    return {}


def _propose_read(scene: ShapesScene, rng: np.random.Generator) -> dict[str, str] | None:
    return {} if len(scene.shapes) < len(scene.objects) else None


@dataclasses.dataclass(frozen=True)
class ShapesQuestion:
    """A kind of question: how it may be put, what to ask of a scene, and what the scene answers."""

    kind: str
    templates: tuple[str, ...]
    propose: Callable[
        [ShapesScene, np.random.Generator], dict[str, str] | None
    ]  # slots; None: nothing to ask here
    answer: Callable[
        ..., str
    ]  # (scene, **slots); raises ValueError where the question has no one answer

    def parse(self, question: str) -> dict[str, str] | None:
        """The slots of a question, None if it is not one of this question_type's."""
        for pattern in map(_pattern, self.templates):
            if match := pattern.fullmatch(question):
                return match.groupdict()
        return None


_PHRASE = rf"(?:an? )?(?:(?:{'|'.join(SIZES)}) )?(?:(?:{'|'.join(COLORS)}) )?(?:shape|{TEXT}|{'|'.join(SHAPES)})"
_SLOTS = {
    "a": _PHRASE,
    "b": _PHRASE,
    "color": "|".join(COLORS),
    "plural": "|".join(SHAPES.values()),
    "box": r"(?:<loc\d{4}>){4}",
    "relation": "above|below|to the left of|to the right of",
}


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(
        re.sub(
            r"\\{(\w+)\\}", lambda slot: f"(?P<{slot[1]}>{_SLOTS[slot[1]]})", re.escape(template)
        )
    )


SHAPES_QUESTIONS: dict[str, ShapesQuestion] = {
    "caption": ShapesQuestion(
        "caption",
        (
            "describe the image.",
            "what is in the image?",
            "list the shapes from left to right.",
        ),
        _no_slots,
        _caption,
    ),
    "describe": ShapesQuestion(
        "caption",
        (
            "describe the {a}.",
            "what color is the {a}, and where in the image?",
            "name the color and the place of the {a}.",
        ),
        _propose_place_of,
        _describe,
    ),
    "color": ShapesQuestion(
        "caption",
        (
            "what color is the {a}?",
            "which color does the {a} have?",
            "name the color of the {a}.",
        ),
        _propose_color_of,
        lambda scene, a: _unique(scene, a).color,
    ),
    "shape": ShapesQuestion(
        "caption",
        (
            "what is the {color} shape?",
            "which shape is {color}?",
            "name the {color} shape.",
        ),
        _propose_shape_of,
        lambda scene, color: _unique(scene, f"{color} shape").name,
    ),
    "locate_box": ShapesQuestion(
        "locate",
        (
            "locate the {a}.",
            "detect the {a}.",
            "where is the {a}? answer with a box.",
        ),
        _propose_thing,
        lambda scene, a: format_loc(_unique(scene, a).box),
    ),
    "locate_point": ShapesQuestion(
        "locate",
        (
            "point to the {a}.",
            "mark the {a}.",
            "where is the {a}? answer with a point.",
        ),
        _propose_thing,
        lambda scene, a: format_loc(_unique(scene, a).center),
    ),
    "identify": ShapesQuestion(
        "locate",
        (
            "what is in the box {box}?",
            "name the object in the box {box}.",
            "which object is at {box}?",
        ),
        _propose_box,
        _identify,
    ),
    "count_color": ShapesQuestion(
        "count",
        (
            "how many {color} shapes are there?",
            "count the {color} shapes.",
            "how many shapes are {color}?",
        ),
        _propose_color,
        lambda scene, color: str(len(scene.find(f"{color} shape"))),
    ),
    "count_shape": ShapesQuestion(
        "count",
        (
            "how many {plural} are there?",
            "count the {plural}.",
            "how many {plural} do you see?",
        ),
        _propose_name,
        _count_name,
    ),
    "count_all": ShapesQuestion(
        "count",
        (
            "how many shapes are there?",
            "count the shapes.",
            "how many shapes do you see?",
        ),
        _no_slots,
        lambda scene: str(len(scene.shapes)),
    ),
    "exist": ShapesQuestion(
        "count",
        (
            "is {a} in the image?",
            "do you see {a}?",
            "yes or no: the image shows {a}.",
        ),
        _propose_existence,
        lambda scene, a: "yes" if scene.find(a) else "no",
    ),
    "relation_side": ShapesQuestion(
        "relation",
        (
            "is the {a} to the left or to the right of the {b}?",
            "where is the {a} relative to the {b}, left or right?",
            "on which side of the {b} is the {a}, left or right?",
        ),
        _propose_pair(1),
        functools.partial(_compare, axis=1),
    ),
    "relation_height": ShapesQuestion(
        "relation",
        (
            "is the {a} above or below the {b}?",
            "where is the {a} relative to the {b}, above or below?",
            "compare the heights: is the {a} above or below the {b}?",
        ),
        _propose_pair(0),
        functools.partial(_compare, axis=0),
    ),
    "relation_holds": ShapesQuestion(
        "relation",
        (
            "is the {a} {relation} the {b}?",
            "yes or no: the {a} is {relation} the {b}.",
        ),
        _propose_relation,
        _relation_holds,
    ),
    "read_text": ShapesQuestion(
        "read",
        (
            "read the text.",
            "what does the text say?",
            "what is written in the image?",
        ),
        _propose_read,
        lambda scene: next(thing.text.lower() for thing in scene.objects if thing.name == TEXT),
    ),
}
ITEMS = (5, 8)  # least and most items of a scene with enough to ask


def make_items(scene: ShapesScene, rng: np.random.Generator) -> list[Item]:
    """At most eight questions about the scene, each of another question_type and with its one answer."""
    wanted = rng.integers(ITEMS[0], ITEMS[1] + 1)
    # What few scenes allow to ask is asked first, or relations and reading would be rare.
    first = ["read_text", "relation_side", "relation_height"]
    items: list[Item] = []
    for name in [
        *first,
        *(
            question_type
            for question_type in rng.permutation(list(SHAPES_QUESTIONS))
            if question_type not in first
        ),
    ]:
        if (
            SHAPES_QUESTIONS[name].kind == "count"
            and len(scene.shapes) == 1
            and rng.random() < 0.85
        ):
            continue  # or the answer to every count would be one
        slots = SHAPES_QUESTIONS[name].propose(scene, rng)
        if slots is None or len(items) == wanted:
            continue
        question = (
            SHAPES_QUESTIONS[name]
            .templates[rng.integers(len(SHAPES_QUESTIONS[name].templates))]
            .format(**slots)
        )
        items.append(
            Item(
                SHAPES_QUESTIONS[name].kind,
                name,
                question,
                SHAPES_QUESTIONS[name].answer(scene, **slots),
            )
        )
    return items


def check(item: Item, scene: ShapesScene) -> str | None:
    """Why `item` is wrong about the scene, or None. The question is parsed back; what it was made from is not used."""
    question_type = SHAPES_QUESTIONS.get(item.question_type)
    if question_type is None or question_type.kind != item.kind:
        return f"no question_type {item.question_type!r} of kind {item.kind!r}"
    slots = question_type.parse(item.question)
    if slots is None:
        return f"not a question of question_type {item.question_type}: {item.question!r}"
    try:
        expected = question_type.answer(scene, **slots)
    except (ValueError, StopIteration) as error:
        return f"{item.question!r} has no one answer: {error}"
    return (
        None
        if item.answer == expected
        else f"{item.question!r}: {item.answer!r}, the scene says {expected!r}"
    )
