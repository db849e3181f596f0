"""The registry of question types: their kind, the type of their answer, and their templates.

The name of a question type is a stable id that is stored in datasets, scores and reports.
`format_question` writes a question and `parse_question` recovers the fields from its text, so
that an item can be verified from its text alone.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping

from etcvla.names import lookup

# Types of answers.
WORDS = "words"
POINT = "point"
BOX = "box"
PATH = "path"
MAX_KEYPOINTS = 5  # of a path


@dataclasses.dataclass(frozen=True)
class QuestionType:
    """A sub-question inside a kind."""

    kind: str  # one of `items.GRADES`
    answer_type: str  # WORDS, POINT, BOX or PATH
    templates: tuple[str, ...]  # paraphrases of the question, with {fields}
    weight: float = 1.0  # relative frequency among the question types of the same kind
    # True if the instruction alone determines the answer. Such answers cannot be balanced.
    answer_in_instruction: bool = False


_IMAGE_SIDE = (
    "in the image, is the {a} to the left or to the right of the {b}?",
    "in the image, where is the {a} relative to the {b}, left or right?",
    "on which side of the {b} does the image show the {a}, left or right?",
)
_HEIGHT = (
    "in the robot frame, is the {a} above or below the {b}?",
    "for the robot, is the {a} higher than the {b} (above) or lower (below)?",
    "compare the heights in the robot frame: is the {a} above or below the {b}?",
)
_DEPTH = (
    "is the {a} nearer to the camera than the {b}, or farther?",
    "from the camera, is the {a} nearer or farther than the {b}?",
    "compared with the {b}, is the {a} nearer to the camera or farther?",
)
_ROBOT_SIDE = (
    "in the robot frame, is the {a} to the left or to the right of the {b}?",
    "seen from the robot, where is the {a} relative to the {b}, left or right?",
    "on which side of the {b} is the {a} for the robot, left or right?",
)
_ROBOT_FRONT = (
    "in the robot frame, is the {a} in front of or behind the {b}?",
    "seen from the robot, is the {a} behind the {b} or in front of it?",
    "along the robot frame, where is the {a} relative to the {b}, front or behind?",
)

QUESTION_TYPES: dict[str, QuestionType] = {
    "gripper_side": QuestionType("spatial_understanding", WORDS, _IMAGE_SIDE),
    "gripper_height": QuestionType("spatial_understanding", WORDS, _HEIGHT),
    "gripper_depth": QuestionType("spatial_understanding", WORDS, _DEPTH),
    "gripper_robot_side": QuestionType("spatial_understanding", WORDS, _ROBOT_SIDE, weight=0.5),
    "gripper_robot_front": QuestionType("spatial_understanding", WORDS, _ROBOT_FRONT, weight=0.5),
    "gripper_point": QuestionType(
        "spatial_understanding",
        POINT,
        (
            "point to the gripper.",
            "mark the gripper.",
            "where is the gripper? answer with a point.",
        ),
        weight=2.0,
    ),
    "object_side": QuestionType("spatial_understanding", WORDS, _IMAGE_SIDE, weight=0.5),
    "object_height": QuestionType("spatial_understanding", WORDS, _HEIGHT, weight=0.25),
    "object_depth": QuestionType("spatial_understanding", WORDS, _DEPTH, weight=0.25),
    "object_robot_side": QuestionType("spatial_understanding", WORDS, _ROBOT_SIDE, weight=0.25),
    "object_robot_front": QuestionType("spatial_understanding", WORDS, _ROBOT_FRONT, weight=0.25),
    # Questions about two views. Boxes refer to the first camera; places in the other view are
    # words.
    "cross_seen": QuestionType(
        "spatial_understanding",
        WORDS,
        (
            "is the object at {box} in the {view} view too?",
            "does the {view} view show the object at {box}?",
            "yes or no: what is at {box} can be seen in the {view} view.",
        ),
        weight=0.5,
    ),
    "cross_place": QuestionType(
        "spatial_understanding",
        WORDS,
        (
            "where in the {view} view is the object at {box}?",
            "the object at {box}: in which part of the {view} view is it?",
            "find the object at {box} in the {view} view. where is it there?",
        ),
        weight=0.5,
    ),
    "cross_box": QuestionType(
        "spatial_understanding",
        BOX,
        (
            "locate the object that is at the {place} of the {view} view.",
            "the {view} view shows an object at its {place}. detect it here.",
            "which box is at the {place} of the {view} view?",
        ),
        weight=0.25,
    ),
    "identify": QuestionType(
        "goal_description",
        WORDS,
        (
            "what is in the box {box}?",
            "name the object in the box {box}.",
            "which object is at {box}?",
        ),
    ),
    "locate_box": QuestionType(
        "goal_description",
        BOX,
        (
            "locate the {object}.",
            "detect the {object}.",
            "where is the {object}? answer with a box.",
        ),
    ),
    "describe": QuestionType(
        "goal_description",
        WORDS,
        (
            "describe the {object}.",
            "what color is the {object}, and where in the image?",
            "name the color and the place of the {object}.",
        ),
    ),
    "describe_shape": QuestionType(
        "goal_description",
        WORDS,
        (
            "describe the {object} by color, shape and place.",
            "what color and shape is the {object}, and where in the image?",
            "name the color, the shape and the place of the {object}.",
        ),
        weight=0.5,
    ),
    "count": QuestionType(
        "goal_description",
        WORDS,
        (
            "how many of these are in the image: {objects}?",
            "count what you see of these: {objects}.",
            "of {objects}, how many does the image show?",
        ),
        weight=0.5,
    ),
    "present": QuestionType(
        "goal_description",
        WORDS,
        (
            "is the {object} in the image?",
            "do you see the {object}?",
            "yes or no: the image shows the {object}.",
        ),
    ),
    "grasp_point": QuestionType(
        "affordance",
        POINT,
        (
            "the robot should {instruction}. where should it hold the {object}?",
            "to {instruction}, at which point should the gripper touch the {object}?",
            "task: {instruction}. point to where to grasp the {object}.",
        ),
    ),
    "stable_grasp": QuestionType(
        "affordance",
        WORDS,
        (
            "the robot should {instruction}. is {box} a good region to grasp the {object}?",
            "to {instruction}, should the gripper hold the {object} at {box}?",
            "task: {instruction}. is {box} the right part of the {object} to touch?",
        ),
    ),
    "place_point": QuestionType(
        "affordance",
        POINT,
        (
            "the robot should {instruction}. where should the {object} end up?",
            "to {instruction}, to which point should the {object} be moved?",
            "task: {instruction}. point to where the {object} should go.",
        ),
        weight=0.5,
    ),
    "stable_place": QuestionType(
        "affordance",
        WORDS,
        (
            "the robot should {instruction}. should the {object} end up at {box}?",
            "to {instruction}, is {box} the right region to bring the {object} to?",
            "task: {instruction}. is {box} where the {object} should go?",
        ),
        weight=0.5,
    ),
    "decompose": QuestionType(
        "task_planning",
        WORDS,
        (
            "the robot should {instruction}. what are the steps?",
            "task: {instruction}. list the steps in order.",
            "which steps does it take to {instruction}?",
        ),
        weight=0.2,
        answer_in_instruction=True,
    ),
    "current": QuestionType(
        "task_planning",
        WORDS,
        (
            "the robot should {instruction}. what should it do now?",
            "task: {instruction}. which step is in progress?",
            "to {instruction}, which step is the robot at?",
        ),
    ),
    "next": QuestionType(
        "task_planning",
        WORDS,
        (
            "the robot should {instruction}. what comes after the current step?",
            "task: {instruction}. which step is next?",
            "to {instruction}, what will the robot do next?",
        ),
    ),
    "done": QuestionType(
        "task_planning",
        WORDS,
        (
            "the robot should {instruction}. is it done?",
            "task: {instruction}. is it complete?",
            "to {instruction}, is nothing left to do?",
        ),
    ),
    "outcome": QuestionType(
        "task_planning",
        WORDS,
        (
            "the robot was told to {instruction} and stops here. success or failure?",
            "task: {instruction}. the robot stops now: is it a success or a failure?",
            "judge the outcome, success or failure, if this is the end: {instruction}.",
        ),
    ),
    "path_subtask": QuestionType(
        "trajectory",
        PATH,
        (
            "the robot should {instruction}. now: {phase}. trace the path of the gripper.",
            "to {instruction}, the robot must now {phase}. where will the gripper move?",
            "task: {instruction}. step: {phase}. draw the path of the gripper.",
        ),
    ),
    "path_task": QuestionType(
        "trajectory",
        PATH,
        (
            "the robot should {instruction}. trace the path of the gripper to the end.",
            "to {instruction}, where will the gripper move?",
            "task: {instruction}. draw the whole path of the gripper.",
        ),
    ),
}

# Question types of general image-text datasets. Their builders write the questions; scoring needs
# only the type of the answer.
GENERAL_QUESTION_TYPES: dict[str, str] = {
    "caption": WORDS,
    "color": WORDS,
    "color_at": WORDS,
    "shape": WORDS,
    "shape_at": WORDS,
    "locate_box": BOX,
    "locate_point": POINT,
    "identify": WORDS,
    "identify_point": WORDS,
    "surface": WORDS,
    "count_color": WORDS,
    "count_shape": WORDS,
    "count_all": WORDS,
    "exist": WORDS,
    "relation_side": WORDS,
    "relation_height": WORDS,
    "relation_front": WORDS,
    "relation_holds": WORDS,
    "outermost": WORDS,
    "read_text": WORDS,
    "describe": WORDS,
    "place": WORDS,
    "vqa": WORDS,
    "trace": PATH,  # only in public datasets
}
# Question type -> answer type, of both tables.
ANSWER_TYPES = {name: spec.answer_type for name, spec in QUESTION_TYPES.items()}
ANSWER_TYPES |= GENERAL_QUESTION_TYPES


def answer_type(question_type: str) -> str:
    """Return `WORDS`, `POINT`, `BOX` or `PATH`.

    Raises ValueError if the question type is not registered.
    """
    return lookup(ANSWER_TYPES, question_type, "question_type")


def clean_instruction(instruction: str) -> str:
    """Return an instruction as it is written in a question: lower-case first letter, no full stop.

    >>> clean_instruction("Open the drawer.")
    'open the drawer'
    """
    instruction = instruction.strip().rstrip(".!")
    return instruction[:1].lower() + instruction[1:]


def format_question(question_type: str, paraphrase: float, fields: Mapping[str, str]) -> str:
    """Return a question with the given fields.

    Args:
      question_type: a name of `QUESTION_TYPES`.
      paraphrase: number in [0, 1) that selects the template.
      fields: values of the template's fields.
    """
    templates = QUESTION_TYPES[question_type].templates
    return templates[int(paraphrase * len(templates))].format(**fields)


def parse_question(question_type: str, question: str) -> dict[str, str] | None:
    """Return the fields of a question, or None if no template of the question type matches it."""
    for pattern in _patterns(question_type):
        match = pattern.fullmatch(question)
        if match:
            return match.groupdict()
    return None


@functools.cache
def _patterns(question_type: str) -> tuple[re.Pattern, ...]:
    templates = QUESTION_TYPES[question_type].templates
    return tuple(template_pattern(template) for template in templates)


def template_pattern(template: str, field_patterns: Mapping[str, str] | None = None) -> re.Pattern:
    """Return a pattern that matches the questions of a template, with a named group per field.

    Args:
      template: for instance "locate the {object}."
      field_patterns: regular expression of each field; by default every field matches any text.
    """

    def _group(field: re.Match) -> str:
        name = field[1]
        return f"(?P<{name}>{field_patterns[name] if field_patterns else '.+'})"

    return re.compile(re.sub(r"\\{(\w+)\\}", _group, re.escape(template)))
