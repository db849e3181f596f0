"""The folder of a dataset as TFDS writes it: its files, its features, and how to decode a value."""

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
from etcvla.errors import UserError

try:  # it decodes to the same pixels as Pillow, a fifth faster; it has no wheel for some platforms
    from simplejpeg import decode_jpeg, decode_jpeg_header
except ImportError:
    decode_jpeg = None

IMAGE_FORMATS = ("JPEG", "PNG")
_JPEG_MAGIC = b"\xff\xd8\xff"  # the first bytes of a JPEG file
_SHARD_NAME = re.compile(
    r".+-(?P<split>[^-]+)\.(?:tfrecord|array_record)-(?P<shard>\d+)-of-(?P<shards>\d+)"
)
Shape = tuple[int | None, ...]  # None: the size varies


@dataclasses.dataclass(frozen=True)
class Feature:
    """One feature of a step or of an episode.

    Attributes:
      name: name without "steps/" and "episode_metadata/".
      path: name on disk, without the suffixes that TFDS adds for lists.
      kind: "image" (uint8[H, W, channels]), "text" (str), "tensor" (dtype[shape]), or "other",
        which cannot be read.
      dtype: dtype of a value; object for text.
      shape: shape of a value.
      levels: depth of the lists of values that a step (or episode) has; 0: one value. The lists
        have any length.
      in_steps: the feature belongs to a step, else to the episode.
      encoding: "none" for plain numbers, else how a value is packed into bytes.
      doc: the description in features.json.
    """

    name: str
    path: str
    kind: str
    dtype: np.dtype
    shape: Shape
    levels: int
    in_steps: bool
    encoding: str
    doc: str

    @functools.cached_property
    def width(self) -> int:
        """Number of stored numbers or byte strings per value; 0 where it varies."""
        if self.encoding != "none":
            return 1
        return math.prod(size or 0 for size in self.shape)

    @functools.cached_property
    def reshape_sizes(self) -> list[int]:
        """The shape as NumPy's `reshape` takes it: -1 for the size that varies, if any."""
        return [-1 if size is None else size for size in self.shape]

    @functools.cached_property
    def ragged(self) -> bool:
        """Whether a step (or episode) has a list of values."""
        return self.levels > 0

    @functools.cached_property
    def is_tensor(self) -> bool:
        """Whether a step has one tensor."""
        return self.kind == "tensor" and not self.ragged

    @functools.cached_property
    def is_plain(self) -> bool:
        """Whether the file has one value per step, as for most features."""
        return self.in_steps and not self.ragged

    @functools.cached_property
    def list_paths(self) -> list[str]:
        """The columns of list lengths, outermost first; an episode's top list has none."""
        num_columns = self.levels if self.in_steps else self.levels - 1
        return [f"{self.path}/ragged_row_lengths_{level}" for level in range(num_columns)]

    @functools.cached_property
    def values_path(self) -> str:
        """The column of the values."""
        return f"{self.path}/ragged_flat_values" if self.list_paths else self.path

    @functools.cached_property
    def count_path(self) -> str:
        """The column with one entry per element of the outermost list on disk."""
        return self.list_paths[0] if self.list_paths else self.path

    def decode(self, data: bytes | memoryview, buffer: np.ndarray | None = None) -> Any:
        """Decode a value that is stored as bytes.

        Args:
          buffer: uint8[H, W, 3]; a JPEG of this size is decoded into it and it is returned.

        Raises ValueError if the value does not match the feature.
        """
        if self.kind == "image":
            return _decode_image(data, self.shape, self.dtype, buffer)
        if self.kind == "text":
            return bytes(data).decode()
        if self.encoding == "zlib":
            data = zlib.decompress(data)
        return np.frombuffer(data, self.dtype).reshape(self.reshape_sizes)


def find_version(directory: AnyPath) -> AnyPath:
    """Return the folder with features.json: `directory`, or the only version inside it.

    Raises UserError if there is no dataset, or several versions.
    """
    directory = as_path(directory)
    if (directory / "features.json").is_file():
        return directory
    folders = sorted(directory.iterdir()) if directory.is_dir() else []
    folders = [folder for folder in folders if not folder.name.startswith("incomplete.")]
    versions = [folder for folder in folders if (folder / "features.json").is_file()]
    if len(versions) == 1:
        return versions[0]
    if versions:
        raise UserError(
            f"{directory} has several datasets; choose one: {', '.join(map(str, versions))}"
        )
    raise UserError(
        f"no dataset: {directory} does not exist or has no features.json. Build one with "
        "data_builders (see the README), or give the version folder of a TFDS dataset "
        "(.../name/1.0.0)"
    )


def find_shards(directory: AnyPath, split: str) -> list[AnyPath]:
    """Return the files of a split in order.

    Raises UserError if there is no such split (listing the splits) or a file is missing.
    """
    files = _shard_files(directory)
    split_files = [match for match in files if match["split"] == split]
    if not split_files:
        splits = sorted({match["split"] for match in files})
        raise UserError(
            f"{directory} has no split {split!r} in TFRecord or ArrayRecord files; it has "
            f"{', '.join(splits) or 'no such files'}"
        )
    total = int(split_files[0]["shards"])
    shards = {int(match["shard"]): directory / match.string for match in split_files}
    missing = sorted(set(range(total)) - set(shards))
    if missing:
        raise UserError(
            f"{directory}, split {split}: files {missing} of {total} are missing; "
            "copy or build the dataset again"
        )
    return [shards[number] for number in range(total)]


