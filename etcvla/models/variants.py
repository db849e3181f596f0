"""Model sizes by name, from sizes.toml.

Two generations of released weights fit:

- `paligemma_3b` is PaliGemma 1 (arXiv 2407.07726: SigLIP So400m/14 and Gemma 1 2B) with openpi's
  expert of 300 M parameters.
- `paligemma2_3b` is PaliGemma 2 (arXiv 2412.03555: the same tower and Gemma 2 2B) with an expert of
  the same width and as many layers as Gemma 2.

Both use images of 224 px, or any other multiple of 14 with a resized position table. SigLIP 2,
Gemma 3 and later models are not supported.

`tiny` trains on a laptop CPU in minutes. It has few wide heads and ReLU in its MLPs, because many
small heads and tanh-GELU are slow on a CPU. `small` is for benchmarks.

Number of parameters with state as text, 32 action dimensions, and the token ids of the built-in
tokenizer (2,688) or of PaliGemma's (257,152):

| size          | ids     | tower and language model | expert      |
|---------------|---------|--------------------------|-------------|
| tiny          | 2,688   | 1,363,840                | 552,224     |
| small         | 2,688   | 80,663,936               | 27,591,072  |
| paligemma_3b  | 257,152 | 2,923,335,408            | 430,098,464 |
| paligemma2_3b | 257,152 | 3,032,094,960            | 659,785,760 |
"""

from __future__ import annotations

import dataclasses
import pathlib
import tomllib
from typing import Any

from etcvla.models.gemma import GemmaConfig
from etcvla.models.siglip import SigLIPConfig
from etcvla.models.vla import VLAConfig
from etcvla.names import lookup

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
    return VLAConfig(**_make_parts(data))


def _make_parts(data: dict[str, Any]) -> dict[str, Any]:
    """Return fields of `VLAConfig`, with configs in the place of dicts."""
    parts = {"siglip": SigLIPConfig(**data["siglip"]), "vlm": GemmaConfig(**data["vlm"])}
    if data["expert"] is not None:
        parts["expert"] = GemmaConfig(**data["expert"])
    return data | parts


_TABLES = tomllib.loads(pathlib.Path(__file__).with_name("sizes.toml").read_text())
SIZES: dict[str, dict[str, Any]] = {size: _make_parts(data) for size, data in _TABLES.items()}
