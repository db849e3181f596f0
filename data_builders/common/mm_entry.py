"""Entries of image-text datasets, as the importers read them."""

from __future__ import annotations

import dataclasses


class EntryError(ValueError):
    """An entry that cannot be used. Messages are few and constant, because they are counted."""


@dataclasses.dataclass(frozen=True)
class MMEntry:
    """An image with the turns of a conversation about it."""

    name: str
    image: bytes  # an image file
    turns: tuple[tuple[str, str], ...]  # (question, answer)
    kind: str  # "" if the entry names none
