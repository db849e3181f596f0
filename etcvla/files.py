"""Write files so that a killed process never leaves half of one."""

from __future__ import annotations

import json
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
