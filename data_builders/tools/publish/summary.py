"""What is known of a dataset on disk, gathered once for card, statistics and Croissant."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from data_builders.tools.gallery import ITEM_FIELDS, full_name
from etcvla.data.norm_stats import compute_norm_stats
from etcvla.data.rlds import RLDSDataset
from etcvla.data.rlds_layout import find_version
from etcvla.etc.items import Item
from etcvla.etc.statistics import item_statistics


@dataclasses.dataclass(frozen=True)
class DatasetFacts:
    """One version folder.

    info: dataset_info.json. made: metadata.json, how it was made ({} where the builder did not say).
    """

    directory: Path
    name: str  # "name/config/version"
    info: dict[str, Any]
    made: dict[str, Any]
    splits: dict[str, RLDSDataset]

    @classmethod
    def gather(cls, directory: str | Path) -> DatasetFacts:
        """Opens every split. Raises what `RLDSDataset` does."""
        found = find_version(Path(directory))
        info = json.loads((found / "dataset_info.json").read_text())
        made = found / "metadata.json"
        return cls(
            found,
            full_name(found),
            info,
            json.loads(made.read_text()) if made.exists() else {},
            {split["name"]: RLDSDataset(found, split["name"]) for split in info["splits"]},
        )

    @property
    def license(self) -> str:
        """As the builder states it; "" where it does not."""
        return self.info.get("redistributionInfo", {}).get("license", "")

    @property
    def url(self) -> str:
        """The dataset's page as its builder states it, else the paper of the method."""
        return next(
            iter(self.info.get("location", {}).get("urls", [])), "https://arxiv.org/abs/2606.08520"
        )

    @property
    def any_split(self) -> RLDSDataset:
        """For what is the same in all splits: the features."""
        return next(iter(self.splits.values()))

    @property
    def has_items(self) -> bool:
        return "etc/kind" in self.any_split.features

    def vectors(self) -> list[str]:
        """Names of the step features that statistics are made of: the action and what is observed in numbers."""
        return [
            name
            for name, feature in self.any_split.features.items()
            if feature.kind == "tensor"
            and not feature.ragged
            and feature.dtype.kind == "f"
            and (name == "action" or name.startswith("observation/"))
        ]

    def transform(self) -> dict[str, Any]:
        """Which values the statistics speak of, in words and as a hash: who transforms otherwise has another hash."""
        features = self.any_split.features
        stored = {
            name: {
                "dtype": str(features[name].dtype),
                "shape": features[name].shape,
                "doc": features[name].doc,
            }
            for name in self.vectors()
        }
        document = {"values": "as stored, every step of every episode", "features": stored}
        return document | {
            "sha256": hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
        }

    def statistics(self) -> dict[str, Any]:
        """What statistics.json holds: exact numbers for each feature and split, and counts of items.

        Raises ValueError, naming file, record and step, where a value is not finite.
        """
        return {
            "dataset": self.name,
            "transform": self.transform(),
            "splits": {
                split: self._split_statistics(dataset) for split, dataset in self.splits.items()
            },
        }

    def _split_statistics(self, dataset: RLDSDataset) -> dict[str, Any]:
        numbers = {
            name: stats.to_dict()
            for name, stats in compute_norm_stats(dataset, self.vectors()).items()
        }
        about = [dataset.metadata(episode) for episode in range(dataset.num_episodes)]
        counts = {
            f"episodes_by_{key}": dict(Counter(str(row[key]) for row in about).most_common())
            for key in ("task", "scene")
            if key in about[0]
        }
        items = item_statistics(_all_items(dataset)) if self.has_items else {}
        return {
            "episodes": dataset.num_episodes,
            "frames": dataset.num_frames,
            **counts,
            "features": numbers,
            "items": items,
        }


def _all_items(dataset: RLDSDataset) -> list[Item]:
    columns = [dataset.column(f"etc/{field}") for field in ITEM_FIELDS]
    return [
        Item(*texts) for step in zip(*columns, strict=True) for texts in zip(*step, strict=True)
    ]
