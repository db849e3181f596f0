"""Base classes of the importers of image-text datasets (multimodal data, MM).

One image is one episode of one step, and each turn of its conversation is an item. Entries that
cannot be used are left out and counted by reason.
"""

from __future__ import annotations

import abc
import dataclasses
import sys
import zlib
from collections import Counter
from collections.abc import Iterator

import tensorflow_datasets as tfds

from data_builders.common.build import EpisodeBuilder
from data_builders.common.mm_entry import EntryError, MMEntry
from data_builders.common.mm_items import make_item, normalize_kind, to_jpeg
from data_builders.common.mm_locations import LOCATION_FORMATS
from data_builders.common.rlds_schema import encode_items, vqa_features
from etcvla.errors import UserError
from etcvla.names import lookup

TEMPLATE = "template"  # registered config from which `tfds build --config=JSON` takes the class


@dataclasses.dataclass
class MMConfig(tfds.core.BuilderConfig):
    """How entries become items."""

    name: str = ""
    held_out: float = 0.02  # share of the images in the split "val"
    max_side: int = 640  # pixels to which a longer side is reduced; 0: no limit
    kind: str = ""  # of items whose entry names none; "": `DEFAULT_KIND`
    locations: str = "text"  # format of boxes and points, a key of `LOCATION_FORMATS`
    source: str = "unknown"  # origin of the answers: "human" or "model:<name>"
    license: str = ""  # SPDX identifier of the license of images and answers

    def __post_init__(self):
        lookup(LOCATION_FORMATS, self.locations, "locations")
        if not 0 <= self.held_out < 1:
            raise UserError(f"held_out {self.held_out} must be in [0, 1)")
        if self.max_side < 0:
            raise UserError(f"max_side {self.max_side} must be at least 0")


class MMBuilder(EpisodeBuilder, skip_registration=True):
    """Writes the entries that a subclass reads."""

    VERSION = tfds.core.Version("1.0.0")

    @abc.abstractmethod
    def entries(self) -> Iterator[MMEntry | EntryError]:
        """Yield all entries in a fixed order; an EntryError in place of an unusable entry."""

    def origin(self) -> dict[str, str]:
        """Return arguments of tfds.core.DatasetInfo that the source states: homepage, license."""
        return {}

    def _info(self) -> tfds.core.DatasetInfo:
        origin = self.origin()
        if self.builder_config.license:
            origin["license"] = self.builder_config.license
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=vqa_features(image_size=None),
            metadata=self.provenance(("pillow",), seeding="an image's split: crc32 of its file"),
            **origin,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        splits = ("train", "val") if self.builder_config.held_out else ("train",)
        return {split: self._generate_examples(split) for split in splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        counts: Counter[str] = Counter()
        dropped: Counter[str] = Counter()
        for number, entry in enumerate(self.entries()):
            try:
                if isinstance(entry, EntryError):
                    raise entry
                if split_of_image(entry.image, self.builder_config.held_out) != split:
                    continue
                example = _encode_entry(entry, number, self.builder_config, dropped)
            except EntryError as error:
                dropped[f"entry: {error}"] += 1
                continue
            counts["episodes"] += 1
            counts["items"] += len(example["steps"][0]["etc"])
            yield example["episode_metadata"]["episode_id"], example
        self._report(split, counts, dropped)

    def _report(self, split: str, counts: Counter[str], dropped: Counter[str]) -> None:
        """Print the counts and add them to the metadata; raise UserError if the split is empty."""
        earlier = Counter(self.info.metadata.get("dropped_items"))
        self.info.metadata["dropped_items"] = dict(earlier + dropped)
        lines = [f"{name}: {count}" for name, count in counts.most_common()]
        lines += [f"dropped {reason}: {count}" for reason, count in dropped.most_common()]
        summary = ", ".join(lines) or "there are no entries"
        name = f"{self.info.full_name} {split}"
        print(f"{name}: {summary}", file=sys.stderr)
        if not counts["episodes"]:
            hint = "" if split == "train" else "; raise --held_out, or set it to 0"
            raise UserError(f"{name}: no entry can be used ({summary}){hint}")


def split_of_image(image: bytes, held_out: float) -> str:
    """Return the split of an image file.

    It depends on the image alone, so that the same image with other questions is in the same split.
    """
    return "val" if zlib.crc32(image) / 2**32 < held_out else "train"


def _encode_entry(entry: MMEntry, number: int, config: MMConfig, dropped: Counter[str]) -> dict:
    items = []
    for question, answer in entry.turns:
        try:
            item = make_item(
                question,
                answer,
                kind=normalize_kind(entry.kind or config.kind),
                locations=config.locations,
                source=config.source,
            )
            items.append(item)
        except EntryError as error:
            dropped[f"turn: {error}"] += 1
    if not items:
        raise EntryError("no usable turn")
    step = {
        "observation": {"image": to_jpeg(entry.image, config.max_side)},
        "etc": encode_items(items),
    }
    return {"steps": [step], "episode_metadata": {"episode_id": f"{entry.name}/{number}"}}
