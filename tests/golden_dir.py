"""Where the golden numbers of released implementations lie; ETCVLA_GOLDEN names another folder of the same form."""

import os
import pathlib

ROOT = pathlib.Path(os.environ.get("ETCVLA_GOLDEN", pathlib.Path(__file__).parent / "golden"))


def golden(name: str) -> list[pathlib.Path]:
    """The sub-folders of one fixture, found by listing."""
    return sorted(p for p in (ROOT / name).iterdir() if p.is_dir())
