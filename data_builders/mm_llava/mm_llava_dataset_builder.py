"""TFDS builder of conversations about images in llava's JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from data_builders.common.mm_items import TEMPLATE, BadEntry, MMBuilder, MMConfig, MMEntry, kind_of
from data_builders.mm_llava.entries import find_image, read_entries, read_turns
from etcvla.etc.items import ETC_KINDS


@dataclasses.dataclass
class LlavaConfig(MMConfig):
    """`json` is the file, `images` the folder that its paths start from, `kind_field` an entry's field with its kind.

    A file that bears the name of one of ETC's kinds ("spatial_understanding_train.json") is all of that kind, unless
    `kind` or an entry says otherwise.
    """

    json: str = ""
    images: str = ""
    kind_field: str = ""

    def __post_init__(self):
        super().__post_init__()
        stem = Path(self.json).stem
        self.name = self.name or stem
        if not self.kind and kind_of(stem) in ETC_KINDS:
            self.kind = kind_of(stem)


class Builder(MMBuilder):
    """Images and conversations, from JSON in llava's format."""

    BUILDER_CONFIGS = [LlavaConfig(name=TEMPLATE)]

    def entries(self) -> Iterator[MMEntry | BadEntry]:
        config = self.builder_config
        for number, entry in enumerate(read_entries(config.json)):
            try:
                turns, image = read_turns(entry), find_image(entry, Path(config.images))
                kind = str(entry.get(config.kind_field) or "")
                yield MMEntry(str(entry.get("id", number)), image.read_bytes(), turns, kind)
            except BadEntry as error:
                yield error
