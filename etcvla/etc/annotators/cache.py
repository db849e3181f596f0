"""Answers of models on disk: what was paid for once is not asked again."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any


class AnswerCache:
    """JSON values by the content of a question, one file each; any number of threads and processes may share it."""

    def __init__(self, directory: str | Path):
        self._directory = Path(directory)

    @staticmethod
    def key(*parts: str | bytes) -> str:
        """A digest of all parts and of where they end."""
        digest = hashlib.sha256()
        for part in parts:
            part = part.encode() if isinstance(part, str) else part
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()

    def get(self, key: str) -> Any | None:
        try:
            return json.loads(self._path(key).read_text())["value"]
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def put(self, key: str, value: Any, **about: Any) -> None:
        """Keeps `value`; `about` is for people who read the file."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
        partial.write_text(json.dumps({**about, "value": value}))
        os.replace(partial, path)

    def _path(self, key: str) -> Path:
        return self._directory / key[:2] / f"{key}.json"
