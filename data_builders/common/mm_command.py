"""Flags and the main function that the importers of image-text datasets share."""

from __future__ import annotations

from typing import Any

from absl import flags

from data_builders.common import command
from data_builders.common.mm_locations import LOCATION_FORMATS


def define_importer_flags() -> None:
    """Define the output flags and the fields of `MMConfig`."""
    command.define_output_flags()
    flags.DEFINE_string("name", "", "Name of the dataset; default: the name of its source.")
    flags.DEFINE_float("held_out", 0.02, "Share of the images in the split 'val', 0 to 1.")
    flags.DEFINE_integer(
        "max_side", 640, "Length in pixels to which the longer side is reduced; 0: no limit."
    )
    flags.DEFINE_string(
        "kind", "", "Kind of items without one; default: from the file's name, or vqa."
    )
    flags.DEFINE_string("source", "unknown", "Origin of the answers: human, or model:<name>.")
    flags.DEFINE_string("license", "", "SPDX identifier of the license of images and answers.")
    formats = "; ".join(f"{name}: {text}" for name, text in LOCATION_FORMATS.items())
    flags.DEFINE_enum(
        "locations", "text", list(LOCATION_FORMATS), f"Format of boxes and points. {formats}."
    )


def importer_settings() -> dict[str, Any]:
    """Return the fields of `MMConfig` with the flags' values."""
    fields = ("name", "held_out", "max_side", "kind", "source", "license", "locations")
    return {field: command.FLAGS[field].value for field in fields}
