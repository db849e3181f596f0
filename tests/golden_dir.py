"""Where the golden numbers of released implementations lie; ETCVLA_GOLDEN names another folder of the same form."""

import json
import os
import pathlib

ROOT = pathlib.Path(os.environ.get("ETCVLA_GOLDEN", pathlib.Path(__file__).parent / "golden"))


def golden(name: str) -> list[pathlib.Path]:
    """The sub-folders of one fixture, found by listing."""
    return sorted(p for p in (ROOT / name).iterdir() if p.is_dir())


def models(*kinds: str) -> list[pathlib.Path]:
    """The folders of models of these kinds, wherever they lie: "paligemma_hf", "paligemma_bv", or openpi's names."""
    return sorted(p.parent for p in ROOT.rglob("outputs.npz") if kind_of(p.parent) in kinds)


def kind_of(folder: pathlib.Path) -> str:
    """Which implementation made a folder's numbers; "" where nothing says."""
    if (folder / "checkpoint.npz").exists():
        return "paligemma_bv"
    if not (folder / "config.json").exists():
        return ""
    config = json.loads((folder / "config.json").read_text())
    return "paligemma_hf" if config.get("model_type") == "paligemma" else config.get("model", "")
