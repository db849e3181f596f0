"""Score predicted answers, and compute the accuracy of guessing without the image.

A prediction is correct if its words equal the true ones up to case and spaces, if its box has an
IoU of at least 0.5 with the true one, if its point is within 0.08 (of the image's side) of the
true one, or if the mean distance of its path from the true one is at most 0.08. Paths are
compared at equal fractions of their arc length. A prediction that cannot be parsed as an answer
of its question type is wrong.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np

from etcvla.errors import UserError
from etcvla.etc.geometry import iou, path_distance, resample
from etcvla.etc.items import Item, format_loc, parse_loc
from etcvla.etc.question_types import BOX, MAX_KEYPOINTS, PATH, WORDS, answer_type

MIN_IOU = 0.5
MAX_DISTANCE = 0.08  # of the image's side; for points and paths
PLAN = "decompose"  # the question type whose answer is a list of steps
POINT_IN_BOX = "grasp_point"  # the question type whose point must be on the object that it names
WORST_DISTANCE = 2**0.5  # the image's diagonal: the distance of an unreadable point or path


def is_correct(question_type: str | Item, truth: str, prediction: str) -> bool:
    """Return whether `prediction` is correct by the rules of this module. See `score_answer`."""
    return score_answer(question_type, truth, prediction)["correct"] > 0


def score_answer(
    question_type: str | Item, truth: str, prediction: str, box: np.ndarray | None = None
) -> dict[str, float]:
    """Score a predicted answer.

    Args:
      question_type: an item, or the name of its question type, which determines how answers are
        parsed.
      truth: the item's answer.
      prediction: the answer of a model.
      box: float[4] (ymin, xmin, ymax, xmax) of the object that the question names, if it is known.

    Returns:
      "correct": 0 or 1. Further keys depend on the type of the answer:
      "iou" of a box, 0 if it is unreadable.
      "distance" of a point or path in image sides, the diagonal if it is unreadable.
      "inside": 0 or 1, for a point that must be on the object in `box`.
      "order" of a plan, see `plan_order`.

    Raises ValueError if the question type is unknown or if `truth` cannot be parsed.
    """
    if isinstance(question_type, Item):
        question_type = question_type.question_type
    kind = answer_type(question_type)
    if kind == WORDS:
        scores = {"correct": float(_normalize(truth) == _normalize(prediction))}
        if question_type == PLAN:
            scores["order"] = plan_order(truth, prediction)
        return scores
    true = parse_answer(kind, truth)
    if true is None:
        raise ValueError(f"the true answer {truth!r} is not a {kind}")
    predicted = parse_answer(kind, prediction)
    if kind == BOX:
        overlap = 0.0 if predicted is None else float(iou(true[0], predicted[0]))
        return {"correct": float(overlap >= MIN_IOU), "iou": overlap}
    distance = WORST_DISTANCE if predicted is None else path_distance(true, predicted)
    scores = {"correct": float(distance <= MAX_DISTANCE), "distance": distance}
    if box is not None and question_type == POINT_IN_BOX:
        low, high = np.split(box, 2)
        is_inside = predicted is not None and ((low <= predicted) & (predicted <= high)).all()
        scores["inside"] = float(is_inside)
    return scores


def plan_order(truth: str, prediction: str) -> float:
    """Compute how many steps of a plan the prediction has in the right order.

    Steps are separated by ";". The result is twice the length of the longest common subsequence,
    divided by the number of steps of both plans.
    """
    a = _steps(truth)
    b = _steps(prediction)
    longest = np.zeros((len(a) + 1, len(b) + 1), int)  # of the first i steps of a and j steps of b
    for i, step in enumerate(a, start=1):
        for j, predicted_step in enumerate(b, start=1):
            if step == predicted_step:
                longest[i, j] = longest[i - 1, j - 1] + 1
            else:
                longest[i, j] = max(longest[i - 1, j], longest[i, j - 1])
    return float(2 * longest[-1, -1] / max(1, len(a) + len(b)))


def _steps(plan: str) -> list[str]:
    return [_normalize(step) for step in plan.split(";") if step.strip()]


def _normalize(text: str) -> str:
    return " ".join(text.lower().split())


def parse_answer(kind: str, text: str) -> np.ndarray | None:
    """Parse the coordinates of an answer of type `kind` (POINT, BOX or PATH).

    Returns:
      float32[n, 2 or 4], with n = 1 except for paths. None if `text` is not such an answer.
    """
    coordinates = parse_loc(text, 4 if kind == BOX else 2)
    if coordinates is None or (kind != PATH and len(coordinates) != 1):
        return None
    return coordinates


def majority_answers(
    items: Iterable[Item], by: Callable[[Item], Hashable] = lambda item: item.question_type
) -> dict[Hashable, str]:
    """Return the best constant answer of each question type.

    This is the most frequent answer in words, or the coordinate-wise median of points, boxes and
    paths (of five points at equal arc length).

    Args:
      items: items with true answers.
      by: groups the items. A group must not mix question types.
    """
    groups = defaultdict(list)
    for item in items:
        groups[by(item)].append(item)
    return {group: _constant_answer(members) for group, members in groups.items()}


def _constant_answer(items: Sequence[Item]) -> str:
    kind = answer_type(items[0].question_type)
    answers = [item.answer for item in items]
    if kind == WORDS:
        return Counter(answers).most_common(1)[0][0]
    coordinates = [parse_answer(kind, answer) for answer in answers]
    if kind == PATH:
        coordinates = [resample(path, MAX_KEYPOINTS) for path in coordinates]
    return format_loc(np.median(coordinates, axis=0).ravel())


def blind_accuracy(
    train_items: Iterable[Item], test_items: Iterable[Item], by: str = "question_type"
) -> dict[str, float]:
    """Compute the accuracy of guessing without the image, by kind.

    A model that uses the image must have a higher accuracy.

    Args:
      train_items: items from which the guesses are derived.
      test_items: items on which the guesses are scored.
      by: "question_type" gives one constant answer per question type. "question" gives the best
        constant answer to the exact words of each question, which is all that can be learned
        without the image, and the constant answer of the question type to questions with new
        words.

    Raises UserError for another `by`.
    """
    if by not in ("question_type", "question"):
        raise UserError(f'by={by!r}: choose "question_type" or "question"')
    train_items = list(train_items)
    answers = majority_answers(train_items, _by_type)
    if by == "question":
        answers |= majority_answers(train_items, _by_question)
    correct = defaultdict(list)
    for item in test_items:
        guess = answers.get(_by_question(item), answers.get(_by_type(item), ""))
        correct[item.kind].append(is_correct(item, item.answer, guess))
    return {kind: float(np.mean(values)) for kind, values in correct.items()}


def _by_type(item: Item) -> Hashable:
    return item.kind, item.question_type


def _by_question(item: Item) -> Hashable:
    return item.kind, item.question_type, item.question
