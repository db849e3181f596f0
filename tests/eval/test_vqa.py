"""Held-out questions: answers in batches of equal size, and scores by kind."""

import numpy as np
import pytest

from etcvla.etc.items import Item
from etcvla.eval import vqa

COUNT = Item("spatial_understanding", "count", "how many drawers are there?", "two")
BOX = Item("affordance", "locate_box", "locate the mug.", "<loc0000><loc0000><loc0512><loc0512>")


def make_question(item, prediction="", episode=0):
    image = np.zeros((4, 4, 3), np.uint8)
    return vqa.Question(item, "", (image,), episode=episode, prediction=prediction)


class EchoPolicy:
    """Answers with the question, and notes the sizes of its batches."""

    num_cameras = 1

    def __init__(self):
        self.batch_sizes = []

    def answer(self, images, questions):
        self.batch_sizes.append(len(questions))
        return [question.upper() for question in questions]


def test_all_batches_have_the_same_size():
    policy = EchoPolicy()
    questions = [make_question(COUNT) for _ in range(vqa.BATCH + 3)]
    answered = vqa.answer_questions(policy, questions)
    assert policy.batch_sizes == [vqa.BATCH, vqa.BATCH]
    assert len(answered) == len(questions)
    assert all(question.prediction == COUNT.question.upper() for question in answered)


def test_scores_are_by_kind_with_intervals_and_blind_guesses():
    answered = [
        make_question(COUNT, "Two", episode=0),
        make_question(COUNT, "three", episode=1),
        make_question(BOX, BOX.answer, episode=0),
        make_question(BOX, "nothing", episode=1),
    ]
    scores = vqa.score_by_kind(answered, [COUNT, BOX])
    count = scores["spatial_understanding"]
    assert count["accuracy"] == 0.5
    assert count["low"] < 0.5 < count["high"]
    assert count["count"] == 2
    assert count["majority"] == count["blind"] == 1
    box = scores["affordance"]
    assert box["iou"] == pytest.approx(0.5)
    assert box["iou_count"] == 2
    assert "correct" not in box
    assert vqa.mean_accuracy(scores) == 0.5


@pytest.mark.parametrize(
    ("count", "expected"), [(3, [0, 4, 9]), (20, list(range(10))), (1, [0]), (0, [])]
)
def test_values_are_spread_evenly(count, expected):
    assert vqa.spread_evenly(range(10), count) == expected
