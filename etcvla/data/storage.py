"""Read byte ranges of local and remote files.

A local file is memory-mapped. A remote one (`gs://`, `s3://`, `http://`, every URL that fsspec
knows) is read by range requests, with nearby ranges merged into one request.
"""

from __future__ import annotations

import bisect
import mmap
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import fsspec

ByteRange = tuple[int, int]  # (offset, length)
GAP = 64 * 1024  # reading this many unneeded bytes costs less than another request
# Keys under which fsspec's file systems report the version of a file.
_VERSION_KEYS = ("etag", "ETag", "md5Hash", "mtime", "LastModified", "created")


class FileVersion(NamedTuple):
    """Values that change when a file's content changes."""

    size: int
    version: str


class RemotePath:
    """A remote path: the methods of `pathlib.Path` that datasets need, by fsspec."""

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
        """The last part of the path."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def parent(self) -> RemotePath:
        """The folder that contains the path."""
        return RemotePath(self.url.rsplit("/", 1)[0])

    def is_file(self) -> bool:
        """Return whether the path is a file."""
        return self.fs.isfile(self._key)

    def is_dir(self) -> bool:
        """Return whether the path is a folder."""
        return self.fs.isdir(self._key)

    def iterdir(self) -> Iterator[RemotePath]:
        """Yield the files and folders in the folder."""
        for entry in self.fs.ls(self._key, detail=False):
            yield self / entry.rstrip("/").rsplit("/", 1)[-1]

    def read_text(self) -> str:
        """Return the whole file as UTF-8 text."""
        return self.fs.cat_file(self._key).decode()

    def file_version(self) -> FileVersion:
        """Return the file's size and what the file system reports as its version."""
        info = self.fs.info(self._key)
        versions = [str(info[key]) for key in _VERSION_KEYS if info.get(key)]
        return FileVersion(int(info["size"]), versions[0] if versions else "")

    def read_ranges(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        """Read byte ranges by concurrent requests, with nearby ranges merged into one request."""
        merged = merge_ranges(ranges)
        starts = [start for start, _ in merged]
        stops = [start + length for start, length in merged]
        blocks = self.fs.cat_ranges([self._key] * len(merged), starts, stops, on_error="raise")
        return [_cut(starts, blocks, start, length) for start, length in ranges]


AnyPath = Path | RemotePath


def as_path(path: str | os.PathLike) -> AnyPath:
    """Return a RemotePath if `path` is a URL, else a pathlib.Path."""
    if isinstance(path, Path | RemotePath):
        return path
    return RemotePath(path) if "://" in os.fspath(path) else Path(path)


def file_version(path: AnyPath) -> FileVersion:
    """Return the values that identify the present content of a file."""
    if isinstance(path, RemotePath):
        return path.file_version()
    info = path.stat()
    return FileVersion(info.st_size, str(info.st_mtime_ns))


class MappedFile:
    """A local file, memory-mapped: it uses address space, not memory, and reads copy nothing."""

    def __init__(self, path: Path):
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 -- open as long as the map
        self.size = self._file.seek(0, os.SEEK_END)
        content = b""  # an empty file cannot be mapped
        if self.size:
            content = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        self._view = memoryview(content)

    def read(self, ranges: Sequence[ByteRange]) -> list[memoryview]:
        """Return the bytes of each range; shorter where the file ends."""
        return [self._view[start : start + length] for start, length in ranges]

    def peeker(self, origin: int) -> Callable[[int], bytes]:
        """Return a function that reads the four bytes at an offset from `origin`.

        It reads without mapping the page of those bytes: a page fault costs more than a call.
        """
        descriptor = self._file.fileno()
        pread = os.pread
        return lambda offset: pread(descriptor, 4, origin + offset)


class RemoteFile:
    """A remote file that is read by ranges."""

    def __init__(self, path: RemotePath):
        self._path = path
        self.size = path.file_version().size

    def read(self, ranges: Sequence[ByteRange]) -> list[memoryview]:
        """Return the bytes of each range; shorter where the file ends."""
        return [memoryview(data) for data in self._path.read_ranges(ranges)]


def open_file(path: AnyPath) -> MappedFile | RemoteFile:
    """Open a file to read ranges of it."""
    return RemoteFile(path) if isinstance(path, RemotePath) else MappedFile(path)


def merge_ranges(ranges: Sequence[ByteRange], gap: int = GAP) -> list[ByteRange]:
    """Return sorted ranges that cover `ranges`; ranges at most `gap` bytes apart become one."""
    merged: list[ByteRange] = []
    for start, length in sorted(ranges):
        if merged:
            last_start, last_length = merged[-1]
            if start <= last_start + last_length + gap:
                merged[-1] = (last_start, max(last_length, start + length - last_start))
                continue
        merged.append((start, length))
    return merged


def _cut(starts: Sequence[int], blocks: Sequence[bytes], start: int, length: int) -> bytes:
    """Return a range out of the blocks that were read; `starts` are their offsets, ascending."""
    block = bisect.bisect_right(starts, start) - 1
    offset = start - starts[block]
    return blocks[block][offset : offset + length]


def allow_open_files(count: int) -> None:
    """Raise this process's soft limit on open files so that `count` files can be mapped.

    A mapped file is open twice, public datasets have thousands of files, and the usual limit is
    1024.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * count + 1024
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
