"""Progress lines on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def show_progress(
    items: Iterable[T], *, total: int, label: str, interval: float = 2.0
) -> Iterator[T]:
    """Yield `items`; print count, rate and remaining time every `interval` seconds."""
    start = time.monotonic()
    last_shown = start
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last_shown < interval and count < total:
            continue
        last_shown = now
        rate = count / max(now - start, 1e-9)
        remaining = (total - count) / rate
        print(
            f"{label}: {count}/{total}, {rate:.1f}/s, {remaining:.0f} s left",
            file=sys.stderr,
        )