def split_names(directory: AnyPath) -> list[str]:
    """Return the names of the splits that have files, sorted."""
    return sorted({match["split"] for match in _shard_files(directory)})


def _shard_files(directory: AnyPath) -> list[re.Match]:
    """Return the files of records in a folder, as matches of their names."""
    matches = [_SHARD_NAME.fullmatch(path.name) for path in directory.iterdir()]
    return [match for match in matches if match]


def shard_lengths(directory: AnyPath, split: str) -> list[int] | None:
    """Return the episodes in each file of a split by dataset_info.json; None if not given."""
    for info in _read_info(directory).get("splits", []):
        if info["name"] == split and "shardLengths" in info:
            return [int(length) for length in info["shardLengths"]]
    return None


def read_features(directory: AnyPath) -> tuple[dict[str, Feature], dict[str, Feature]]:
    """Read features.json. Returns: (step features, episode features) by name.

    Raises UserError if the file is not a TFDS feature description, or has no steps.
    """
    path = directory / "features.json"
    try:
        features = list(_walk(json.loads(path.read_text()), "", 0))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a TFDS feature description ({error!r})") from error
    step_features = {feature.name: feature for feature in features if feature.in_steps}
    if not step_features:
        raise UserError(
            f"{path} describes no features of steps; convert the dataset with "
            "data_builders.mm_tfds or give one of episodes"
        )
    return step_features, {feature.name: feature for feature in features if not feature.in_steps}


def _walk(node: dict, path: str, depth: int) -> Iterator[Feature]:
    """Yield the leaf features below `node`; `depth` counts the sequences around it."""
    if "featuresDict" in node:
        for name, child in sorted(node["featuresDict"]["features"].items()):
            yield from _walk(child, f"{path}/{name}" if path else name, depth)
    elif "sequence" in node:
        yield from _walk(node["sequence"]["feature"], path, depth + 1)
    else:
        yield _leaf(node, path, depth)


def _leaf(node: dict, path: str, depth: int) -> Feature:
    kind, dtype, shape, encoding = _leaf_type(node)
    in_steps = path.startswith("steps/")
    return Feature(
        name=path.removeprefix("steps/").removeprefix("episode_metadata/"),
        path=path,
        kind=kind,
        dtype=dtype,
        shape=shape,
        levels=depth - 1 if in_steps else depth,
        in_steps=in_steps,
        encoding=encoding,
        doc=node.get("description", ""),
    )


def _leaf_type(node: dict) -> tuple[str, np.dtype, Shape, str]:
    """Return (kind, dtype, shape, encoding) of a leaf in features.json."""
    body = node.get("image") or node.get("tensor") or node.get("boundingBox") or {}
    sizes = [int(size) for size in body.get("shape", {}).get("dimensions", [])]
    shape = tuple(None if size < 0 else size for size in sizes)
    dtype_name = body.get("dtype", "")
    is_text_tensor = dtype_name in ("string", "object") and not shape
    if "image" in node:
        return "image", np.dtype(dtype_name or "uint8"), shape, "image"
    if "text" in node or is_text_tensor:
        return "text", np.dtype(object), (), "text"
    if "classLabel" in node:
        return "tensor", np.dtype(np.int64), (), "none"
    try:
        dtype = np.dtype(dtype_name or object)
    except TypeError:
        dtype = np.dtype(object)
    is_readable = dtype.kind != "O" and shape.count(None) <= 1
    encoding = body.get("encoding", "none").lower()
    return "tensor" if is_readable else "other", dtype, shape, encoding


def _decode_image(
    data: bytes | memoryview, shape: Shape, dtype: np.dtype, buffer: np.ndarray | None
) -> np.ndarray:
    if decode_jpeg is not None and shape[-1:] == (3,) and bytes(data[:3]) == _JPEG_MAGIC:
        # Decoding into a buffer is a fifth faster than into a new array, whose pages the kernel
        # has to clear.
        if buffer is not None:
            height_width = decode_jpeg_header(data)[:2] if None in shape else shape[:2]
            if (*height_width, 3) != buffer.shape:
                buffer = None
        return _check_shape(decode_jpeg(data, colorspace="RGB", buffer=buffer), shape)
    image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    if shape[-1:] == (3,) and image.mode != "RGB":
        image = image.convert("RGB")
    pixels = np.asarray(image, dtype)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    return _check_shape(pixels, shape)


def _check_shape(pixels: np.ndarray, shape: Shape) -> np.ndarray:
    """Return the image. Raises ValueError if it has another shape than features.json says."""
    for expected, size in zip(shape, pixels.shape, strict=True):
        if expected not in (None, size):
            raise ValueError(f"shape {pixels.shape}, features.json says {shape}")
    return pixels


def _read_info(directory: AnyPath) -> dict:
    path = directory / "dataset_info.json"
    return json.loads(path.read_text()) if path.is_file() else {}
