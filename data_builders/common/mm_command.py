"""What the commands of all MM importers share."""

from __future__ import annotations

from collections.abc import Callable

from absl import flags

from data_builders.common import command
from data_builders.common.build import prepare
from data_builders.common.mm_items import LOCATIONS, MMBuilder, MMConfig

_HELP = {
    "name": "Name of the dataset; by default that of what it is made from.",
    "val": "Share of the images held out.",
    "max_side": "Longer side, pixels; 0 keeps images as they are.",
    "kind": "Kind of the items that name none; by default what the file's name says, or vqa.",
    "source": "Who stands behind the answers: human, or model:<name>.",
    "license": "SPDX's name of what images and answers are under.",
    "locations": "Boxes and points: "
    + "; ".join(f"{name}: {what}" for name, what in LOCATIONS.items())
    + ".",
}
_DEFINE = {float: flags.DEFINE_float, int: flags.DEFINE_integer, str: flags.DEFINE_string}


def common_flags() -> Callable[[], dict]:
    """Defines them, and returns what gives their values by field of `MMConfig`."""
    command.output_flags()
    default = MMConfig(name="")
    found = {
        name: _DEFINE[type(getattr(default, name))](name, getattr(default, name), text)
        for name, text in _HELP.items()
    }
    return lambda: {name: flag.value for name, flag in found.items()}


def run(argv: list[str], builder: type[MMBuilder], config: Callable[[], MMConfig]) -> None:
    """`command.run` of an importer."""
    command.run(argv, lambda: prepare(builder, config(), command.FLAGS.out))
