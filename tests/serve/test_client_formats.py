"""Messages of every known client become observations; errors name the field of the message."""

import numpy as np
import pytest

from etcvla.errors import UserError
from etcvla.serve.client_formats import translate

FRONT = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
WRIST = np.random.default_rng(1).integers(0, 256, (4, 6, 3), np.uint8)
CAMERAS = ("front", "wrist")
LIBERO = {
    "observation/image": FRONT,
    "observation/wrist_image": WRIST,
    "observation/state": np.arange(8.0),
    "prompt": "open the drawer",
}
OWN = {
    "images": {"front": FRONT, "wrist": WRIST},
    "state": list(range(8)),
    "instruction": "open the drawer",
}
OWN_FLAT = {
    "images/front": FRONT,
    "images/wrist": WRIST,
    "state": np.arange(8),
    "prompt": "open the drawer",
}
DROID = {
    "observation/exterior_image_1_left": FRONT,
    "observation/wrist_image_left": WRIST,
    "prompt": "open the drawer",
    "observation/joint_position": np.arange(7.0),
    "observation/gripper_position": 7.0,
}
VLABENCH = LIBERO | {"observation/second_image": FRONT, "unknown": [1]}
CHANNELS_FIRST = LIBERO | {
    "observation/image": FRONT.transpose(2, 0, 1),
    "observation/wrist_image": WRIST.transpose(2, 0, 1),
}


@pytest.mark.parametrize(
    "message",
    [LIBERO, OWN, OWN_FLAT, DROID, VLABENCH, CHANNELS_FIRST],
    ids=["libero", "own", "own_flat", "droid", "vlabench", "channels_first"],
)
def test_every_client_gives_the_same_observation(message):
    observation = translate(message, CAMERAS)
    assert observation["instruction"] == "open the drawer"
    assert list(observation["images"]) == list(CAMERAS)
    np.testing.assert_array_equal(observation["images"]["front"], FRONT)
    np.testing.assert_array_equal(observation["images"]["wrist"], WRIST)
    np.testing.assert_array_equal(observation["state"], np.arange(8, dtype=np.float32))
    assert observation["state"].dtype == np.float32


@pytest.mark.parametrize("cameras", [("cam_high", "cam_right_wrist"), ("front", "right_wrist")])
def test_aloha_cameras_have_the_clients_names_or_ours(cameras):
    names = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")
    message = {
        "state": np.ones(14),
        "images": {name: np.full((3, 4, 6), i, np.uint8) for i, name in enumerate(names)},
        "prompt": "x",
    }
    images = translate(message, cameras)["images"]
    assert [images[camera][0, 0, 0] for camera in cameras] == [0, 3]


def test_cameras_that_the_policy_does_not_use_are_ignored():
    message = LIBERO | {"observation/wrist_image": "broken"}
    assert list(translate(message, ("front",))["images"]) == ["front"]


def test_float_images_are_from_0_to_1():
    image = translate(LIBERO | {"observation/image": FRONT / 255}, CAMERAS)["images"]["front"]
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - FRONT).max() <= 1


def test_upright_images_are_rotated_for_the_policy_to_rotate_them_back():
    images = translate(LIBERO, CAMERAS, rotated_cameras=("front",))["images"]
    np.testing.assert_array_equal(images["front"][::-1, ::-1], FRONT)
    np.testing.assert_array_equal(images["wrist"], WRIST)


def test_default_instruction_is_for_clients_without_one():
    message = {name: value for name, value in LIBERO.items() if name != "prompt"}
    assert translate(message, CAMERAS, instruction="wait")["instruction"] == "wait"


def test_real_time_chunking_fields_are_passed_on():
    rtc = {"prefix": np.ones((3, 4)), "delay": 2}
    observation = translate(LIBERO | {"rtc": rtc}, CAMERAS)
    assert observation["prefix"].shape == (3, 4)
    assert observation["delay"] == 2
    assert "prefix" not in translate(LIBERO, CAMERAS)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (
            {"observation/wrist_image": None},
            "lacks observation/wrist_image; it has .* nearest client format is 'libero'",
        ),
        ({"observation/state": None}, "lacks observation/state"),
        ({"observation/image": FRONT[0]}, r"observation/image is uint8\[6, 3\], expected an image"),
        (
            {"observation/image": FRONT.astype(np.int32)},
            r"int32\[4, 6, 3\], expected uint8, or floats from 0 to 1",
        ),
        ({"observation/image": FRONT * 1.0}, "floats from 0 to 1"),
        ({"observation/image": FRONT * np.nan}, "floats from 0 to 1"),
        ({"observation/image": "x"}, "is str, expected an"),
        ({"observation/state": "x"}, "observation/state is str, expected a list of numbers"),
        ({"observation/state": ["x"]}, "is list"),
        ({"observation/state": np.zeros((2, 2))}, r"float64\[2, 2\]"),
        ({"prompt": 3}, "prompt is 3, expected an instruction"),
        ({"prompt": " "}, "prompt is ' ', expected"),
        ({"prompt": None}, "prompt is '', expected an instruction"),
        ({"protocol": 2}, "has protocol version 2, expected 1"),
        ({"rtc": {"prefix": 3, "delay": 1}}, "rtc/prefix is int"),
        ({"rtc": {"prefix": np.ones((1, 1))}}, "rtc/delay is None"),
        ({"rtc": {"prefix": np.ones((1, 1)), "delay": -1}}, "rtc/delay is -1"),
    ],
)
def test_wrong_messages_are_refused(change, error):
    message = {name: value for name, value in (LIBERO | change).items() if value is not None}
    with pytest.raises(UserError, match=error):
        translate(message, CAMERAS)
