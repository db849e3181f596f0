"""Image-text entries of other people as our schema: what every importer of multimodal (MM) data shares.

One image is one episode of one step; each turn of a conversation is an item of its own. An entry that is not what it
should be is left out and counted by reason.
"""

from __future__ import annotations

import abc
import dataclasses
import io
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator

import tensorflow_datasets as tfds
from PIL import Image, UnidentifiedImageError

from data_builders.common.build import EpisodeBuilder, provenance
from data_builders.common.rlds_schema import encode_items, vqa_features
from etcvla.etc.items import ETC_KINDS, NUM_LOC, Item, format_loc, parse_loc
from etcvla.names import lookup

LOCATIONS = {
    "text": "as they are written",
    "loc": "<locNNNN> tokens, checked",
    "xy1000": "integers 0..1000 in brackets, x before y",
    "yx1000": "integers 0..1000 in brackets, y before x",
    "integers": f"integers 0..{NUM_LOC - 1} in brackets, y before x, as our own builders write them",
}
TEMPLATE = (
    "template"  # a config by which `tfds build --config=JSON` learns what a builder's configs are
)
_BRACKETS = re.compile(r"[\[(]\s*(\d+(?:\s*,\s*\d+)+)\s*[\])]")
_LIST_OF_LOCS = re.compile(r"\[\s*((?:<loc\d{4}>)+(?:\s*,?\s*(?:<loc\d{4}>)+)*)\s*\]")
_LOC = re.compile(r"<loc[^>]*>")


UNKNOWN_KIND = "vqa"  # of the grade "general": no trajectory is known to stand behind it


class BadEntry(ValueError):
    """An entry cannot be used; the message is one of few, to be counted."""


@dataclasses.dataclass(frozen=True)
class MMEntry:
    """An image and what is said of it. `image` is an encoded file; `turns` are (question, answer)."""

    name: str
    image: bytes
    turns: tuple[tuple[str, str], ...]
    kind: str


@dataclasses.dataclass
class MMConfig(tfds.core.BuilderConfig):
    """How entries become items.

    val: share of the images held out. max_side: pixels of the longer side, to which larger images are scaled; 0 keeps
    all as they are. kind: of items whose entry names none; "" is `UNKNOWN_KIND`. locations: how boxes and points are
    written, a name of `LOCATIONS`. source: who stands behind the answers, "human" or "model:<name>". license: SPDX's
    name of what images and answers are under.
    """

    name: str = ""
    val: float = 0.02
    max_side: int = 640
    kind: str = ""
    locations: str = "text"
    source: str = "unknown"
    license: str = ""

    def __post_init__(self):
        lookup(LOCATIONS, self.locations, "locations")
        if not 0 <= self.val < 1 or self.max_side < 0:
            raise ValueError(
                f"val {self.val} must be in [0, 1), max_side {self.max_side} at least 0"
            )


