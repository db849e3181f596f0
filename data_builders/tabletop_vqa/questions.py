"""Questions about a picture of objects on a table: names, points, boxes, counts and relations.

All answers follow from the objects' words, boxes and distances from the camera. Questions are
short, because the cost of training is proportional to their tokens. Most end with the words or the
place that they are about: a small model learns to answer such questions sooner. Coordinates are
(y, x) in [0, 1] with the origin at the top left.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from numpy.random import Generator

from etcvla.etc import scene_questions
from etcvla.etc.geometry import iou
from etcvla.etc.items import Item, format_loc, parse_loc
from etcvla.etc.scene import place
from etcvla.etc.scene_questions import (
    Fields,
    SceneQuestion,
    choose_rare,
    no_fields,
    propose_existence,
)
from etcvla.sims.tabletop.words import COLORS, NOUNS

PLURALS = {noun: f"{noun}es" if noun == "cross" else f"{noun}s" for noun in NOUNS}
SIDE_MARGIN = 0.08  # of the image; objects that are nearer are neither left nor right
DEPTH_MARGIN = 0.03  # metres; objects that are nearer are neither in front nor behind
MIN_IOU = 0.9  # of the box in a question with the object's box
FREE_AREA = (0.2, 0.02, 0.98, 0.98)  # ymin, xmin, ymax, xmax of the table in every picture
FREE_MARGIN = 0.03  # of the image; points that are nearer to an object are not free
MAX_FREE_POINTS = 8  # that are tried for a picture
OFF_CENTRE = 0.2  # of the box's sides: largest distance of a point in a question from the centre
# Relation -> whether it compares distances from the camera, and the sign of "a" minus "b".
RELATIONS = {
    "left of": (False, -1),
    "right of": (False, 1),
    "in front of": (True, -1),
    "behind": (True, 1),
}


@dataclasses.dataclass(frozen=True)
class PicturedObject:
    """An object in a picture."""

    noun: str
    color: str
    box: tuple[float, float, float, float]  # ymin, xmin, ymax, xmax of its visible pixels
    distance: float  # metres from the camera along the table

    @property
    def name(self) -> str:
        """Color and noun, such as "red cube"."""
        return f"{self.color} {self.noun}"

    @property
    def center(self) -> np.ndarray:
        """The centre (y, x) of the box."""
        return np.reshape(self.box, (2, 2)).mean(0)

    def contains(self, point: np.ndarray, margin: float = 0.0) -> bool:
        """Return whether an image point (y, x) is in the box or nearer to it than `margin`."""
        low, high = np.reshape(self.box, (2, 2))
        return bool(((low - margin <= point) & (point <= high + margin)).all())


@dataclasses.dataclass(frozen=True)
class PicturedScene:
    """The objects of a picture. No two have the same name."""

    objects: tuple[PicturedObject, ...]

    def find(self, phrase: str) -> list[PicturedObject]:
        """Return the objects that match a phrase: "red cube", "cube" or "red object"."""
        *colors, noun = phrase.split()
        return [
            obj
            for obj in self.objects
            if noun in ("object", obj.noun) and set(colors) <= {obj.color}
        ]

    def find_one(self, phrase: str) -> PicturedObject:
        """Return the object that matches a phrase. Raises ValueError if not exactly one does."""
        return _only(self.find(phrase))

    def at_point(self, text: str) -> PicturedObject:
        """Return the object whose box alone contains a point that is written as location tokens.

        Raises ValueError if not exactly one does.
        """
        [point] = parse_loc(text, 2)
        return _only([obj for obj in self.objects if obj.contains(point)])

    def in_box(self, text: str) -> PicturedObject:
        """Return the object in a box that is written as location tokens.

        Raises ValueError if there is not exactly one.
        """
        [box] = parse_loc(text, 4)
        return _only([obj for obj in self.objects if iou(np.array(obj.box), box) > MIN_IOU])


def _only(matches: list[PicturedObject]) -> PicturedObject:
    if len(matches) != 1:
        raise ValueError(f"{len(matches)} objects match")
    return matches[0]


# --- proposing questions -------------------------------------------------------------------------
#
# These functions return possible fields; those without a unique answer are left out later.


def _names(scene: PicturedScene, rng: Generator) -> list[Fields]:
    return [{"a": obj.name} for obj in scene.objects]


def _points(scene: PicturedScene, rng: Generator) -> list[Fields]:
    fields = []
    for obj in scene.objects:
        low, high = np.reshape(obj.box, (2, 2))
        point = obj.center + rng.uniform(-OFF_CENTRE, OFF_CENTRE, 2) * (high - low)
        fields.append({"point": format_loc(point)})
    return fields


def _free_points(scene: PicturedScene, rng: Generator) -> list[Fields]:
    """Propose random points of the table; those on an object have no answer."""
    points = rng.uniform(FREE_AREA[:2], FREE_AREA[2:], (MAX_FREE_POINTS, 2))
    return [{"point": format_loc(point)} for point in points]


def _boxes(scene: PicturedScene, rng: Generator) -> list[Fields]:
    return [{"box": format_loc(obj.box)} for obj in scene.objects]


def _nouns(scene: PicturedScene, rng: Generator) -> list[Fields]:
    return [{"noun": obj.noun} for obj in scene.objects]


def _colors(scene: PicturedScene, rng: Generator) -> list[Fields]:
    return [{"color": obj.color} for obj in scene.objects]


def _counted_color(scene: PicturedScene, rng: Generator) -> list[Fields]:
    counts = {color: len(scene.find(f"{color} object")) for color in COLORS}
    return [{"color": choose_rare(counts, rng)}]


def _counted_noun(scene: PicturedScene, rng: Generator) -> list[Fields]:
    counts = {plural: len(scene.find(noun)) for noun, plural in PLURALS.items()}
    return [{"plural": choose_rare(counts, rng)}]


def _existence(scene: PicturedScene, rng: Generator) -> list[Fields]:
    obj = scene.objects[rng.integers(len(scene.objects))]
    return propose_existence(obj.name, NOUNS, COLORS, scene.find, rng)


def _pairs(scene: PicturedScene, rng: Generator) -> list[Fields]:
    pairs = itertools.permutations(scene.objects, 2)
    return [{"a": first.name, "b": second.name} for first, second in pairs]


def _related_pairs(scene: PicturedScene, rng: Generator) -> list[Fields]:
    relations = list(RELATIONS)
    return [
        pair | {"relation": relations[rng.integers(len(relations))]} for pair in _pairs(scene, rng)
    ]


def _relations(scene: PicturedScene, rng: Generator) -> list[Fields]:
    return [{"relation": relation.removesuffix(" of")} for relation in ("left of", "right of")]


# --- answering questions -------------------------------------------------------------------------
#
# An answer raises ValueError if the question has no unique answer.


def _surface(scene: PicturedScene, point: str) -> str:
    [coordinates] = parse_loc(point, 2)
    if any(obj.contains(coordinates, FREE_MARGIN) for obj in scene.objects):
        raise ValueError("an object is there")
    return "table"


def _exists(scene: PicturedScene, a: str) -> str:
    _, name = a.split(" ", 1)
    return "yes" if scene.find(name) else "no"


def _count_plural(scene: PicturedScene, plural: str) -> str:
    nouns = {value: noun for noun, value in PLURALS.items()}
    return str(len(scene.find(nouns[plural])))


def _compare(scene: PicturedScene, a: str, b: str, is_depth: bool) -> int:
    """Return the sign of a's coordinate minus b's: x in the image, or the distance."""
    first = scene.find_one(a)
    second = scene.find_one(b)
    if is_depth:
        margin = DEPTH_MARGIN
        difference = first.distance - second.distance
    else:
        margin = SIDE_MARGIN
        difference = first.center[1] - second.center[1]
    if abs(difference) <= margin:
        raise ValueError(f"{a!r} and {b!r} are too close along that axis")
    return int(np.sign(difference))


def _side(scene: PicturedScene, a: str, b: str) -> str:
    return "right" if _compare(scene, a, b, is_depth=False) > 0 else "left"


def _front(scene: PicturedScene, a: str, b: str) -> str:
    return "behind" if _compare(scene, a, b, is_depth=True) > 0 else "front"


def _holds(scene: PicturedScene, a: str, b: str, relation: str) -> str:
    is_depth, sign = RELATIONS[relation]
    return "yes" if _compare(scene, a, b, is_depth) == sign else "no"


def _outermost(scene: PicturedScene, relation: str) -> str:
    """Return the object that is farthest to the left or to the right."""
    from_left = sorted(scene.objects, key=lambda obj: obj.center[1])
    if relation == "right":
        from_left.reverse()
    first, second, *_ = from_left
    _compare(scene, first.name, second.name, is_depth=False)  # raises if they are too close
    return first.name


def _caption(scene: PicturedScene) -> str:
    from_left = sorted(scene.objects, key=lambda obj: obj.center[1])
    return ", ".join(obj.name for obj in from_left)


def _place(scene: PicturedScene, a: str) -> str:
    where, is_clear = place(scene.find_one(a).center)
    if not is_clear:
        raise ValueError(f"{a!r} is between two places")
    return where


_COLOR = "|".join(COLORS)
_NOUN = "|".join(NOUNS)
_NAME = rf"(?:an? )?(?:{_COLOR}) (?:{_NOUN})"


class TableQuestion(SceneQuestion):
    """A question type about a `PicturedScene`."""

    field_patterns = {
        "a": _NAME,
        "b": _NAME,
        "noun": _NOUN,
        "color": _COLOR,
        "plural": "|".join(PLURALS.values()),
        "point": r"(?:<loc\d{4}>){2}",
        "box": r"(?:<loc\d{4}>){4}",
        "relation": "|".join([*RELATIONS, "left", "right"]),
    }


WHAT_IS_AT = ("what is at {point}", "name {point}", "object {point}")
TABLE_QUESTIONS: dict[str, TableQuestion] = {
    "identify_point": TableQuestion(
        "name",
        WHAT_IS_AT,
        _points,
        lambda scene, point: scene.at_point(point).name,
    ),
    "surface": TableQuestion(
        "name",
        WHAT_IS_AT,
        _free_points,
        _surface,
    ),
    "identify": TableQuestion(
        "name",
        (
            "what is in the box {box}?",
            "name the object in the box {box}.",
            "which object is at {box}?",
        ),
        _boxes,
        lambda scene, box: scene.in_box(box).name,
    ),
    "locate_point": TableQuestion(
        "point",
        ("point to the {a}", "mark {a}", "point {a}"),
        _names,
        lambda scene, a: format_loc(scene.find_one(a).center),
    ),
    "locate_box": TableQuestion(
        "box",
        ("locate the {a}", "detect {a}", "box {a}"),
        _names,
        lambda scene, a: format_loc(scene.find_one(a).box),
    ),
    "color": TableQuestion(
        "attribute",
        ("color of the {noun}", "color {noun}"),
        _nouns,
        lambda scene, noun: scene.find_one(noun).color,
    ),
    "color_at": TableQuestion(
        "attribute",
        ("color {point}", "color at {point}"),
        _points,
        lambda scene, point: scene.at_point(point).color,
    ),
    "shape": TableQuestion(
        "attribute",
        ("what shape is {color}", "shape {color}"),
        _colors,
        lambda scene, color: scene.find_one(f"{color} object").noun,
    ),
    "shape_at": TableQuestion(
        "attribute",
        ("shape {point}", "shape at {point}"),
        _points,
        lambda scene, point: scene.at_point(point).noun,
    ),
    "count_color": TableQuestion(
        "count",
        ("how many are {color}", "count what is {color}"),
        _counted_color,
        lambda scene, color: str(len(scene.find(f"{color} object"))),
    ),
    "count_shape": TableQuestion(
        "count",
        ("how many {plural}", "count the {plural}"),
        _counted_noun,
        _count_plural,
    ),
    "count_all": TableQuestion(
        "count",
        ("how many objects?", "count the objects.", "how many objects do you see?"),
        no_fields,
        lambda scene: str(len(scene.objects)),
    ),
    "exist": TableQuestion(
        "count",
        ("is there {a}", "do you see {a}"),
        _existence,
        _exists,
    ),
    "relation_side": TableQuestion(
        "relation",
        (
            "is the {a} left or right of the {b}?",
            "where is the {a} relative to the {b}, left or right?",
        ),
        _pairs,
        _side,
    ),
    "relation_front": TableQuestion(
        "relation",
        (
            "is the {a} in front of or behind the {b}?",
            "where is the {a} relative to the {b}, front or behind?",
        ),
        _pairs,
        _front,
    ),
    "relation_holds": TableQuestion(
        "relation",
        ("is the {a} {relation} the {b}?", "yes or no: the {a} is {relation} the {b}."),
        _related_pairs,
        _holds,
    ),
    "outermost": TableQuestion(
        "relation",
        ("what is farthest {relation}?", "name the object farthest {relation}."),
        _relations,
        _outermost,
    ),
    "caption": TableQuestion(
        "caption",
        ("describe the image.", "what is in the image?", "list the objects from left to right."),
        no_fields,
        _caption,
    ),
    "place": TableQuestion(
        "caption",
        ("where is the {a}?", "in which part of the image is the {a}?"),
        _names,
        _place,
    ),
}

# Question types of a picture with the number of items. One type of each group is drawn.
ITEMS_PER_PICTURE: tuple[tuple[int, tuple[str, ...]], ...] = (
    (5, ("identify_point",)),
    (3, ("surface",)),
    (1, ("identify",)),
    (4, ("locate_point",)),
    (3, ("locate_box",)),
    (3, ("color_at",)),
    (3, ("shape_at",)),
    (1, ("color", "shape")),
    (1, ("count_color", "count_shape", "count_all")),
    (1, ("exist",)),
    (1, ("relation_side", "relation_front", "relation_holds", "outermost")),
    (1, ("caption", "place")),
)


def make_items(scene: PicturedScene, rng: Generator) -> list[Item]:
    """Make up to 27 items about a scene.

    Questions without a unique answer are left out, so some scenes have fewer.
    """
    items: list[Item] = []
    for count, names in ITEMS_PER_PICTURE:
        name = names[rng.integers(len(names))]
        question_type = TABLE_QUESTIONS[name]
        options = question_type.propose(scene, rng)
        answered = 0
        for index in rng.permutation(len(options)):
            if answered == count:
                break
            try:
                answer = question_type.answer(scene, **options[index])
            except ValueError:
                continue
            items.append(question_type.write(name, options[index], answer, rng))
            answered += 1
    return items


def check(item: Item, scene: PicturedScene) -> str | None:
    """Return the reason why `item` is wrong about the scene, None if it is correct."""
    return scene_questions.check(item, scene, TABLE_QUESTIONS)
