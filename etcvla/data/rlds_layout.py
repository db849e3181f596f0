"""The folder of a dataset as TFDS writes it: its files, its features, and how one stored value is decoded.

An RLDS dataset has `steps`; in any other (image and text, say) a record is read as an episode of one step.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import re
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from etcvla.data.storage import AnyPath, as_path

try:  # the same libjpeg-turbo, and the same pixels, a fifth faster; Pillow does where there is no wheel of it
    from simplejpeg import decode_jpeg, decode_jpeg_header
except ImportError:
    decode_jpeg = None

IMAGE_FORMATS = ("JPEG", "PNG")
_JPEG = b"\xff\xd8\xff"  # how every JPEG file begins
_SHARD = re.compile(
    r"(?P<prefix>.+)-(?P<split>[^-]+)\.(?:tfrecord|array_record)-(?P<shard>\d+)-of-(?P<shards>\d+)"
)


@dataclasses.dataclass(frozen=True)
class Feature:
    """One feature, per step or per episode.

    kind: "image" (uint8[H, W, channels]), "text" (str), "tensor" (dtype[shape]), or "other", which cannot be read.
    shape: of one value; None where it varies. dtype: of one value, as `np.dtype`; object for text.
    levels: how deep the lists are that every step (or episode) holds; 0: one value. Lists have any length.
    in_steps: the file has a list over steps around it. is_step: it is a step's; in a dataset without steps, all are.
    path: the name on disk, without what TFDS adds for lists.
    encoding: "none" for plain numbers, else how one value is packed into bytes.
    """

    name: str
    path: str
    kind: str
    dtype: np.dtype
    shape: tuple[int | None, ...]
    levels: int
    in_steps: bool
    is_step: bool
    encoding: str
    doc: str

    @functools.cached_property
    def width(self) -> int:
        """How many stored numbers or byte strings make up one value; 0 where that varies."""
        return math.prod(size or 0 for size in self.shape) if self.encoding == "none" else 1

    @functools.cached_property
    def ragged(self) -> bool:
        return self.levels > 0

    @functools.cached_property
    def is_plain(self) -> bool:
        """Whether the file has one entry a step, which most features have."""
        return self.in_steps and not self.ragged

    @functools.cached_property
    def list_paths(self) -> list[str]:
        """The columns of list lengths, outermost first. TFDS leaves out those of a record's outermost list."""
        return [
            f"{self.path}/ragged_row_lengths_{level}"
            for level in range(self.levels - (not self.in_steps))
        ]

    @functools.cached_property
    def values_path(self) -> str:
        return f"{self.path}/ragged_flat_values" if self.list_paths else self.path

    @functools.cached_property
    def count_path(self) -> str:
        """The column with one entry a value of the outermost list on disk."""
        return self.list_paths[0] if self.list_paths else self.path

    def decode(self, data: bytes | memoryview, buffer: np.ndarray | None = None) -> Any:
        """One value of a feature that is stored as bytes. Raises ValueError if it is not what it should be.

        Args:
          buffer: uint8[H, W, 3] that an image of this size is put into; it is returned then.
        """
        if self.kind == "image":
            return _decode_image(data, self.shape, self.dtype, buffer)
        if self.kind == "text":
            return bytes(data).decode()
        data = zlib.decompress(data) if self.encoding == "zlib" else data
        return self.shaped(np.frombuffer(data, self.dtype))

    def shaped(self, numbers: np.ndarray) -> np.ndarray:
        """Flat numbers of one value in its shape, of which one size may vary."""
        return numbers.reshape([-1 if size is None else size for size in self.shape])


def find_version(directory: AnyPath) -> AnyPath:
    """The folder with features.json: `directory`, or the one version inside it. Raises FileNotFoundError."""
    directory = as_path(directory)
    if (directory / "features.json").is_file():
        return directory
    inside = directory.iterdir() if directory.is_dir() else ()
    versions = sorted(
        path
        for path in inside
        if not path.name.startswith("incomplete.") and (path / "features.json").is_file()
    )
    if len(versions) > 1:
        raise FileNotFoundError(
            f"{directory} holds several datasets; name one: {', '.join(map(str, versions))}"
        )
    if not versions:
        problem = "has no features.json" if directory.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"no dataset: {directory} {problem}. Build one with data_builders (see the "
            "README), or give the version folder of a TFDS dataset (.../name/1.0.0)"
        )
    return versions[0]


def find_shards(directory: AnyPath, split: str) -> list[AnyPath]:
    """The split's files in order. The prefix is dataset_info.json's, not the folder's, which may differ.

    Raises FileNotFoundError if the split is unknown (listing those there) or a file is missing.
    """
    name = _read_info(directory).get("name")
    found = [match for path in directory.iterdir() if (match := _SHARD.fullmatch(path.name))]
    found = [match for match in found if name in (None, match["prefix"])] or found
    shards = {
        int(match["shard"]): directory / match.string for match in found if match["split"] == split
    }
    if not shards:
        raise FileNotFoundError(
            f"{directory} has no split {split!r} in TFRecord or ArrayRecord files; it has "
            + (", ".join(sorted({match["split"] for match in found})) or "no such files")
        )
    total = next(int(match["shards"]) for match in found if match["split"] == split)
    missing = sorted(set(range(total)) - set(shards))
    if missing:
        raise FileNotFoundError(
            f"{directory}, split {split}: files {missing} of {total} are missing"
        )
    return [shards[number] for number in range(total)]


