"""TFDS builder of image-text datasets that TFDS has prepared, such as captions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from data_builders.common.mm_builder import TEMPLATE, MMBuilder, MMConfig
from data_builders.common.mm_entry import EntryError, MMEntry
from data_builders.mm_tfds.entries import Fields, read_entries


@dataclasses.dataclass
class TfdsConfig(MMConfig):
    """Source of the entries; nested features are written "a/b"."""

    data: str = ""  # version folder of the prepared dataset
    split: str = "train"
    image: str = "image"  # feature with the image
    question: str = ""  # feature with the question; "": every image has the question `prompt`
    answer: str = "text"  # feature with the answer
    prompt: str = "describe the image."

    def __post_init__(self):
        super().__post_init__()
        self.name = self.name or Path(self.data).parent.name


class Builder(MMBuilder):
    """Images and text, from a dataset that TFDS has prepared."""

    BUILDER_CONFIGS = [TfdsConfig(name=TEMPLATE)]

    def origin(self) -> dict[str, str]:
        """Return homepage, citation and license of the source."""
        info = tfds.builder_from_directory(self.builder_config.data).info
        return {
            "homepage": info.homepage,
            "citation": info.citation,
            "license": info.redistribution_info.license,
        }

    def entries(self) -> Iterator[MMEntry | EntryError]:
        """Yield all entries of the split; see `MMBuilder.entries`."""
        config = self.builder_config
        fields = Fields(config.image, config.question, config.answer, config.prompt)
        return read_entries(config.data, config.split, fields)