class MMBuilder(EpisodeBuilder, skip_registration=True):
    """Writes what `entries` yields: an `MMEntry`, or the `BadEntry` in its place."""

    VERSION = tfds.core.Version("1.0.0")

    @abc.abstractmethod
    def entries(self) -> Iterator[MMEntry | BadEntry]:
        """All entries in order, the same each time."""

    def origin(self) -> dict[str, str]:
        """Homepage, citation and license, by `tfds.core.DatasetInfo`'s names, where the entries' source tells them."""
        return {}

    def _info(self) -> tfds.core.DatasetInfo:
        stated = {"license": self.builder_config.license} if self.builder_config.license else {}
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=vqa_features(image_size=None),
            metadata=provenance(
                self.builder_config, ("pillow",), seeds="an image's split: crc32 of its file"
            ),
            **self.origin() | stated,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        splits = ("train", "val") if self.builder_config.val else ("train",)
        return {split: self._generate_examples(split) for split in splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        counts: Counter = Counter()
        for number, entry in enumerate(self.entries()):
            try:
                if isinstance(entry, BadEntry):
                    raise entry
                if split_of(entry.image, self.builder_config.val) != split:
                    continue
                example = _example(f"{entry.name}/{number}", entry, self.builder_config, counts)
            except BadEntry as error:
                counts[f"left out, {error}"] += 1
                continue
            counts["episodes"] += 1
            counts["items"] += len(example["steps"][0]["etc"])
            yield example["episode_metadata"]["episode_id"], example
        dropped = Counter({what: count for what, count in counts.items() if "left out" in what})
        self.info.metadata["dropped"] = dict(dropped + Counter(self.info.metadata.get("dropped")))
        found = ", ".join(f"{what}: {count}" for what, count in counts.most_common())
        print(f"{self.info.full_name} {split}: {found or 'nothing found'}", file=sys.stderr)
        if not counts["episodes"]:
            hint = "" if split == "train" else "; hold out more by --val, or nothing by --val=0"
            found = found or "there are none"
            raise ValueError(
                f"{self.info.full_name} {split}: no entry could be used ({found}){hint}"
            )


def split_of(image: bytes, val: float) -> str:
    """By the image itself: the same picture with other questions must not lie in both splits."""
    return "val" if zlib.crc32(image) / 2**32 < val else "train"


def _example(name: str, entry: MMEntry, config: MMConfig, counts: Counter) -> dict:
    items = []
    for question, answer in entry.turns:
        try:
            items.append(
                make_item(
                    question,
                    answer,
                    kind=kind_of(entry.kind or config.kind),
                    locations=config.locations,
                    source=config.source,
                )
            )
        except BadEntry as error:
            counts[f"turn left out, {error}"] += 1
    if not items:
        raise BadEntry("no turn left")
    step = {
        "observation": {"image": as_jpeg(entry.image, config.max_side)},
        "etc": encode_items(items),
    }
    return {"steps": [step], "episode_metadata": {"episode_id": name}}


def kind_of(told: str) -> str:
    """The kind of items that are told to be of it: ETC's own by their names however written, others as they are.

    >>> kind_of("Task Planning"), kind_of("ocr"), kind_of("")
    ('task_planning', 'ocr', 'vqa')
    """
    name = re.sub(r"[^a-z]+", "_", told.lower())
    found = [kind for kind in ETC_KINDS if kind in name]
    return found[0] if len(found) == 1 else told or UNKNOWN_KIND


def make_item(question: str, answer: str, *, kind: str, locations: str, source: str) -> Item:
    """One turn. Raises BadEntry where a text is empty or a location is none."""
    paths = kind == "trajectory"
    question, answer = (
        to_loc(" ".join(text.split()), locations, paths=paths) for text in (question, answer)
    )
    if not question or not answer:
        raise BadEntry("empty question or answer")
    return Item(kind, _form(answer, kind), question, answer, source)


def to_loc(text: str, locations: str, *, paths: bool = False) -> str:
    """`text` with its boxes, points and paths as location tokens, y before x.

    >>> to_loc("the cup is at [100, 200, 300, 400].", "xy1000")
    'the cup is at <loc0204><loc0102><loc0409><loc0307>.'

    Args:
      paths: two points are a path, not a box.

    Raises BadEntry for a number that is too large, an empty box or a malformed token.
    """
    if locations == "text":
        return text
    if locations != "loc":
        text = _BRACKETS.sub(lambda found: _place(found, locations, paths), text)
    if not all(
        re.fullmatch(r"<loc\d{4}>", token) and int(token[4:8]) < NUM_LOC
        for token in _LOC.findall(text)
    ):
        raise BadEntry("a malformed location")
    return _LIST_OF_LOCS.sub(lambda found: re.sub(r"[\s,]", "", found[1]), text)


def _place(found: re.Match, locations: str, paths: bool) -> str:
    numbers = [int(number) for number in found[1].split(",")]
    if len(numbers) % 2:
        return found[0]
    most = NUM_LOC - 1 if locations == "integers" else 1000
    if max(numbers) > most:
        raise BadEntry(f"a location beyond {most}")
    pairs = [numbers[i : i + 2] for i in range(0, len(numbers), 2)]
    pairs = [pair[::-1] for pair in pairs] if locations == "xy1000" else pairs
    if len(pairs) == 2 and not paths and any(high <= low for low, high in zip(*pairs, strict=True)):
        raise BadEntry("an empty box")
    # The middle of a bin, or a share of the image.
    shift, whole = (0.5, NUM_LOC) if locations == "integers" else (0.0, 1000)
    return format_loc([(number + shift) / whole for pair in pairs for number in pair])


def _form(answer: str, kind: str) -> str:
    """How the answer is read and scored."""
    points = parse_loc(answer, 2)
    if points is None:
        return "vqa"
    if kind == "trajectory" and len(points) > 1:
        return "trace"
    # Two corners are a box; more points are a list that no score reads as a whole.
    return {1: "locate_point", 2: "locate_box"}.get(len(points), "vqa")


def as_jpeg(data: bytes, max_side: int) -> bytes:
    """An image file as an RGB JPEG, as it is where it is one already. Raises BadEntry if it does not decode."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            small = not max_side or max(image.size) <= max_side
            image.load()
            if image.format == "JPEG" and image.mode == "RGB" and small:
                return data
            image = image.convert("RGB")
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as error:
        raise BadEntry("the image does not decode") from error
    if not small:
        image.thumbnail((max_side, max_side))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    return file.getvalue()
