"""Every kind of client's message becomes the observation that it means; what is wrong with one is said in its words."""

import numpy as np
import pytest

from etcvla.serve.client_formats import translate

FRONT, WRIST = (np.random.default_rng(i).integers(0, 256, (4, 6, 3), np.uint8) for i in range(2))
LIBERO = {
    "observation/image": FRONT,
    "observation/wrist_image": WRIST,
    "observation/state": np.arange(8.0),
    "prompt": "open the drawer",
}
CAMERAS = ("front", "wrist")


def seen(message, cameras=CAMERAS, **options):
    return translate(message, cameras, **options)


@pytest.mark.parametrize(
    "message",
    [
        LIBERO,
        {
            "images": {"front": FRONT, "wrist": WRIST},
            "state": list(range(8)),
            "instruction": "open the drawer",
        },
        {
            "images/front": FRONT,
            "images/wrist": WRIST,
            "state": np.arange(8),
            "prompt": "open the drawer",
        },
        {
            "observation/exterior_image_1_left": FRONT,
            "observation/wrist_image_left": WRIST,
            "prompt": "open the drawer",
            "observation/joint_position": np.arange(7.0),
            "observation/gripper_position": 7.0,
        },
        LIBERO | {"observation/second_image": FRONT, "unknown": [1]},
        {
            name: (value.transpose(2, 0, 1) if "image" in name else value)
            for name, value in LIBERO.items()
        },
    ],
)
def test_kinds_of_clients(message):
    observation = seen(message)
    assert observation["instruction"] == "open the drawer" and list(observation["images"]) == list(
        CAMERAS
    )
    np.testing.assert_array_equal(observation["images"]["front"], FRONT)
    np.testing.assert_array_equal(observation["images"]["wrist"], WRIST)
    np.testing.assert_array_equal(observation["state"], np.arange(8, dtype=np.float32))
    assert observation["state"].dtype == np.float32


def test_aloha_by_its_own_names_and_by_ours():
    message = {
        "state": np.ones(14),
        "images": {
            name: np.full((3, 4, 6), i, np.uint8)
            for i, name in enumerate(("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist"))
        },
        "prompt": "x",
    }
    own = seen(message, ("cam_high", "cam_right_wrist"))["images"]
    ours = seen(message, ("front", "right_wrist"))["images"]
    for images, names in ((own, ("cam_high", "cam_right_wrist")), (ours, ("front", "right_wrist"))):
        assert [images[name][0, 0, 0] for name in names] == [0, 3]


def test_only_the_cameras_that_the_policy_looks_through_are_touched():
    assert list(seen(LIBERO | {"observation/wrist_image": "broken"}, ("front",))["images"]) == [
        "front"
    ]


def test_floats_count_to_one():
    images = seen(LIBERO | {"observation/image": FRONT / 255})["images"]
    assert (
        images["front"].dtype == np.uint8 and np.abs(images["front"].astype(int) - FRONT).max() <= 1
    )


def test_what_libero_has_turned_is_not_turned_again():
    images = seen(LIBERO, turned=("front",))["images"]
    np.testing.assert_array_equal(
        images["front"][::-1, ::-1], FRONT
    )  # so the policy's turning gives what was sent
    np.testing.assert_array_equal(images["wrist"], WRIST)


def test_an_instruction_for_clients_without():
    assert (
        seen({k: v for k, v in LIBERO.items() if k != "prompt"}, instruction="wait")["instruction"]
        == "wait"
    )


def test_the_chunk_under_way():
    observation = seen(LIBERO | {"rtc": {"prefix": np.ones((3, 4)), "delay": 2}})
    assert observation["prefix"].shape == (3, 4) and observation["delay"] == 2
    assert "prefix" not in seen(LIBERO)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (
            {"observation/wrist_image": None},
            "lacks observation/wrist_image; it has .* nearest kind of client is 'libero'",
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
        ({"prompt": 3}, r"prompt is 3, expected words .* \(text, not int\)"),
        ({"prompt": " "}, "prompt is ' ', expected"),
        ({"prompt": None}, "prompt is '', expected words"),
        ({"protocol": 2}, "speaks protocol 2, this server speaks 1"),
        ({"rtc": {"prefix": 3, "delay": 1}}, "rtc/prefix is int"),
        ({"rtc": {"prefix": np.ones((1, 1))}}, "rtc/delay is None"),
        ({"rtc": {"prefix": np.ones((1, 1)), "delay": -1}}, "rtc/delay is -1"),
    ],
)
def test_what_is_wrong_is_said(change, error):
    message = {name: value for name, value in (LIBERO | change).items() if value is not None}
    with pytest.raises(ValueError, match=error):
        seen(message)
