"""Does a line of the table of datasets (`etcvla.data.adapters`) fit the dataset that gets ETC?"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Sequence

from etcvla.data.adapters import Adapter
from etcvla.data.rlds import RLDSDataset

IMAGES = "observation/"


def fit(adapter: Adapter, dataset: RLDSDataset) -> Adapter:
    """The adapter with its cameras filled in (all there are, unless it names some), if all that ETC is made from is in
    `dataset`.

    Raises ValueError that says which field names what is not there, and what is.
    """
    images = [
        name
        for name, feature in dataset.features.items()
        if feature.kind == "image"
        and not feature.ragged
        and name.startswith(IMAGES)
        and feature.shape[-1] == 3
    ]
    if not images:
        raise ValueError(
            f"{dataset.directory} has no images under steps/observation: ETC speaks of images"
        )
    cameras = adapter.cameras or {name.removeprefix(IMAGES): name for name in images}
    _demand("cameras", cameras.values(), images, dataset)
    for kind, fields in {
        "text": {"instruction": adapter.instruction},
        "tensor": {
            "annotation.position": adapter.annotation.position[:1],
            "annotation.opening": adapter.annotation.opening[:1],
        },
    }.items():
        there = [
            name
            for name, feature in dataset.features.items()
            if feature.kind == kind and not feature.ragged
        ]
        for field, names in fields.items():
            _demand(field, filter(None, names), there, dataset)
    return dataclasses.replace(adapter, cameras=dict(cameras))


def _demand(field: str, names: Iterable[str], there: Sequence[str], dataset: RLDSDataset) -> None:
    for name in names:
        if name not in there:
            near = difflib.get_close_matches(name, there, 1)
            raise ValueError(
                f"the adapter's {field} names {name!r}, which {dataset.directory} does not have"
                + (
                    f"; did you mean {near[0]!r}?"
                    if near
                    else f"; it has {', '.join(there) or 'none'}"
                )
            )
