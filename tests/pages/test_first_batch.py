"""The picture of the first batch shows what the arrays of the batch contain."""

import numpy as np
import pytest
from PIL import ImageColor

from etcvla.etc.places import cells_to_pairs, pairs_to_cells
from etcvla.etc.question_types import BOX, PATH, POINT
from etcvla.pages import batch_panels, first_batch
from etcvla.pages.first_batch import (
    DecodedSegment,
    choose_rows,
    draw_batch,
    read_segments,
    segment_shapes,
)
from etcvla.pages.shapes import Shape
from etcvla.train.stage import Stage
from tests.data.handmade_rlds import INSTRUCTIONS, write_robot_set
from tests.train.nano import nano_config

BOX_TEXT = "<loc0000><loc0256><loc0512><loc1023>"


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first_batch")
    return Stage.open(nano_config(write_robot_set(folder / "robot"), folder / "run"))


@pytest.fixture(scope="module")
def batch(stage):
    return next(stage.batches(0))


def read_row(batch, index):
    return {name: value[index] for name, value in batch.items()}


def test_segments_are_the_items_and_actions_of_the_dataset(stage, batch):
    num_questions = 0
    for index in range(len(batch["tokens"])):
        row = read_row(batch, index)
        segments = read_segments(row, stage)
        numbers = [segment.number for segment in segments]
        assert numbers == list(range(1, int(row["segment"].max()) + 1))
        for segment in segments:
            if segment.is_action:
                assert segment.prompt in INSTRUCTIONS
                assert segment.number == row["action_segment"]
                valid = row["action_mask"][0, :, :2]
                np.testing.assert_allclose(
                    segment.fast_chunk[valid], row["actions"][0, :, :2][valid], atol=0.2
                )
            else:
                # The question "where is the affordance 1 of 2 at 3?" has the answer
                # "<loc0203><loc0001>", of which the model writes the cell.
                words = segment.prompt.rstrip("?").split()
                number, episode, step = int(words[-5]), int(words[-3]), int(words[-1])
                answer = f"<loc{100 * episode + step:04d}><loc{number:04d}>"
                assert segment.answer == cells_to_pairs(pairs_to_cells(answer))
                num_questions += 1
    assert num_questions > 4


def test_first_rows_of_all_streams_are_chosen():
    streams = np.array([2, 2, 2, 0, 0, 1])[:, None] * np.ones((1, 4), int)
    assert choose_rows({"stream": streams}, 3) == [0, 3, 5]
    assert choose_rows({"stream": streams}, 4) == [0, 1, 3, 5]
    assert choose_rows({"stream": streams}, 99) == list(range(6))


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        ("detect the door.", BOX_TEXT, [(BOX, False)]),
        ("task: open it. draw the whole path of the gripper.", BOX_TEXT, [(PATH, False)]),
        ("point to the gripper.", "<loc0000><loc0256>", [(POINT, False)]),
        (f"what is in the box {BOX_TEXT}?", "a door", [(BOX, True)]),
        ("what is in the box [0, 256, 512, 1023]?", "a door", [(BOX, True)]),
        (
            "a prompt that is no known question",
            "<loc0000><loc0256> and [1, 2, 3, 4, 5, 6]",
            [(POINT, False), (PATH, False)],
        ),
        ("is it done?", "<loc0000><loc0256><loc0512>", []),
    ],
)
def test_shapes_have_the_kind_that_the_question_asks_for(prompt, answer, expected):
    shapes = segment_shapes(DecodedSegment(1, prompt, answer))
    assert [(shape.kind, shape.dashed) for shape in shapes] == expected
    if expected and expected[0][0] == BOX:
        corners = (np.array([[0, 256], [512, 1023]]) + 0.5) / 1024
        np.testing.assert_allclose(shapes[0].points, corners)
    # The text of an action segment has no coordinates.
    assert not segment_shapes(DecodedSegment(1, prompt, answer, is_action=True))


def test_box_is_drawn_at_its_place_in_the_color_of_its_segment():
    white = np.full((32, 32, 3), 255, np.uint8)
    box = Shape(BOX, np.array([[0.25, 0.25], [0.75, 0.75]]))
    color = batch_panels.segment_color(2)
    picture = batch_panels.draw_camera(white, [(box, color)]).astype(int)
    rgb = ImageColor.getrgb(color)
    drawn = np.argwhere(np.abs(picture - rgb).sum(axis=2) < 60)
    side = len(picture)
    np.testing.assert_allclose(drawn.min(axis=0), [side / 4] * 2, atol=2)
    np.testing.assert_allclose(drawn.max(axis=0), [3 * side / 4] * 2, atol=2)


def test_row_without_a_camera_shows_no_image(stage, batch):
    images = np.full_like(batch["images"], 255)
    pictures = []
    for present in (True, False):
        image_mask = np.full_like(batch["image_mask"], present)
        changed = dict(batch) | {"images": images, "image_mask": image_mask}
        pictures.append(draw_batch(changed, stage, "title"))
    assert (pictures[0] == 255).all(axis=2).sum() > (pictures[1] == 255).all(axis=2).sum()


def test_picture_has_a_panel_for_each_row_and_shows_the_attention_mask(stage, batch):
    picture = draw_batch(batch, stage, "title")
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    num_rows = min(len(batch["tokens"]), first_batch.MAX_ROWS)
    assert picture.shape[0] > num_rows * batch_panels.SIDE
    # Without targets, attention is bidirectional in all text.
    without_targets = dict(batch) | {"target": np.zeros_like(batch["target"])}
    other = draw_batch(without_targets, stage, "title")
    assert other.shape != picture.shape or (other != picture).any()
