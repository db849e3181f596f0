"""The golden numbers of released implementations.

ETCVLA_GOLDEN names another folder of the same form.
"""

import json
import os
import pathlib

ROOT = pathlib.Path(os.environ.get("ETCVLA_GOLDEN", pathlib.Path(__file__).parent / "golden"))


def golden(name: str) -> list[pathlib.Path]:
    """List the sub-folders of a fixture."""
    return sorted(p for p in (ROOT / name).iterdir() if p.is_dir())


def models(*kinds: str) -> list[pathlib.Path]:
    """List the folders of models of these kinds.

    The kinds are "paligemma_hf", "paligemma_bv" and the names of openpi.
    """
    return sorted(p.parent for p in ROOT.rglob("outputs.npz") if kind_of(p.parent) in kinds)


def kind_of(folder: pathlib.Path) -> str:
    """Return the implementation that made the numbers of a folder; "" if it is unknown."""
    if (folder / "checkpoint.npz").exists():
        return "paligemma_bv"
    if not (folder / "config.json").exists():
        return ""
    config = json.loads((folder / "config.json").read_text())
    return "paligemma_hf" if config.get("model_type") == "paligemma" else config.get("model", "")
