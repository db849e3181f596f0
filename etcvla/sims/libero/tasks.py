"""LIBERO's problems in our words: what is in the scene and how it is called, what to do, in which order."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from etcvla.sims.task import ObjectSpec, Phase, Task

# LIBERO's own. LIBERO-PRO's perturbed ones keep the files' names whatever their problems say.
SUITES = ("libero_object", "libero_spatial", "libero_goal", "libero_10", "libero_90")
CAMERAS = ("front", "wrist")
AXES = ("front", "left", "up")  # where x, y, z of the base frame point for the robot
STATE_DOC = (
    "End effector x, y, z in metres, LIBERO's world frame; its orientation, axis times angle in radians; "
    "positions of the two fingers in metres, 0 .. 0.04 and 0 .. -0.04."
)
ACTION_DOC = (
    "End effector displacement x, y, z in [-1, 1] of 5 cm a step, rotation about x, y, z in [-1, 1] of "
    "0.5 rad a step, world axes; gripper -1 open, 1 close."
)
STATE_SIZE, ACTION_SIZE = 8, 7
# How an image is turned before it is shown. LIBERO's own frames stand upside down; the public RLDS sets rotate them by
# half a turn, which leaves them upright with left and right exchanged. Facts follow the image.
SCENES = {"rlds": True, "upright": False}  # name -> mirrored

# LIBERO's categories that are not their own name with spaces.
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
# Colour words that fit the render and are not in the name; what is printed in several colours or speckled has none.
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
# Shape words, where they are beyond dispute.
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
# Names of what other scenes of the suites hold, to be asked for in vain.
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
# What stands on which place, as the instructions of libero_spatial say it; keys end a region's or object's name.
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
NUM_OBJECTS = 10  # slots of the dataset; the suites object, spatial and goal have at most 9
_SURFACES = frozenset(
    {"table", "floor", "kitchen_table", "study_table", "living_room_table", "coffee_table"}
)
_CENTRE = (0.0, 0.0, 0.0)
# Steps of picking one thing up and putting it down; `libero_oracle.PickPlace` tells which is in progress.
PICK_PLACE = (
    "move to the {target}",
    "grasp the {target}",
    "carry the {target} to the {goal}",
    "place the {target} {verb} the {goal}",
)


def noun(category: str) -> str:
    """What a category is called."""
    return NOUNS.get(category, category.replace("_", " "))


def noun_of(spec: ObjectSpec) -> str:
    """The noun of an object of `describe`, whatever it is named to be told from its twin."""
    return noun(category_of(spec))


def category_of(spec: ObjectSpec) -> str:
    """LIBERO's category of an object of `describe`."""
    return re.sub(r"(_\d+)?_main$", "", spec.body)


def describe(problem: Mapping, file_words: str = "") -> Task:
    """A task of LIBERO from its parsed problem file.

    Objects are everything that stands on the table or floor. Phases are known where the goal is one thing on or in
    another one; elsewhere there are none. Twins are told apart by the place where they stand at the start.

    Args:
      problem: as LIBERO's `robosuite_parse_problem` returns it: "objects" and "fixtures" {category: [instance]},
        "initial_state" and "goal_state" [[predicate, name, ...]], "obj_of_interest", "language_instruction" (words).
      file_words: the instruction that the file's name spells, as the public data sets have it; a paraphrase.
    """
    instances = {
        name: category
        for group in ("objects", "fixtures")
        for category, names in problem[group].items()
        for name in names
        if category not in _SURFACES
    }
    names = _names(instances, problem["initial_state"])
    target, goal, verb = goal_of(problem["goal_state"], instances)
    target = target or next(
        (name for name in problem["obj_of_interest"] if name in instances), next(iter(instances))
    )
    words = {
        "target": noun(instances[target]),
        "goal": noun(instances[goal]) if goal else "",
        "verb": verb,
    }
    language = problem["language_instruction"]
    language = language if isinstance(language, str) else " ".join(language)
    return Task(
        objects=tuple(
            ObjectSpec(
                names[name], COLORS.get(category, ""), f"{name}_main", subtree=True, touch=_CENTRE
            )
            for name, category in instances.items()
        ),
        target=names[target],
        phases=tuple(Phase(text.format(**words)) for text in PICK_PLACE) if goal else (),
        instructions=tuple(dict.fromkeys(filter(None, (_clean(language), _clean(file_words))))),
    )


def goal_of(goal_state: Sequence[Sequence[str]], instances: Iterable[str]) -> tuple[str, str, str]:
    """(thing, what it goes on or in, "on" or "in") of a goal that is one such relation, else three empty strings."""
    if (
        len(goal_state) != 1
        or len(goal_state[0]) != 3
        or goal_state[0][0].lower() not in ("on", "in")
    ):
        return "", "", ""
    predicate, thing, place = goal_state[0]
    owner = next((name for name in instances if place == name or place.startswith(f"{name}_")), "")
    return (thing, owner, predicate.lower()) if owner and thing in instances else ("", "", "")


def _names(instances: Mapping[str, str], initial_state: Sequence[Sequence[str]]) -> dict[str, str]:
    """A name for each instance: the noun, for twins with their place, for twins without known place with a number."""
    where = {fact[1]: fact[2] for fact in initial_state if len(fact) == 3}
    nouns = [noun(category) for category in instances.values()]
    names = {}
    for name, category in instances.items():
        word = noun(category)
        if nouns.count(word) > 1:
            place = next(
                (text for key, text in PLACES.items() if where.get(name, "").endswith(key)), ""
            )
            word = f"{word} {place}" if place else f"{word} {name.rsplit('_', 1)[-1]}"
        names[name] = word
    return names


def _clean(text: str) -> str:
    """Lower case, one space between words: instructions as prompts have them."""
    return re.sub(r"[\s_]+", " ", text).strip().lower()


def file_instruction(name: str) -> str:
    """The instruction in a task's file name: scenes of LIBERO-90 and -10 stand before it in capitals."""
    return _clean(re.sub(r"^[A-Z_]+SCENE\d+_", "", name))
