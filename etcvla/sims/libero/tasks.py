"""LIBERO's tasks: names, colors and shapes of objects, instructions and subtasks."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etcvla.sims.task import ObjectSpec, Phase, Task

# LIBERO's own suites. In LIBERO-PRO's perturbed suites, a file's name may differ from the
# instruction inside.
SUITES = ("libero_object", "libero_spatial", "libero_goal", "libero_10", "libero_90")
CAMERAS = ("front", "wrist")
AXES = ("front", "left", "up")  # where x, y, z of the base frame point for the robot
STATE_DOC = (
    "End effector x, y, z in metres, LIBERO's world frame; its orientation, axis times angle in "
    "radians; positions of the two fingers in metres, 0 .. 0.04 and 0 .. -0.04."
)
ACTION_DOC = (
    "End effector displacement x, y, z in [-1, 1] of 5 cm a step, rotation about x, y, z in "
    "[-1, 1] of 0.5 rad a step, world axes; gripper -1 open, 1 close."
)
STATE_SIZE = 8
ACTION_SIZE = 7
# Scene variant -> whether images are mirrored. LIBERO's own images are upside down. The public RLDS
# datasets rotate them by 180 degrees, which leaves left and right exchanged. Facts are mirrored
# with the image.
SCENES = {"rlds": True, "upright": False}

# Category -> noun, for categories whose noun is not the category itself with spaces.
NOUNS = {
    "akita_black_bowl": "black bowl",
    "glazed_rim_porcelain_ramekin": "ramekin",
    "cookies": "cookie box",
    "flat_stove": "stove",
    "chefmate_8_frypan": "frying pan",
    "porcelain_mug": "white mug",
    "white_yellow_mug": "yellow and white mug",
    "desk_caddy": "caddy",
    "new_salad_dressing": "salad dressing",
    "wooden_two_layer_shelf": "shelf",
}
# Category -> color word that fits the rendered object and is not in its name. Multicolored objects
# have none.
COLORS = {
    "alphabet_soup": "blue",
    "chocolate_pudding": "brown",
    "ketchup": "red",
    "orange_juice": "yellow",
    "flat_stove": "gray",
    "glazed_rim_porcelain_ramekin": "gray",
    "plate": "white",
    "wine_rack": "brown",
    "wooden_cabinet": "black",
}
# Category -> shape word, where it is unambiguous.
SHAPES = {
    "alphabet_soup": "cylinder",
    "tomato_sauce": "cylinder",
    "glazed_rim_porcelain_ramekin": "cylinder",
    "butter": "box",
    "chocolate_pudding": "box",
    "cookies": "box",
    "cream_cheese": "box",
    "orange_juice": "box",
    "wooden_cabinet": "box",
    "bbq_sauce": "bottle",
    "ketchup": "bottle",
    "salad_dressing": "bottle",
    "plate": "disk",
}
# Nouns of objects in other scenes, for questions about absent objects.
ABSENT = (
    "alphabet soup",
    "basket",
    "bbq sauce",
    "black bowl",
    "butter",
    "chocolate pudding",
    "cookie box",
    "cream cheese",
    "ketchup",
    "milk",
    "orange juice",
    "plate",
    "ramekin",
    "salad dressing",
    "stove",
    "tomato sauce",
    "wine bottle",
    "wine rack",
    "wooden cabinet",
)
# Suffix of a region's or object's name -> the place, as the instructions of libero_spatial express
# it.
PLACES = {
    "between_plate_ramekin_region": "between the plate and the ramekin",
    "next_to_ramekin_region": "next to the ramekin",
    "next_to_box_region": "next to the cookie box",
    "next_to_plate_region": "next to the plate",
    "table_center": "in the center",
    "cookies_1": "on the cookie box",
    "glazed_rim_porcelain_ramekin_1": "on the ramekin",
    "wooden_cabinet_1_top_region": "in the top drawer",
    "wooden_cabinet_1_top_side": "on the wooden cabinet",
    "flat_stove_1_cook_region": "on the stove",
}
# Object slots of a dataset. The suites object, spatial and goal have at most 9 objects.
NUM_OBJECTS = 10
_SURFACES = frozenset(
    {"table", "floor", "kitchen_table", "study_table", "living_room_table", "coffee_table"}
)
_CENTRE = (0.0, 0.0, 0.0)
# Subtasks of pick-and-place. `oracle.PickPlaceTracker` computes which one is in progress.
PICK_PLACE = (
    "move to the {target}",
    "grasp the {target}",
    "carry the {target} to the {goal}",
    "place the {target} {verb} the {goal}",
)


def noun(category: str) -> str:
    """Return the noun of a LIBERO category."""
    return NOUNS.get(category, category.replace("_", " "))


def noun_of(spec: ObjectSpec) -> str:
    """Return the noun of an object of `make_task`, without its place or number."""
    return noun(category_of(spec))


def category_of(spec: ObjectSpec) -> str:
    """Return LIBERO's category of an object of `make_task`."""
    return re.sub(r"(_\d+)?_main$", "", spec.body)


