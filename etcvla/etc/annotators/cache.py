"""Cache the answers of models on disk, so that no request is paid for twice."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any


class AnswerCache:
    """JSON values by the content of a request. Threads and processes may share a directory."""

    def __init__(self, directory: str | Path):
        self._directory = Path(directory)

    @staticmethod
    def key(*parts: str | bytes) -> str:
        """Return a digest of the parts and their boundaries."""
        digest = hashlib.sha256()
        for part in parts:
            content = part.encode() if isinstance(part, str) else part
            digest.update(len(content).to_bytes(8, "little") + content)
        return digest.hexdigest()

    def get(self, key: str) -> Any | None:
        """Return the cached value, None if there is none or its file is damaged."""
        try:
            return json.loads(self._path(key).read_text())["value"]
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def put(self, key: str, value: Any, **comments: Any) -> None:
        """Store `value`. The comments are written beside it for people who read the file."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        # The temporary name is unique because several threads may write the same key.
        temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
        temporary.write_text(json.dumps({**comments, "value": value}))
        os.replace(temporary, path)

    def _path(self, key: str) -> Path:
        return self._directory / key[:2] / f"{key}.json"
