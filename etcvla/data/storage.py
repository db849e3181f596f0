"""Files here and far away: a path's few needs, and reading byte ranges.

A local file is mapped; a remote one (`gs://`, `s3://`, `http://`, all that fsspec knows) answers range requests, those
that lie close together as one.
"""

from __future__ import annotations

import mmap
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import fsspec

ByteRange = tuple[int, int]  # (offset, length) in bytes
GAP = 64 * 1024  # bytes that cost less to read along than a further request does


class FileVersion(NamedTuple):
    """What changes when a file does."""

    size: int
    changed: str


class RemotePath:
    """What a dataset needs of `pathlib.Path`, over fsspec."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self.fs, self._key = fsspec.core.url_to_fs(self.url)

    def __reduce__(self):
        return RemotePath, (self.url,)

    def __str__(self) -> str:
        return self.url

    __repr__ = __str__

    def __fspath__(self) -> str:
        return self.url

    def __eq__(self, other) -> bool:
        return isinstance(other, RemotePath) and self.url == other.url

    def __lt__(self, other: RemotePath) -> bool:
        return self.url < other.url

    def __hash__(self) -> int:
        return hash(self.url)

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self.url}/{name}")

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    @property
    def parent(self) -> RemotePath:
        return RemotePath(self.url.rsplit("/", 1)[0])

    def is_file(self) -> bool:
        return self.fs.isfile(self._key)

    def is_dir(self) -> bool:
        return self.fs.isdir(self._key)

    def iterdir(self) -> Iterator[RemotePath]:
        for found in self.fs.ls(self._key, detail=False):
            yield self / found.rstrip("/").rsplit("/", 1)[-1]

    def read_text(self) -> str:
        return self.fs.cat_file(self._key).decode()

    def file_version(self) -> FileVersion:
        """Size, and whatever the file system says of a file's version."""
        info = self.fs.info(self._key)
        version = next(
            (
                info[key]
                for key in ("etag", "ETag", "md5Hash", "mtime", "LastModified", "created")
                if info.get(key)
            ),
            "",
        )
        return FileVersion(int(info["size"]), str(version))

    def read_ranges(self, spans: Sequence[ByteRange]) -> list[bytes]:
        """The bytes of each span, by as few requests as is cheap, all under way at once."""
        merged = merge_ranges(spans)
        data = self.fs.cat_ranges(
            [self._key] * len(merged),
            [start for start, _ in merged],
            [start + size for start, size in merged],
            on_error="raise",
        )
        parts = [(start, part) for (start, _), part in zip(merged, data, strict=True)]
        return [_cut(parts, start, size) for start, size in spans]


AnyPath = Path | RemotePath


def as_path(path: str | os.PathLike) -> AnyPath:
    """A local path, or a remote one if it is a URL."""
    if isinstance(path, Path | RemotePath):
        return path
    return RemotePath(path) if "://" in os.fspath(path) else Path(path)


def file_version(path: AnyPath) -> FileVersion:
    """What tells this version of a file from others."""
    if isinstance(path, RemotePath):
        return path.file_version()
    found = path.stat()
    return FileVersion(found.st_size, str(found.st_mtime_ns))


class MappedFile:
    """A local file, mapped; it costs address space, not memory, and reading makes no copy."""

    def __init__(self, path: Path):
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115, open as long as the map is
        self.size = self._file.seek(0, 2)
        self._view = memoryview(
            mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else b""
        )

    def read(self, spans: Sequence[ByteRange]) -> list[memoryview]:
        """The bytes of each (offset, length); shorter where the file ends."""
        return [self._view[start : start + size] for start, size in spans]

    def peeker(self, origin: int) -> Callable[[int], bytes]:
        """A function of a place, counted from `origin`, to the four bytes there. They are read without mapping the page
        that they are on: a page fault costs more than a call."""
        descriptor, pread = self._file.fileno(), os.pread
        return lambda place: pread(descriptor, 4, origin + place)


class RemoteFile:
    """A remote file, read by ranges."""

    def __init__(self, path: RemotePath):
        self._path, self.size = path, path.file_version().size

    def read(self, spans: Sequence[ByteRange]) -> list[memoryview]:
        """As `MappedFile.read`."""
        return [memoryview(data) for data in self._path.read_ranges(spans)]


def open_file(path: AnyPath) -> MappedFile | RemoteFile:
    """The file, to be read by ranges."""
    return RemoteFile(path) if isinstance(path, RemotePath) else MappedFile(path)


def merge_ranges(spans: Sequence[ByteRange], gap: int = GAP) -> list[ByteRange]:
    """Spans that cover all of `spans`, in order; those at most `gap` bytes apart are one."""
    merged: list[ByteRange] = []
    for start, size in sorted(spans):
        if merged and start <= sum(merged[-1]) + gap:
            first, length = merged[-1]
            merged[-1] = (first, max(length, start + size - first))
        else:
            merged.append((start, size))
    return merged


def _cut(parts: Sequence[tuple[int, bytes]], start: int, size: int) -> bytes:
    first, data = next((first, data) for first, data in reversed(parts) if first <= start)
    return data[start - first : start - first + size]


def allow_open_files(count: int) -> None:
    """Raises this process's soft limit on open files by need: a mapped file is open twice, public datasets have
    thousands of files, and the usual limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    want = 2 * count + 1024
    if soft != resource.RLIM_INFINITY and soft < want:
        limit = want if hard == resource.RLIM_INFINITY else min(want, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
