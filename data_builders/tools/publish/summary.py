"""Facts about a dataset on disk, for its card, its statistics and its Croissant file."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

from data_builders.common.read_dataset import (
    full_name,
    has_items,
    iterate_items,
    read_info,
    read_metadata,
)
from etcvla.data.norm_stats import compute_norm_stats
from etcvla.data.rlds import RLDSDataset
from etcvla.data.rlds_layout import find_version
from etcvla.etc.statistics import item_statistics
from etcvla.files import hash_json

PAPER = "https://arxiv.org/abs/2606.08520"


@dataclasses.dataclass(frozen=True)
class DatasetSummary:
    """The version folder of a dataset."""

    directory: Path
    name: str  # "name/config/version"
    info: dict[str, Any]  # dataset_info.json
    metadata: dict[str, Any]  # metadata.json; {} if the builder wrote none
    splits: dict[str, RLDSDataset]

    @classmethod
    def load(cls, directory: str | Path) -> DatasetSummary:
        """Open every split. Raises what `RLDSDataset` does."""
        version = find_version(Path(directory))
        info = read_info(version)
        names = [split["name"] for split in info["splits"]]
        splits = {name: RLDSDataset(version, name) for name in names}
        return cls(version, full_name(version), info, read_metadata(version), splits)

    @property
    def license(self) -> str:
        """License that the builder states, "" without one."""
        return self.info.get("redistributionInfo", {}).get("license", "")

    @property
    def url(self) -> str:
        """Homepage that the builder states, else the paper of the method."""
        urls = self.info.get("location", {}).get("urls", [])
        return urls[0] if urls else PAPER

    @property
    def first_split(self) -> RLDSDataset:
        """The first split; features are the same in all splits."""
        return next(iter(self.splits.values()))

    @property
    def has_items(self) -> bool:
        """Whether the dataset has ETC items."""
        return has_items(self.first_split)

    @property
    def has_actions(self) -> bool:
        """Whether the dataset has actions."""
        return "action" in self.first_split.features

    def vectors(self) -> list[str]:
        """Return the step features with statistics: the action and the numeric observations."""
        names = []
        for name, feature in self.first_split.features.items():
            is_float = feature.kind == "tensor" and feature.dtype.kind == "f"
            is_vector = name == "action" or name.startswith("observation/")
            if is_float and is_vector and not feature.ragged:
                names.append(name)
        return names

    def transform(self) -> dict[str, Any]:
        """Return which values the statistics describe, in words and as a hash.

        Statistics of other features, or of features with another meaning, have another hash.
        """
        features = {}
        for name in self.vectors():
            feature = self.first_split.features[name]
            features[name] = {
                "dtype": str(feature.dtype),
                "shape": feature.shape,
                "doc": feature.doc,
            }
        document = {"values": "as stored, every step of every episode", "features": features}
        return document | {"sha256": hash_json(document)}

    def statistics(self) -> dict[str, Any]:
        """Return statistics.json: exact statistics of vectors, and counts of items, by split.

        Raises ValueError that names file, record and step for a value that is not finite.
        """
        return {
            "dataset": self.name,
            "transform": self.transform(),
            "splits": {name: self._split_statistics(split) for name, split in self.splits.items()},
        }

    def _split_statistics(self, dataset: RLDSDataset) -> dict[str, Any]:
        statistics = {"episodes": dataset.num_episodes, "frames": dataset.num_frames}
        metadata = [dataset.metadata(episode) for episode in range(dataset.num_episodes)]
        for key in ("task", "scene"):
            if key in metadata[0]:
                counts = Counter(str(row[key]) for row in metadata)
                statistics[f"episodes_by_{key}"] = dict(counts.most_common())
        vectors = compute_norm_stats(dataset, self.vectors())
        statistics["features"] = {name: stats.to_dict() for name, stats in vectors.items()}
        items = []
        if self.has_items:
            for frame_items in iterate_items(dataset):
                items += frame_items
        statistics["items"] = item_statistics(items) if self.has_items else {}
        return statistics
