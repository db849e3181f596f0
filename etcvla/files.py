"""Read, hash and write small files. A killed process never leaves half of a file."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath


def write_atomically(path: epath.PathLike, content: str | bytes) -> None:
    """Write `content` to `path`: readers see the old file or the whole new one, never a part.

    The content goes to `<path>.tmp` first, which then replaces `path`. The parent folder must
    exist.

    Args:
      path: local path, or a URL that etils.epath knows (gs://).
      content: text, written as UTF-8, or bytes.
    """
    path = epath.Path(path)
    temporary = path.with_name(path.name + ".tmp")
    if isinstance(content, str):
        content = content.encode()
    temporary.write_bytes(content)
    temporary.replace(path)


def write_json(path: epath.PathLike, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def write_csv(path: epath.PathLike, columns: Sequence[str], rows: Iterable[Iterable]) -> None:
    """Write a header and rows of values, atomically."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write_atomically(path, text.getvalue())


def read_csv(path: epath.PathLike) -> list[dict[str, str]]:
    """Return the rows of a CSV file by column; [] without a file."""
    path = epath.Path(path)
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def hash_file(path: epath.PathLike) -> str:
    """Return the SHA-256 of a file."""
    with epath.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(value: Any) -> str:
    """Return the SHA-256 of a value as JSON with sorted keys; unknown types become lists."""
    text = json.dumps(value, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()
