"""Arrays made from a split's files, kept on disk and mapped, and made anew when the files change."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from etcvla.data.storage import AnyPath, RemotePath

VERSION = 3  # of all that is kept; what another version wrote is made anew
INDEX_FOLDER = "~/.cache/etcvla/frame_index"  # where data lie remote or cannot be written; ETCVLA_INDEX overrides it
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class IndexCache:
    """What is kept of a split.

    A file is a line of JSON, as an array of bytes, and arrays behind it. One that was made from other files than `key`
    says, or that was cut off, counts as none.

    folders: where it may lie, best first; it is written into the first that can be.
    key: JSON's plain values that tell these files from others.
    """

    folders: tuple[Path, ...]
    key: Mapping[str, Any]

    def below(self, name: str) -> IndexCache:
        """Of a view of the same files, which `name` tells from others."""
        return IndexCache(tuple(folder / name for folder in self.folders), self.key)

    def load(self, name: str) -> tuple[dict, list[np.ndarray]] | None:
        """(what is said of them, arrays) kept as `name`, or None. The arrays are mapped and cannot be written."""
        for folder in self.folders:
            if (found := self._load(folder / _file_name(name))) is not None:
                return found
        return None

    def save(self, name: str, arrays: Sequence[np.ndarray], **about: Any) -> None:
        """Keeps arrays as `name`. If that cannot be it costs time only, and is logged."""
        header = json.dumps({"key": self.key, "arrays": len(arrays), "about": about}).encode()
        for folder in self.folders:
            path = folder / _file_name(name)
            partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with open(partial, "wb") as file:
                    for value in (np.frombuffer(header, np.uint8), *arrays):
                        np.save(file, value)
                os.replace(partial, path)
                return
            except OSError as error:
                log.info("%s cannot be kept in %s: %s", name, folder, error)
                with contextlib.suppress(OSError):
                    partial.unlink()
        log.warning(
            "%s is not kept, so that it is made again next time: %s cannot be written. Pass cache_dir=.",
            name,
            " and ".join(map(str, self.folders)),
        )

    def get(
        self, name: str, make: Callable[[], tuple[dict, list[np.ndarray]]]
    ) -> tuple[dict, list[np.ndarray]]:
        """What is kept as `name`, else what `make` gives, which is kept then."""
        found = self.load(name)
        if found is None:
            found = make()
            self.save(name, found[1], **found[0])
        return found

    def _load(self, path: Path) -> tuple[dict, list[np.ndarray]] | None:
        try:
            with open(path, "rb") as file:
                header = json.loads(np.load(file).tobytes())
                if header["key"] != self.key:
                    return None
                return header["about"], [_map_array(file) for _ in range(header["arrays"])]
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            return None


def cache_folders(directory: AnyPath, split: str, cache_dir: str | Path | None) -> tuple[Path, ...]:
    """Where a split's arrays may be kept: beside the data, else apart.

    Args:
      cache_dir: the only place, if given.
    """
    full = str(directory) if isinstance(directory, RemotePath) else str(directory.resolve())
    digest = hashlib.sha256(full.encode()).hexdigest()[:12]
    folder = Path(cache_dir or os.environ.get("ETCVLA_INDEX", INDEX_FOLDER)).expanduser()
    apart = folder / f"{directory.parent.name}-{directory.name}-{split}-{digest}"
    beside = cache_dir is None and not isinstance(directory, RemotePath)
    return (directory / ".etcvla" / split, apart) if beside else (apart,)


def _file_name(name: str) -> str:
    return name.replace("/", ".")


def _map_array(file) -> np.ndarray:
    # Mapped rather than loaded: the marks of a hundred million images are shared by all workers of a host.
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    offset, size = file.tell(), int(np.prod(shape)) * dtype.itemsize
    values = (
        np.asarray(np.memmap(file, dtype, "r", offset, shape)) if size else np.zeros(shape, dtype)
    )
    file.seek(offset + size)
    return values
