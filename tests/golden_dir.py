"""Where the golden numbers of released implementations lie; other fixtures of the same form run through ETCVLA_GOLDEN."""

import os
import pathlib

ROOT = pathlib.Path(os.environ.get("ETCVLA_GOLDEN", pathlib.Path(__file__).parent / "golden"))


def golden(name: str) -> list[pathlib.Path]:
    """The sub-folders of one fixture, found by listing."""
    return sorted(p for p in (ROOT / name).iterdir() if p.is_dir())
