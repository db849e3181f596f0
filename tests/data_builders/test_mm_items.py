"""Conversion of image-text entries: locations, images, and configs."""

import io

import numpy as np
import pytest
from PIL import Image

from data_builders.common.mm_builder import MMConfig, split_of_image
from data_builders.common.mm_entry import EntryError
from data_builders.common.mm_items import make_item, to_jpeg
from data_builders.common.mm_locations import convert_locations
from etcvla.errors import UserError
from etcvla.etc.items import format_loc, parse_loc
from tests.data_builders.llava_files import image_file


@pytest.mark.parametrize(
    ("text", "locations", "expected"),
    [
        ("at [100, 200, 300, 400]", "text", "at [100, 200, 300, 400]"),
        ("at [100, 200, 300, 400]", "yx1000", "at <loc0102><loc0204><loc0307><loc0409>"),
        (
            "[[0, 0, 500, 500], [500, 500, 1000, 1000]]",
            "xy1000",
            "<loc0000><loc0000><loc0512><loc0512><loc0512><loc0512><loc1023><loc1023>",
        ),
        ("<loc0001><loc1023>", "loc", "<loc0001><loc1023>"),
        ("[512, 1023]", "integers", "<loc0512><loc1023>"),
        ("of [1, 2, 3] these", "yx1000", "of [1, 2, 3] these"),
        ("in [3] ways (see 1, 2 and 3)", "xy1000", "in [3] ways (see 1, 2 and 3)"),
    ],
)
def test_locations_become_tokens(text, locations, expected):
    assert convert_locations(text, locations) == expected


def test_integers_of_our_own_builders_are_converted_without_loss():
    points = np.random.default_rng(0).random((5, 2)).astype(np.float32)
    integers = format_loc(points.ravel(), "integers")
    text = convert_locations(f"go {integers}", "integers", is_path=True)
    assert text == f"go {format_loc(points.ravel())}"
    np.testing.assert_allclose(parse_loc(text.removeprefix("go "), 2), points, atol=1 / 1024)


@pytest.mark.parametrize(
    ("text", "locations", "reason"),
    [
        ("[1, 2, 3, 1001]", "xy1000", "beyond 1000"),
        ("[5, 5, 5, 9]", "xy1000", "empty box"),
        ("[1, 1024]", "integers", "beyond 1023"),
        ("<loc1024>", "loc", "malformed"),
        ("<loc12>", "loc", "malformed"),
    ],
)
def test_invalid_locations_are_errors(text, locations, reason):
    with pytest.raises(EntryError, match=reason):
        make_item("where?", text, kind="vqa", locations=locations, source="human")


def test_split_depends_on_the_image_alone():
    images = [i.to_bytes(8, "little") for i in range(2000)]
    share = np.mean([split_of_image(image, 0.1) == "val" for image in images])
    assert 0.05 < share < 0.15
    assert split_of_image(b"x", 0.0) == "train"


def test_small_jpeg_is_kept_unchanged():
    data = image_file("green")
    assert to_jpeg(data, 40) is data


def test_other_images_are_converted_to_rgb_jpeg():
    reduced = Image.open(io.BytesIO(to_jpeg(image_file("green"), 20)))
    assert reduced.size == (20, 15)
    gray = image_file(7, image_format="PNG", mode="L")
    converted = Image.open(io.BytesIO(to_jpeg(gray, 0)))
    assert converted.format == "JPEG"
    assert converted.mode == "RGB"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"locations": "xy100"}, "unknown locations 'xy100', did you mean 'xy1000'"),
        ({"held_out": 1.5}, r"held_out 1.5 must be in \[0, 1\)"),
        ({"max_side": -1}, "max_side -1 must be at least 0"),
    ],
)
def test_wrong_config_fields_are_errors(fields, message):
    with pytest.raises(UserError, match=message):
        MMConfig(name="x", **fields)
