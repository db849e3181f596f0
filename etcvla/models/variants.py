"""Model sizes by name.

Two generations of released weights fit:

- `paligemma_3b` is PaliGemma 1 (arXiv 2407.07726: SigLIP So400m/14 and Gemma 1 2B) with openpi's
  expert of 300 M parameters.
- `paligemma2_3b` is PaliGemma 2 (arXiv 2412.03555: the same tower and Gemma 2 2B) with an expert of
  the same width and as many layers as Gemma 2.

Both use images of 224 px, or any other multiple of 14 with a resized position table. SigLIP 2,
Gemma 3 and later models are not supported.

`tiny` trains on a laptop CPU in minutes. It has few wide heads, because many small heads are slow
on a CPU. `small` is for benchmarks.

Number of parameters with state as text, 32 action dimensions, and the token ids of the built-in
tokenizer (2,688) or of PaliGemma's (257,152):

| size          | ids     | tower and language model | expert      |
|---------------|---------|--------------------------|-------------|
| tiny          | 2,688   | 1,237,888                | 552,224     |
| small         | 2,688   | 80,663,936               | 27,591,072  |
| paligemma_3b  | 257,152 | 2,923,335,408            | 430,098,464 |
| paligemma2_3b | 257,152 | 3,032,094,960            | 659,785,760 |
"""

from __future__ import annotations

import dataclasses
from typing import Any

from etcvla.models.gemma import GemmaConfig
from etcvla.models.siglip import SigLIPConfig
from etcvla.models.vla import VLAConfig
from etcvla.names import lookup

_SO400M_14 = SigLIPConfig(
    width=1152, depth=27, num_heads=16, mlp_dim=4304, patch=14, image_size=224
)

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "siglip": SigLIPConfig(
            width=128, depth=2, num_heads=1, mlp_dim=384, patch=16, image_size=96
        ),
        "vlm": GemmaConfig(
            width=128, depth=3, mlp_dim=256, num_heads=2, num_kv_heads=1, head_dim=64
        ),
        "expert": GemmaConfig(
            width=96, depth=3, mlp_dim=256, num_heads=2, num_kv_heads=1, head_dim=64, adaptive=True
        ),
        "dtype": "float32",
        "remat": "none",
        "unroll": 4,
    },
    "small": {
        "siglip": SigLIPConfig(
            width=384, depth=12, num_heads=6, mlp_dim=1536, patch=16, image_size=224
        ),
        "vlm": GemmaConfig(
            width=640, depth=12, mlp_dim=2048, num_heads=4, num_kv_heads=1, head_dim=128
        ),
        "expert": GemmaConfig(
            width=320,
            depth=12,
            mlp_dim=1280,
            num_heads=4,
            num_kv_heads=1,
            head_dim=128,
            adaptive=True,
        ),
        "dtype": "float32",
        "remat": "none",
        "unroll": 1,
    },
    "paligemma_3b": {
        "siglip": _SO400M_14,
        "vlm": GemmaConfig(
            width=2048,
            depth=18,
            mlp_dim=16_384,
            num_heads=8,
            num_kv_heads=1,
            head_dim=256,
            mlp_parts=8,
        ),
        "expert": GemmaConfig(
            width=1024,
            depth=18,
            mlp_dim=4096,
            num_heads=8,
            num_kv_heads=1,
            head_dim=256,
            adaptive=True,
        ),
        "dtype": "bfloat16",
        "remat": "full",
        "unroll": 1,
    },
    "paligemma2_3b": {
        "siglip": _SO400M_14,
        "vlm": GemmaConfig(
            width=2304,
            depth=26,
            mlp_dim=9216,
            num_heads=8,
            num_kv_heads=4,
            head_dim=256,
            query_pre_attn_scalar=256,
            attn_softcap=50.0,
            final_softcap=30.0,
            post_norms=True,
            mlp_parts=4,
            window=4096,
        ),
        "expert": GemmaConfig(
            width=1024,
            depth=26,
            mlp_dim=4096,
            num_heads=8,
            num_kv_heads=4,
            head_dim=256,
            adaptive=True,
        ),
        "dtype": "bfloat16",
        "remat": "full",
        "unroll": 1,
    },
}


EXPERTS = {
    "adaptive": {"adaptive": True},  # pi0.5
    "plain": {"adaptive": False},  # pi0
    "none": None,  # pi0-FAST
}


def make_config(
    size: str, *, expert: str = "adaptive", image_size: int = 0, **fields: Any
) -> VLAConfig:
    """Build the config of a named size.

    Args:
      size: name in `SIZES`.
      expert: name in `EXPERTS`.
      image_size: pixels, a multiple of the patch; 0: the default of the size.
      **fields: the remaining fields of `VLAConfig`.

    Raises: UserError for an unknown name, or if the patch does not divide `image_size`.
    """
    defaults = dict(lookup(SIZES, size, "model.size"))
    expert_fields = lookup(EXPERTS, expert, "model.expert")
    if image_size:
        defaults["siglip"] = dataclasses.replace(defaults["siglip"], image_size=image_size)
    if expert_fields is None:
        defaults["expert"] = None
    else:
        defaults["expert"] = dataclasses.replace(defaults["expert"], **expert_fields)
    return VLAConfig(**{**defaults, **fields})


def config_to_dict(config: VLAConfig) -> dict[str, Any]:
    """Return the config as plain values, as a checkpoint stores them."""
    return dataclasses.asdict(config)


def config_from_dict(data: dict[str, Any]) -> VLAConfig:
    """Build the config from the values of `config_to_dict`."""
    expert = data["expert"]
    nested = {
        "siglip": SigLIPConfig(**data["siglip"]),
        "vlm": GemmaConfig(**data["vlm"]),
        "expert": None if expert is None else GemmaConfig(**expert),
    }
    return VLAConfig(**{**data, **nested})
