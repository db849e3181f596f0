"""The animation of a policy: its answers are drawn, and episodes are shown side by side."""

import numpy as np
from PIL import Image

from etcvla.etc.items import format_loc
from etcvla.pages import animation


def test_a_box_is_drawn_where_the_answer_says():
    image = np.zeros((100, 100, 3), np.uint8)
    box = format_loc([0.2, 0.3, 0.6, 0.8])
    frame = animation.draw_frame(image, "open the door", {"locate_box": box})
    assert frame.shape == (100 + animation.CAPTION_HEIGHT, 100, 3)
    rows, columns = np.nonzero(frame[:100].any(axis=2))
    np.testing.assert_allclose([rows.min(), columns.min()], [20, 30], atol=2)
    np.testing.assert_allclose([rows.max(), columns.max()], [60, 80], atol=2)


def test_answers_that_cannot_be_parsed_are_left_out():
    image = np.full((50, 50, 3), 7, np.uint8)
    frame = animation.draw_frame(image, "open", {"locate_box": "a door", "path_task": ""})
    np.testing.assert_array_equal(frame[:50], image)


def test_shorter_episodes_keep_their_last_frame(tmp_path):
    short = np.stack([np.full((20, 30, 3), value, np.uint8) for value in (0, 250)])
    long = np.stack([np.full((20, 40, 3), value, np.uint8) for value in (0, 0, 0, 250)])
    animation.write_animation(tmp_path / "a.gif", [short, long])
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.size == (70, 20)
        picture.seek(1)
        pixels = np.asarray(picture.convert("L"))
    assert pixels[10, 15] > 200
    assert pixels[10, 50] < 50
