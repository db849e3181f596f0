"""Reader of image-text datasets that TFDS has prepared."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_builders.common.mm_entry import EntryError, MMEntry
from etcvla.errors import UserError


@dataclasses.dataclass(frozen=True)
class Fields:
    """Names of features, nested ones as "a/b"."""

    image: str
    question: str  # "": every image has the question `prompt`
    answer: str
    prompt: str


def read_entries(data: str, split: str, fields: Fields) -> Iterator[MMEntry | EntryError]:
    """Yield the entries of a split; an EntryError in place of an unusable one.

    Args:
      data: version folder of the prepared dataset.

    Raises UserError for a feature that the dataset does not have.
    """
    source = tfds.builder_from_directory(data)
    for field in (fields.image, fields.question, fields.answer):
        if field:
            _check_feature(source.info.features, field, data)
    decoders: dict = {}
    _set_nested(decoders, fields.image, tfds.decode.SkipDecoding())
    dataset = source.as_dataset(split, decoders=decoders, shuffle_files=False)
    for number, example in enumerate(tfds.as_numpy(dataset)):
        try:
            question = fields.prompt
            if fields.question:
                question = most_frequent_text(_get_nested(example, fields.question))
            answer = most_frequent_text(_get_nested(example, fields.answer))
        except EntryError as error:
            yield error
            continue
        image = _get_nested(example, fields.image)
        yield MMEntry(f"{split}/{number}", image, ((question, answer),), kind="")


def most_frequent_text(value: Any) -> str:
    """Return a text, or the most frequent of several (answers of several people).

    Raises EntryError if there is none.
    """
    texts = []
    for text in np.ravel(np.asarray(value, object)).tolist():
        texts.append(text.decode() if isinstance(text, bytes) else str(text))
    if not texts:
        raise EntryError("no answer")
    return collections.Counter(texts).most_common(1)[0][0]


def _check_feature(features: tfds.features.FeaturesDict, field: str, data: str) -> None:
    node = features
    for name in field.split("/"):
        if not hasattr(node, "keys") or name not in node:
            names = ", ".join(sorted(features))
            raise UserError(f"{data} has no feature {field!r}; it has {names}")
        node = node[name]


def _get_nested(example: dict, field: str) -> Any:
    for name in field.split("/"):
        example = example[name]
    return example


def _set_nested(tree: dict, field: str, value: Any) -> None:
    *parents, last = field.split("/")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[last] = value
