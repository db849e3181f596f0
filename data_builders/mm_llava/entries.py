"""Reader of LLaVA's JSON format.

An entry is {id, image, conversations: [{from: human, value: ..}, {from: gpt, value: ..}, ..]}. A
file is a list of entries or has one entry per line. Files of many gigabytes are read in pieces.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_builders.common.mm_entry import EntryError, MMEntry
from etcvla.errors import UserError

READ_SIZE = 1 << 20  # characters read at a time
HUMAN_ROLES = ("human", "user")
MODEL_ROLES = ("gpt", "assistant", "model")
_SEPARATORS = " \t\r\n,"


def read_entries(path: str | Path, images: Path, kind_field: str) -> Iterator[MMEntry | EntryError]:
    """Yield the entries of a file; an EntryError in place of an unusable one.

    Args:
      images: folder to which image paths are relative.
      kind_field: field of an entry with the kind of its items.

    Raises UserError as `read_json_values` does.
    """
    for number, entry in enumerate(read_json_values(path)):
        try:
            turns = parse_turns(entry)
            image = find_image(entry, images)
        except EntryError as error:
            yield error
            continue
        name = str(entry.get("id", number))
        kind = str(entry.get(kind_field) or "")
        yield MMEntry(name, image.read_bytes(), turns, kind)


def read_json_values(path: str | Path) -> Iterator[Any]:
    """Yield the values of a JSON list, or of JSON lines.

    Raises UserError if there is no such file, and for a value that is not JSON (with its number).
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no JSON file {path}")
    decoder = json.JSONDecoder()
    number = 0
    text = ""
    at_end = False
    with open(path, encoding="utf-8") as file:
        while True:
            # The brackets and commas of a list are skipped, so that JSON lines are read alike.
            text = text.lstrip(_SEPARATORS + "[" if number == 0 else _SEPARATORS)
            error: Exception | str = "text after the end of the list"
            end = None
            if text and text[0] != "]":
                try:
                    value, end = decoder.raw_decode(text)
                except json.JSONDecodeError as decode_error:
                    error = decode_error
            # A number at the end of `text` may have more digits.
            is_complete = end is not None and (at_end or end < len(text))
            if is_complete:
                yield value
                text = text[end:]
                number += 1
            elif not at_end:
                # Doubling the text bounds how often a large entry is parsed.
                more = file.read(max(READ_SIZE, len(text)))
                text += more
                at_end = not more
            elif text.strip(_SEPARATORS + "]"):
                raise UserError(
                    f"{path}, entry {number}: not JSON ({error}); the file must be a list or have "
                    "one entry per line"
                )
            else:
                return


def parse_turns(entry: Any) -> tuple[tuple[str, str], ...]:
    """Return the (question, answer) pairs of an entry without the image's placeholder.

    Raises EntryError if the turns do not alternate between human and model.
    """
    turns = None
    if isinstance(entry, dict):
        turns = entry.get("conversations", entry.get("messages"))
    if not isinstance(turns, list) or not turns:
        raise EntryError("no conversation")
    messages = [_parse_message(turn) for turn in turns]
    if messages[0][0] == "system":
        messages = messages[1:]
    pairs = []
    for i in range(0, len(messages), 2):
        pair = messages[i : i + 2]
        roles = [role for role, _ in pair]
        if len(pair) < 2 or roles[0] not in HUMAN_ROLES or roles[1] not in MODEL_ROLES:
            raise EntryError("turns do not alternate between human and model")
        question, answer = (text.replace("<image>", " ").strip() for _, text in pair)
        pairs.append((question, answer))
    return tuple(pairs)


def _parse_message(turn: Any) -> tuple[str, str]:
    """Return the role and the text of one message."""
    fields = turn if isinstance(turn, dict) else {}
    role = fields.get("from", fields.get("role"))
    text = fields.get("value", fields.get("content"))
    if not isinstance(role, str) or not isinstance(text, str):
        raise EntryError("a turn without role or text")
    return role, text


def find_image(entry: dict, folder: Path) -> Path:
    """Return the path of the entry's only image. Raises EntryError if there is not exactly one."""
    image = entry.get("image", entry.get("images"))
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    if not image:
        raise EntryError("no image")
    if not isinstance(image, str):
        raise EntryError("several images")
    path = folder / image
    if not path.is_file():
        raise EntryError("image file missing")
    return path
