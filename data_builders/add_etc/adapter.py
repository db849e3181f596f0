"""Check of an adapter against the dataset that it reads."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Sequence

from etcvla.data.adapters import Adapter
from etcvla.data.rlds import RLDSDataset
from etcvla.errors import UserError

OBSERVATION = "observation/"


def match_adapter(adapter: Adapter, dataset: RLDSDataset) -> Adapter:
    """Return the adapter with its cameras filled in; by default all cameras of the dataset.

    Raises UserError if the adapter names a feature that the dataset does not have.
    """
    images = []
    for name in _features_of_kind(dataset, "image"):
        if name.startswith(OBSERVATION) and dataset.features[name].shape[-1] == 3:
            images.append(name)
    if not images:
        raise UserError(
            f"{dataset.directory} has no images under steps/observation; ETC items need images"
        )
    cameras = dict(adapter.cameras)
    if not cameras:
        cameras = {name.removeprefix(OBSERVATION): name for name in images}
    texts = _features_of_kind(dataset, "text")
    tensors = _features_of_kind(dataset, "tensor")
    sources = adapter.annotation
    _check_names("cameras", cameras.values(), images, dataset)
    _check_names("instruction", adapter.instruction, texts, dataset)
    _check_names("annotation.position", sources.position[:1], tensors, dataset)
    _check_names("annotation.opening", sources.opening[:1], tensors, dataset)
    return dataclasses.replace(adapter, cameras=cameras)


def _features_of_kind(dataset: RLDSDataset, kind: str) -> list[str]:
    """Return the step features of one kind, without lists."""
    features = dataset.features.items()
    return [name for name, feature in features if feature.kind == kind and not feature.ragged]


def _check_names(
    field: str, names: Iterable[str], known: Sequence[str], dataset: RLDSDataset
) -> None:
    for name in names:
        if not name or name in known:
            continue
        nearest = difflib.get_close_matches(name, known, 1)
        if nearest:
            hint = f"did you mean {nearest[0]!r}?"
        else:
            hint = f"it has {', '.join(known) or 'none'}"
        raise UserError(
            f"the adapter's {field} names {name!r}, which {dataset.directory} does not have; {hint}"
        )