def make_task(problem: Mapping[str, Any], language: str, file_instruction: str = "") -> Task:
    """Return the task of a parsed problem file.

    The objects are all objects on the table or floor. Objects of the same category are
    distinguished by their initial place. The phases are known only where the goal is one object on
    or in another one.

    Args:
      problem: as LIBERO's `robosuite_parse_problem` returns it: "objects" and "fixtures" {category:
        [instance]}, "initial_state" and "goal_state" [[predicate, name, ...]], "obj_of_interest".
      language: LIBERO's instruction.
      file_instruction: the instruction in the file's name, which the public datasets use; a
        paraphrase.
    """
    categories = _categories(problem)
    names = _names(categories, problem["initial_state"])
    goal = PickPlaceGoal.of(problem["goal_state"], categories)
    objects = []
    for instance, category in categories.items():
        color = COLORS.get(category, "")
        body = f"{instance}_main"
        objects.append(ObjectSpec(names[instance], color, body, subtree=True, touch=_CENTRE))
    phases = []
    if goal:
        target = goal.target
        words = {
            "target": noun(categories[target]),
            "goal": noun(categories[goal.place]),
            "verb": goal.relation,
        }
        phases = [Phase(text.format(**words)) for text in PICK_PLACE]
    else:
        candidates = [name for name in problem["obj_of_interest"] if name in categories]
        target = (candidates or list(categories))[0]
    instructions = [_normalize(language), _normalize(file_instruction)]
    return Task(
        objects=tuple(objects),
        target=names[target],
        phases=tuple(phases),
        instructions=tuple(dict.fromkeys(text for text in instructions if text)),
    )


def _categories(problem: Mapping[str, Any]) -> dict[str, str]:
    """Return instance -> category of every object and fixture that is not a table or floor."""
    categories = {}
    for group in ("objects", "fixtures"):
        for category, instances in problem[group].items():
            if category not in _SURFACES:
                categories |= dict.fromkeys(instances, category)
    return categories


@dataclasses.dataclass(frozen=True)
class PickPlaceGoal:
    """A goal of one relation: `target` is on or in `place`."""

    target: str  # instance
    place: str  # instance
    relation: str  # "on" or "in"

    @classmethod
    def of(
        cls, goal_state: Sequence[Sequence[str]], instances: Iterable[str]
    ) -> PickPlaceGoal | None:
        """Return the goal of a problem's "goal_state"; None for any other kind of goal."""
        if len(goal_state) != 1 or len(goal_state[0]) != 3:
            return None
        predicate, target, region = goal_state[0]
        relation = predicate.lower()
        place = instance_of(region, instances)
        if relation not in ("on", "in") or target not in instances or not place:
            return None
        return cls(target, place, relation)


def instance_of(name: str, instances: Iterable[str]) -> str | None:
    """Return the first instance that a goal names by itself or by one of its regions."""
    matches = [each for each in instances if name == each or name.startswith(f"{each}_")]
    return matches[0] if matches else None


def _names(categories: Mapping[str, str], initial_state: Sequence[Sequence[str]]) -> dict[str, str]:
    """Return instance -> name: the noun, with the place or a number if it is not unique."""
    regions = {fact[1]: fact[2] for fact in initial_state if len(fact) == 3}
    nouns = [noun(category) for category in categories.values()]
    names = {}
    for instance, category in categories.items():
        name = noun(category)
        if nouns.count(name) > 1:
            region = regions.get(instance, "")
            places = [place for suffix, place in PLACES.items() if region.endswith(suffix)]
            number = instance.rpartition("_")[2]
            name = f"{name} {places[0] if places else number}"
        names[instance] = name
    return names


def _normalize(text: str) -> str:
    """Return an instruction in lower case with one space between words."""
    return re.sub(r"[\s_]+", " ", text).strip().lower()


def file_instruction(name: str) -> str:
    """Return the instruction in a task's file name, without its scene (LIBERO-90 and -10)."""
    return _normalize(re.sub(r"^[A-Z_]+SCENE\d+_", "", name))
