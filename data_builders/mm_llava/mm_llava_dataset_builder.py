"""TFDS builder of conversations about images in LLaVA's JSON format."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from data_builders.common.mm_builder import TEMPLATE, MMBuilder, MMConfig
from data_builders.common.mm_entry import EntryError, MMEntry
from data_builders.common.mm_items import normalize_kind
from data_builders.mm_llava.entries import read_entries
from etcvla.etc.items import ETC_KINDS


@dataclasses.dataclass
class LlavaConfig(MMConfig):
    """Source of the entries.

    If the file's name contains one of ETC's kinds ("spatial_understanding_train.json"), its items
    are of that kind, unless `kind` or an entry names another.
    """

    data: str = ""  # JSON file
    images: str = ""  # folder to which image paths are relative
    kind_field: str = ""  # field of an entry with the kind of its items

    def __post_init__(self):
        super().__post_init__()
        stem = Path(self.data).stem
        self.name = self.name or stem
        kind_in_name = normalize_kind(stem)
        if not self.kind and kind_in_name in ETC_KINDS:
            self.kind = kind_in_name


class Builder(MMBuilder):
    """Images and conversations, from JSON in LLaVA's format."""

    BUILDER_CONFIGS = [LlavaConfig(name=TEMPLATE)]

    def entries(self) -> Iterator[MMEntry | EntryError]:
        """Yield all entries of the file; see `MMBuilder.entries`."""
        config = self.builder_config
        return read_entries(config.data, Path(config.images), config.kind_field)
