"""TFDS builder of image-text datasets that TFDS has prepared: captions, or questions and answers."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_builders.common.mm_items import TEMPLATE, BadEntry, MMBuilder, MMConfig, MMEntry


@dataclasses.dataclass
class TfdsConfig(MMConfig):
    """`data` is the prepared dataset's version folder, `split` the part to take.

    image, question, answer: features, nested ones as "a/b". Without `question`, `ask` is asked of every image.
    """

    data: str = ""
    split: str = "train"
    image: str = "image"
    question: str = ""
    answer: str = "text"
    ask: str = "describe the image."

    def __post_init__(self):
        super().__post_init__()
        self.name = self.name or Path(self.data).parent.name


class Builder(MMBuilder):
    """Images and text, from a dataset that TFDS has prepared."""

    BUILDER_CONFIGS = [TfdsConfig(name=TEMPLATE)]

    def origin(self) -> dict[str, str]:
        info = tfds.builder_from_directory(self.builder_config.data).info
        return {
            "homepage": info.homepage,
            "citation": info.citation,
            "license": info.redistribution_info.license,
        }

    def entries(self) -> Iterator[MMEntry | BadEntry]:
        config = self.builder_config
        source = tfds.builder_from_directory(config.data)
        for field in filter(None, (config.image, config.question, config.answer)):
            _demand(source.info.features, field, config.data)
        decoders: dict = {}
        _put(decoders, config.image, tfds.decode.SkipDecoding())
        examples = tfds.as_numpy(
            source.as_dataset(config.split, decoders=decoders, shuffle_files=False)
        )
        for number, example in enumerate(examples):
            try:
                question = text(_get(example, config.question)) if config.question else config.ask
                yield MMEntry(
                    f"{config.split}/{number}",
                    _get(example, config.image),
                    ((question, text(_get(example, config.answer))),),
                    "",
                )
            except BadEntry as error:
                yield error


def text(value: Any) -> str:
    """A text, or of several (answers of several people) the most frequent, the first of those as frequent."""
    values = [
        v.decode() if isinstance(v, bytes) else str(v)
        for v in np.ravel(np.asarray(value, object)).tolist()
    ]
    if not values:
        raise BadEntry("no answer")
    return collections.Counter(values).most_common(1)[0][0]


def _demand(features, field: str, data: str) -> None:
    node = features
    for name in field.split("/"):
        if not hasattr(node, "keys") or name not in node:
            raise ValueError(
                f"{data} has no feature {field!r}; it has {', '.join(sorted(features))}"
            )
        node = node[name]


def _get(example: dict, field: str) -> Any:
    for name in field.split("/"):
        example = example[name]
    return example


def _put(tree: dict, field: str, value: Any) -> None:
    *above, last = field.split("/")
    for name in above:
        tree = tree.setdefault(name, {})
    tree[last] = value
