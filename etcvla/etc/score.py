"""Is a predicted answer right, how far off is it, and how far does one get without looking?

Right are: words that are the same but for case and spaces; a box that overlaps the true one with IoU >= 0.5; a point
within 0.08 (of the image's side) of the true one; a path whose mean distance to the true one is at most 0.08, the two
compared at equal shares of their arc length. What cannot be read as the question_type's answer is wrong.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable

import numpy as np

from etcvla.etc.geometry import iou, path_distance, resample
from etcvla.etc.items import Item, format_loc, parse_loc
from etcvla.etc.question_types import BOX, MAX_KEYPOINTS, PATH, WORDS, answer_type

MIN_IOU = 0.5
MAX_DISTANCE = 0.08  # of the image's side; points and paths
PLAN = "decompose"  # the question_type whose answer is steps
ON_THING = "grasp_point"  # the question_type whose point lies on the thing that it names
WORST_DISTANCE = 2**0.5  # the image's diagonal: what an unreadable point or path counts


def is_correct(question_type: str | Item, truth: str, prediction: str) -> bool:
    """Return whether `prediction` is correct by the rules of this module. See `score_answer`."""
    return score_answer(question_type, truth, prediction)["correct"] > 0


def score_answer(
    question_type: str | Item, truth: str, prediction: str, box: np.ndarray | None = None
) -> dict[str, float]:
    """How good a prediction is.

    Args:
      question_type: an item or the name of its question_type, which fixes how both answers are read.
      truth: the item's answer.
      prediction: what a model said.
      box: float[4] of the thing that the question names (ymin, xmin, ymax, xmax), where it is known.

    Returns:
      "correct" 0 or 1, and "iou" for a box (0 if unreadable), "distance" in image sides for a point or path (the
      diagonal if unreadable), "inside" (0 or 1) for a point that must lie on the thing in `box`, or "order" for a plan
      (see `plan_order`).

    Raises ValueError for an unknown question_type, or if `truth` itself cannot be read.
    """
    question_type = (
        question_type.question_type if isinstance(question_type, Item) else question_type
    )
    kind = answer_type(question_type)
    if kind == WORDS:
        right = {"correct": float(_normalize(truth) == _normalize(prediction))}
        return right | ({"order": plan_order(truth, prediction)} if question_type == PLAN else {})
    true, predicted = parse_answer(kind, truth), parse_answer(kind, prediction)
    if true is None:
        raise ValueError(f"the true answer {truth!r} is not a {kind}")
    if kind == BOX:
        overlap = 0.0 if predicted is None else float(iou(true[0], predicted[0]))
        return {"correct": float(overlap >= MIN_IOU), "iou": overlap}
    distance = WORST_DISTANCE if predicted is None else path_distance(true, predicted)
    found = {"correct": float(distance <= MAX_DISTANCE), "distance": distance}
    if box is not None and question_type == ON_THING:
        inside = (
            predicted is not None
            and (box[:2] <= predicted[0]).all()
            and (predicted[0] <= box[2:]).all()
        )
        found["inside"] = float(inside)
    return found


def plan_order(truth: str, prediction: str) -> float:
    """How much of a plan, steps parted by ";", is there in its order: the longest run of steps that both have (with
    others between), twice its length over the steps of both."""
    a, b = (
        [_normalize(step) for step in plan.split(";") if step.strip()]
        for plan in (truth, prediction)
    )
    longest = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, j in np.ndindex(len(a), len(b)):
        longest[i + 1, j + 1] = (
            longest[i, j] + 1 if a[i] == b[j] else max(longest[i, j + 1], longest[i + 1, j])
        )
    return float(2 * longest[-1, -1] / max(1, len(a) + len(b)))


def parse_answer(kind: str, text: str) -> np.ndarray | None:
    """Coordinates float32[n, 2 or 4] of an answer of type `kind`, n = 1 but for paths; None if it is no such answer."""
    found = parse_loc(text, 4 if kind == BOX else 2)
    return found if found is not None and (kind == PATH or len(found) == 1) else None


def majority_answers(
    items: Iterable[Item], by: Callable[[Item], Hashable] = lambda item: item.question_type
) -> dict:
    """The constant answer to give for each question_type (or each value of `by`, which must not mix question_types).

    The most frequent words; the coordinate-wise median of points, boxes and paths (five points at equal arc length).
    """
    groups = defaultdict(list)
    for item in items:
        groups[by(item)].append(item)
    return {
        key: _constant(answer_type(group[0].question_type), [item.answer for item in group])
        for key, group in groups.items()
    }


def blind_accuracy(
    train_items: Iterable[Item], test_items: Iterable[Item], by: str = "question_type"
) -> dict[str, float]:
    """Accuracy of blind guessing by kind: what a model must beat to show that it looks.

    Args:
      by: "question_type", one answer a question_type; "question", the best constant answer to each question's exact words (all that can
        be learnt without the image), and the question_type's where the words are new.

    Raises ValueError for another `by`.
    """
    if by not in ("question_type", "question"):
        raise ValueError(f'by={by!r}: choose "question_type" or "question"')
    train_items = list(train_items)
    answers = majority_answers(train_items, _form)
    if by == "question":
        answers |= majority_answers(train_items, _question)
    scores = defaultdict(list)
    for item in test_items:
        guess = answers.get(_question(item), answers.get(_form(item), ""))
        scores[item.kind].append(is_correct(item, item.answer, guess))
    return {kind: float(np.mean(values)) for kind, values in scores.items()}


def _form(item: Item) -> Hashable:
    return item.kind, item.question_type


def _question(item: Item) -> Hashable:
    return item.kind, item.question_type, item.question


def _normalize(text: str) -> str:
    return " ".join(text.lower().split())


def _constant(kind: str, answers: list[str]) -> str:
    if kind == WORDS:
        return Counter(answers).most_common(1)[0][0]
    coordinates = [parse_answer(kind, answer) for answer in answers]
    if kind == PATH:
        coordinates = [resample(path, MAX_KEYPOINTS) for path in coordinates]
    return format_loc(np.median(coordinates, axis=0).ravel())
