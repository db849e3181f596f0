"""Cache arrays that are computed from a split's files; they are discarded if the files change."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from etcvla.data.storage import AnyPath, RemotePath

VERSION = 3  # version of all cached arrays; arrays of another version are computed again
# Folder of the caches of data that are remote or in a read-only folder; ETCVLA_INDEX overrides it.
INDEX_FOLDER = "~/.cache/etcvla/frame_index"
log = logging.getLogger(__name__)
Entry = tuple[dict, list[np.ndarray]]  # (JSON values that describe the arrays, arrays)


@dataclasses.dataclass(frozen=True)
class IndexCache:
    """The cached arrays of a split.

    An entry is a file with one JSON header (stored as an array of bytes) and arrays behind it. A
    truncated file, or one with another `key`, counts as missing.

    Attributes:
      folders: where entries may be, best first; an entry is written to the first writable folder.
      key: JSON values that identify the dataset's files and their present content.
    """

    folders: Sequence[Path]
    key: Mapping[str, Any]

    def below(self, name: str) -> IndexCache:
        """Return the cache of a view of the same files; `name` identifies the view."""
        return IndexCache([folder / name for folder in self.folders], self.key)

    def load(self, name: str) -> Entry | None:
        """Return an entry, or None if it is missing. Its arrays are mapped and read-only."""
        for path in self._paths(name):
            try:
                with open(path, "rb") as file:
                    header = json.loads(np.load(file).tobytes())
                    if header["key"] == self.key:
                        arrays = [_map_array(file) for _ in range(header["arrays"])]
                        return header["about"], arrays
            except (OSError, ValueError, KeyError, TypeError, EOFError):
                pass  # missing, truncated or not an entry
        return None

    def save(self, name: str, entry: Entry) -> None:
        """Write an entry; log a warning if no folder is writable."""
        about, arrays = entry
        header = json.dumps({"key": self.key, "arrays": len(arrays), "about": about}).encode()
        for path in self._paths(name):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                _write_arrays(path, [np.frombuffer(header, np.uint8), *arrays])
                return
            except OSError as error:
                log.info("cannot write %s: %s", path, error)
        log.warning(
            "cannot write to %s: %s is computed again next time. Set ETCVLA_INDEX to a folder.",
            " or ".join(map(str, self.folders)),
            name,
        )

    def get(self, name: str, make: Callable[[], Entry]) -> Entry:
        """Return an entry; if it is missing, make and save it."""
        entry = self.load(name)
        if entry is None:
            entry = make()
            self.save(name, entry)
        return entry

    def _paths(self, name: str) -> list[Path]:
        """Return the files in which an entry may be."""
        return [folder / name.replace("/", ".") for folder in self.folders]


def cache_folders(directory: AnyPath, split: str) -> list[Path]:
    """Return the folders for a split's cached arrays, the best first.

    They are a hidden folder beside the data, if that is local, and one in `INDEX_FOLDER`.
    """
    is_remote = isinstance(directory, RemotePath)
    full_path = str(directory if is_remote else directory.resolve())
    digest = hashlib.sha256(full_path.encode()).hexdigest()[:12]
    folder = Path(os.environ.get("ETCVLA_INDEX", INDEX_FOLDER)).expanduser()
    separate = folder / f"{directory.parent.name}-{directory.name}-{split}-{digest}"
    return [separate] if is_remote else [directory / ".etcvla" / split, separate]


def _write_arrays(path: Path, arrays: Sequence[np.ndarray]) -> None:
    """Write arrays one after another, atomically.

    They are written directly rather than by `files.write_atomically`, which needs the whole content
    in memory; several processes may write the same file at once, so the name has the process's id.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            for array in arrays:
                np.save(file, array)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _map_array(file: BinaryIO) -> np.ndarray:
    """Map the .npy array at the file's position, and move the position behind it.

    It is mapped rather than loaded so that all worker processes of a host share the memory: an
    index has one offset per image, and a dataset may have a hundred million images.
    """
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    offset = file.tell()
    size = int(np.prod(shape)) * dtype.itemsize
    if not size:
        return np.zeros(shape, dtype)
    array = np.asarray(np.memmap(file, dtype, "r", offset, shape))
    file.seek(offset + size)  # np.memmap moves the position
    return array
