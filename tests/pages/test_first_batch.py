"""The picture of the first batch: read back from the arrays alone."""

import numpy as np
import pytest

from etcvla.etc.question_types import BOX, PATH, POINT
from etcvla.pages import first_batch
from etcvla.pages.first_batch import (
    SegmentTarget,
    choose_rows,
    draw_batch,
    places,
    read_segment_targets,
)
from etcvla.train.stage import Stage
from tests.data.handmade_rlds import INSTRUCTIONS, write_robot_set
from tests.train.nano import nano_config


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first_batch")
    return Stage.open(nano_config(write_robot_set(folder / "robot"), folder / "run"))


@pytest.fixture(scope="module")
def batch(stage):
    return next(stage.batches(0))


def test_lessons_are_what_the_dataset_says(stage, batch):
    asked = 0
    for row in range(len(batch["tokens"])):
        targets = read_segment_targets({name: value[row] for name, value in batch.items()}, stage)
        assert [segment.number for segment in targets] == list(
            range(1, int(batch["segment"][row].max()) + 1)
        )
        for segment in targets:
            if segment.acts:
                assert (
                    segment.prompt in INSTRUCTIONS
                    and segment.number == batch["action_segment"][row]
                )
                chunk = stage.assets.fast.decode_batch([list(segment.fast)])[0][0]
                there = batch["action_mask"][row, :, :2]
                np.testing.assert_allclose(
                    chunk[there], batch["actions"][row, :, :2][there], atol=0.2
                )
            else:
                # "where is the affordance 1 of 2 at 3?" is answered by "<loc0203><loc0001>"
                _, number, _, episode, _, step = segment.prompt.rstrip("?").split()[-6:]
                assert (
                    segment.answer
                    == f"<loc{100 * int(episode) + int(step):04d}><loc{int(number):04d}>"
                )
                asked += 1
    assert asked > 4


def test_rows_of_every_stream_come_first():
    streams = np.array([2, 2, 2, 0, 0, 1])[:, None] * np.ones((1, 4), int)
    assert choose_rows({"stream": streams}, 3) == [0, 3, 5]
    assert choose_rows({"stream": streams}, 4) == [0, 1, 3, 5]
    assert choose_rows({"stream": streams}, 99) == list(range(6))


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        ("detect the door.", "<loc0000><loc0256><loc0512><loc1023>", [(BOX, False)]),
        (
            "task: open it. draw the whole path of the gripper.",
            "<loc0000><loc0256><loc0512><loc1023>",
            [(PATH, False)],
        ),
        ("point to the gripper.", "<loc0000><loc0256>", [(POINT, False)]),
        ("what is in the box <loc0000><loc0256><loc0512><loc1023>?", "a door", [(BOX, True)]),
        ("what is in the box [0, 256, 512, 1023]?", "a door", [(BOX, True)]),
        (
            "someone's own words",
            "<loc0000><loc0256> and [1, 2, 3, 4, 5, 6]",
            [(POINT, False), (PATH, False)],
        ),
        ("is it done?", "<loc0000><loc0256><loc0512>", []),
    ],
)
def test_places_are_read_as_their_question_says(prompt, answer, expected):
    found = list(places(SegmentTarget(1, prompt, answer, acts=False, fast=())))
    assert [(kind, asked) for kind, _, asked in found] == expected
    if expected and expected[0][0] == BOX:
        np.testing.assert_allclose(found[0][1][0], (np.array([0, 256, 512, 1023]) + 0.5) / 1024)
    assert not list(
        places(SegmentTarget(1, prompt, answer, acts=True, fast=()))
    )  # ids of actions mean no place


def test_a_box_is_drawn_where_it_is(stage, batch):
    """On the first camera alone, in its segment's colour; an absent camera shows no picture."""
    row = {name: value[0].copy() for name, value in batch.items()}
    row["images"][:] = 255
    row["image_mask"][:] = True
    segment = SegmentTarget(
        2, "detect the door.", "<loc0256><loc0256><loc0768><loc0768>", acts=False, fast=()
    )
    first, second = (
        np.asarray(first_batch._camera(row, camera, [segment])).astype(int) for camera in (0, 1)
    )
    color = first_batch._rgb(segment.color).astype(int)
    drawn = np.argwhere(np.abs(first - color).sum(axis=2) < 60)
    side = first_batch.SIDE
    np.testing.assert_allclose(drawn.min(axis=0), [side / 4] * 2, atol=2)
    np.testing.assert_allclose(drawn.max(axis=0), [3 * side / 4] * 2, atol=2)
    assert (second == 255).all()
    row["image_mask"][1] = False
    assert (np.asarray(first_batch._camera(row, 1, [segment])) < 255).all()


def test_the_picture_has_a_panel_a_row_and_shows_who_reads_whom(stage, batch):
    picture = draw_batch(batch, stage, "title")
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    assert picture.shape[0] > min(len(batch["tokens"]), first_batch.MAX_ROWS) * first_batch.SIDE
    changed = dict(batch) | {"target": np.zeros_like(batch["target"])}  # then text reads both ways
    other = draw_batch(changed, stage, "title")
    assert other.shape != picture.shape or (other != picture).any()
