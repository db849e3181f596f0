"""Model sizes by name.

`paligemma_3b` is PaliGemma 1 at 224 px (SigLIP So400m/14, Gemma 2B) with openpi's 300 M expert. `tiny` learns on a
laptop CPU in minutes: one wide head, since many small ones are slow there.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from etcvla.models.gemma import GemmaConfig
from etcvla.models.siglip import SigLIPConfig
from etcvla.models.vla import VLAConfig
from etcvla.names import lookup

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "siglip": SigLIPConfig(width=128, depth=2, num_heads=1, mlp_dim=384, patch=16, image_size=96),
        "vlm": GemmaConfig(width=128, depth=3, mlp_dim=256, num_heads=2, num_kv_heads=1, head_dim=64),
        "expert": GemmaConfig(width=96, depth=3, mlp_dim=256, num_heads=2, num_kv_heads=1, head_dim=64, adaptive=True),
        "dtype": "float32",
        "remat": "none",
        "unroll": 4,
    },
    "small": {
        "siglip": SigLIPConfig(width=384, depth=12, num_heads=6, mlp_dim=1536, patch=16, image_size=224),
        "vlm": GemmaConfig(width=640, depth=12, mlp_dim=2560, num_heads=4, num_kv_heads=1, head_dim=128),
        "expert": GemmaConfig(width=320, depth=12, mlp_dim=1280, num_heads=4, num_kv_heads=1, head_dim=128,
                              adaptive=True),
        "dtype": "float32",
        "remat": "none",
        "unroll": 1,
    },
    "paligemma_3b": {
        "siglip": SigLIPConfig(width=1152, depth=27, num_heads=16, mlp_dim=4304, patch=14, image_size=224),
        "vlm": GemmaConfig(width=2048, depth=18, mlp_dim=16_384, num_heads=8, num_kv_heads=1, head_dim=256),
        "expert": GemmaConfig(width=1024, depth=18, mlp_dim=4096, num_heads=8, num_kv_heads=1, head_dim=256,
                              adaptive=True),
        "dtype": "bfloat16",
        "remat": "full",
        "unroll": 1,
    },
}


EXPERTS = {"adaptive": {"adaptive": True}, "plain": {"adaptive": False}, "none": None}  # of pi0.5, pi0, pi0-FAST


def make_config(size: str, *, expert: str = "adaptive", **fields: Any) -> VLAConfig:
    """The named size and kind of expert with the remaining fields of `VLAConfig`; ValueError for an unknown name."""
    parts, change = lookup(SIZES, size, "model.size"), lookup(EXPERTS, expert, "model.expert")
    return VLAConfig(**{**parts, "expert": change and dataclasses.replace(parts["expert"], **change), **fields})


def describe(config: VLAConfig) -> dict:
    """Plain values, as a checkpoint stores them."""
    return dataclasses.asdict(config)


def from_dict(data: dict) -> VLAConfig:
    """The inverse of `describe`."""
    parts = {"siglip": SigLIPConfig(**data["siglip"]), "vlm": GemmaConfig(**data["vlm"]),
             "expert": data["expert"] and GemmaConfig(**data["expert"])}
    return VLAConfig(**{**data, **parts})