def split_names(directory: AnyPath) -> list[str]:
    """The splits that have files."""
    return sorted(
        {match["split"] for path in directory.iterdir() if (match := _SHARD.fullmatch(path.name))}
    )


def shard_lengths(directory: AnyPath, split: str) -> list[int] | None:
    """Episodes in each file of the split as dataset_info.json has it; None if it does not say."""
    for info in _read_info(directory).get("splits", []):
        if info["name"] == split and "shardLengths" in info:
            return [int(length) for length in info["shardLengths"]]
    return None


def read_features(directory: AnyPath) -> tuple[dict[str, Feature], dict[str, Feature]]:
    """(step features, episode features) by name; "steps/" and "episode_metadata/" are left out of the names.

    A dataset without steps has one a record: all its features are the step's.

    Raises ValueError if features.json is none.
    """
    path = directory / "features.json"
    try:
        tree = json.loads(path.read_text())
        episodic = "steps" in tree["featuresDict"]["features"]
        found = list(_walk(tree, "", 0))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a TFDS feature description ({error!r})") from error
    if not episodic:
        found = [dataclasses.replace(feature, is_step=True) for feature in found]
    steps = {feature.name: feature for feature in found if feature.is_step}
    if not steps:
        raise ValueError(f"{path} describes no features")
    return steps, {feature.name: feature for feature in found if not feature.is_step}


def _walk(node: dict, path: str, depth: int) -> Iterator[Feature]:
    """Leaves below `node`; `depth` counts the sequences around it."""
    if "featuresDict" in node:
        for name, child in sorted(node["featuresDict"]["features"].items()):
            yield from _walk(child, f"{path}/{name}" if path else name, depth)
    elif "sequence" in node:
        yield from _walk(node["sequence"]["feature"], path, depth + 1)
    else:
        yield _leaf(node, path, depth)


def _leaf(node: dict, path: str, depth: int) -> Feature:
    kind, dtype, shape, encoding = _describe(node)
    in_steps = path.startswith("steps/")
    name = path.removeprefix("steps/").removeprefix("episode_metadata/")
    return Feature(
        name,
        path,
        kind,
        dtype,
        shape,
        depth - in_steps,
        in_steps,
        in_steps,
        encoding,
        node.get("description", ""),
    )


def _describe(node: dict) -> tuple[str, np.dtype, tuple, str]:
    """(kind, dtype, shape, encoding) of a leaf in features.json."""
    if "image" in node:
        return (
            "image",
            np.dtype(node["image"].get("dtype", "uint8")),
            _shape(node["image"]),
            "image",
        )
    if "text" in node:
        return "text", np.dtype(object), (), "text"
    if "classLabel" in node:
        return "tensor", np.dtype(np.int64), (), "none"
    tensor = node.get("tensor") or node.get("boundingBox", {})
    shape, name = _shape(tensor), tensor.get("dtype", "")
    if name in ("string", "object") and shape == ():
        return "text", np.dtype(object), (), "text"
    try:
        dtype = np.dtype(name or object)
    except TypeError:
        dtype = np.dtype(object)
    encoding = tensor.get("encoding", "none").lower()
    kind = "other" if dtype.kind == "O" or shape.count(None) > 1 else "tensor"
    return kind, dtype, shape, encoding


def _shape(node: dict) -> tuple[int | None, ...]:
    sizes = [int(size) for size in node.get("shape", {}).get("dimensions", [])]
    return tuple(None if size < 0 else size for size in sizes)


def _decode_image(
    data: bytes | memoryview, shape: tuple, dtype: np.dtype, buffer: np.ndarray | None
) -> np.ndarray:
    if decode_jpeg is not None and shape[-1:] == (3,) and bytes(data[:3]) == _JPEG:
        # A fresh array of this size costs a fifth of decoding into it: the kernel clears its pages each time.
        if (
            buffer is not None
            and (*(decode_jpeg_header(data)[:2] if None in shape else shape[:2]), 3) != buffer.shape
        ):
            buffer = None
        return _of_shape(decode_jpeg(data, colorspace="RGB", buffer=buffer), shape)
    image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    if shape[-1:] == (3,) and image.mode != "RGB":
        image = image.convert("RGB")
    pixels = np.asarray(image, dtype)
    pixels = _of_shape(pixels[..., None] if pixels.ndim == 2 else pixels, shape)
    if buffer is None or pixels.shape != buffer.shape:
        return pixels
    buffer[...] = pixels
    return buffer


def _of_shape(pixels: np.ndarray, shape: tuple) -> np.ndarray:
    if any(want not in (None, size) for want, size in zip(shape, pixels.shape, strict=True)):
        raise ValueError(f"shape {pixels.shape}, features.json says {shape}")
    return pixels


def _read_info(directory: AnyPath) -> dict:
    path = directory / "dataset_info.json"
    return json.loads(path.read_text()) if path.is_file() else {}
