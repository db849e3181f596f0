"""Llava's format: JSON entries {id, image, conversations: [{from: human, value: ..}, {from: gpt, value: ..}, ..]}.

They stand in a list or one a line; files of many gigabytes are read as they stream by.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_builders.common.mm_items import BadEntry

CHUNK = 1 << 20  # characters read at a time
HUMAN, MODEL = ("human", "user"), ("gpt", "assistant", "model")


def read_entries(path: str | Path) -> Iterator[Any]:
    """The values of a JSON list, or of JSON lines, one after another.

    Raises FileNotFoundError, or ValueError that names file, entry and what is wrong where the file is no JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no JSON file {path}")
    decoder, number, text, whole = json.JSONDecoder(), 0, "", False
    with open(path, encoding="utf-8") as file:
        while True:
            # A list's brackets and commas are mere separators here, so that JSON lines are read alike.
            text = text.lstrip(" \t\r\n,[" if not number else " \t\r\n,")
            try:
                if not text or text[0] == "]":
                    raise json.JSONDecodeError("", text, 0)
                value, end = decoder.raw_decode(text)
                if end == len(text) and not whole:  # a number may go on
                    raise json.JSONDecodeError("", text, 0)
            except json.JSONDecodeError as error:
                if not whole:
                    more = file.read(
                        max(CHUNK, len(text))
                    )  # doubling, or an entry of many pieces is parsed as often
                    text, whole = text + more, not more
                    continue
                if text.strip(" \t\r\n],"):
                    raise ValueError(
                        f"{path}, entry {number}: not JSON ({error}); the file must be a list or have one "
                        f"entry a line"
                    ) from error
                return
            yield value
            text, number = text[end:], number + 1


def read_turns(entry: Any) -> tuple[tuple[str, str], ...]:
    """(question, answer) pairs, without the image's placeholder. Raises BadEntry."""
    turns = entry.get("conversations", entry.get("messages")) if isinstance(entry, dict) else None
    if not isinstance(turns, list) or not turns:
        raise BadEntry("no conversation")
    said = [_said(turn) for turn in turns]
    if said[0][0] == "system":
        said = said[1:]
    roles = [role for role, _ in said]
    if len(roles) % 2 or not set(roles[::2]) <= set(HUMAN) or not set(roles[1::2]) <= set(MODEL):
        raise BadEntry("not human and model in turns")
    texts = [text.replace("<image>", " ").strip() for _, text in said]
    return tuple(zip(texts[::2], texts[1::2], strict=True))


def _said(turn: Any) -> tuple[str, str]:
    found = turn if isinstance(turn, dict) else {}
    role, text = found.get("from", found.get("role")), found.get("value", found.get("content"))
    if not isinstance(role, str) or not isinstance(text, str):
        raise BadEntry("a turn without speaker or text")
    return role, text


def find_image(entry: dict, folder: Path) -> Path:
    """The entry's one image. Raises BadEntry."""
    image = entry.get("image", entry.get("images"))
    image = image[0] if isinstance(image, list) and len(image) == 1 else image
    if not image:
        raise BadEntry("no image")
    if not isinstance(image, str):
        raise BadEntry("several images")
    path = folder / image
    if not path.is_file():
        raise BadEntry("image file missing")
    return path
