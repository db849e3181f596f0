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
from pathlib import Path, PurePosixPath

import fsspec

ByteRange = tuple[int, int]  # (offset, length)
GAP = 64 * 1024  # reading this many unneeded bytes costs less than another request
# Keys under which fsspec's file systems report the version of a file.
_VERSION_KEYS = ("etag", "ETag", "md5Hash", "mtime", "LastModified", "created")


class RemotePath(PurePosixPath):
    """A URL as a path: pathlib computes its parts, fsspec reads it."""

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)  # pathlib merges the slashes

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        """The file system that knows the URL; fsspec creates it once."""
        return fsspec.core.url_to_fs(str(self))[0]

    def is_file(self) -> bool:
        """Return whether the path is a file."""
        return self.fs.isfile(str(self))

    def is_dir(self) -> bool:
        """Return whether the path is a folder."""
        return self.fs.isdir(str(self))

    def iterdir(self) -> Iterator[RemotePath]:
        """Yield the files and folders in the folder."""
        for entry in self.fs.ls(str(self), detail=False):
            yield self / PurePosixPath(entry).name

    def read_text(self) -> str:
        """Return the whole file as UTF-8 text."""
        return self.fs.cat_file(str(self)).decode()


AnyPath = Path | RemotePath


def as_path(path: str | os.PathLike) -> AnyPath:
    """Return a RemotePath if `path` is a URL, else a pathlib.Path."""
    if isinstance(path, Path | RemotePath):
        return path
    return RemotePath(path) if "://" in os.fspath(path) else Path(path)


def file_version(path: AnyPath) -> tuple[int, str]:
    """Return (size, version) of a file; they change when its content changes."""
    if not isinstance(path, RemotePath):
        info = path.stat()
        return info.st_size, str(info.st_mtime_ns)
    info = path.fs.info(str(path))
    versions = [str(info[key]) for key in _VERSION_KEYS if info.get(key)]
    return int(info["size"]), next(iter(versions), "")


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
        self._url = str(path)
        self._fs = path.fs
        self.size, _ = file_version(path)

    def read(self, ranges: Sequence[ByteRange]) -> list[memoryview]:
        """Return the bytes of each range; shorter where the file ends.

        The requests are concurrent, and nearby ranges share one.
        """
        merged = merge_ranges(ranges)
        starts = [start for start, _ in merged]
        stops = [start + length for start, length in merged]
        blocks = self._fs.cat_ranges([self._url] * len(merged), starts, stops, on_error="raise")
        views = []
        for start, length in ranges:
            block = bisect.bisect_right(starts, start) - 1
            offset = start - starts[block]
            views.append(memoryview(blocks[block])[offset : offset + length])
        return views


def open_file(path: AnyPath) -> MappedFile | RemoteFile:
    """Open a file to read ranges of it."""
    return RemoteFile(path) if isinstance(path, RemotePath) else MappedFile(path)


def merge_ranges(ranges: Sequence[ByteRange], gap: int = GAP) -> list[ByteRange]:
    """Return sorted ranges that cover `ranges`; ranges at most `gap` bytes apart become one."""
    first, *others = sorted(ranges)
    merged = [first]
    for start, length in others:
        last_start, last_length = merged[-1]
        if start > last_start + last_length + gap:
            merged.append((start, length))
        else:
            merged[-1] = (last_start, max(last_length, start + length - last_start))
    return merged


def allow_open_files(count: int) -> None:
    """Raise this process's soft limit on open files so that `count` files can be mapped.

    A mapped file is open twice, public datasets have thousands of files, and the usual limit is
    1024.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = [limit for limit in (2 * count + 1024, hard) if limit != resource.RLIM_INFINITY]
    if soft != resource.RLIM_INFINITY and soft < min(limits):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(limits), hard))
