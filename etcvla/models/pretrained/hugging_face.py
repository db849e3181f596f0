"""PaliGemma as a Hugging Face directory: config.json and one or several safetensors files.

Three generations of names are read. The first one, of the released checkpoints, is the one in
tables.toml and in exports; all versions of transformers read it.

  released:  vision_tower.vision_model.*, language_model.model.*, multi_modal_projector.*
  5.x:       vision_tower.*, language_model.model.*, multi_modal_projector.*
  4.5x:      model.vision_tower.vision_model.*, model.language_model.*,
             model.multi_modal_projector.*, lm_head.*
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict

from etcvla.errors import UserError
from etcvla.files import write_json
from etcvla.models.pretrained import safetensors
from etcvla.models.pretrained.layout import (
    TABLES,
    FileTensor,
    ParamEntry,
    ReleasedCheckpoint,
    Shapes,
)
from etcvla.models.vla import VLAConfig

log = logging.getLogger(__name__)
FORMAT = "Hugging Face PaliGemma"
# Rows of the embedding table beyond the vocabulary; the first one is the placeholder of an image.
PADDING = 64
MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"

# (regex, replacement), applied in order, that turn any generation of names into the released one.
_RELEASED_NAMES = (
    (r"^model\.(?=vision_tower|language_model|multi_modal)", ""),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^language_model\.(?!model\.|lm_head\.)", "language_model.model."),
    (r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
)
_BUFFERS = r".*(position_ids|rotary_emb\.inv_freq)"  # constants in older files
_TOKENIZER_FILES = r".*(token|process|template).*\.(json|model|jinja)"

_EMBEDDING = "language_model.model.embed_tokens.weight"
_HEAD = "language_model.lm_head.weight"
_TENSORS = TABLES["tensors"]
_FIELDS = TABLES["fields"]
_KINDS = ("gemma", "gemma2")  # of the language model
# Values of every released PaliGemma for which our model has no field.
_FIXED = {
    "text_config": {"rope_theta": 10_000.0, "rms_norm_eps": 1e-6},
    "vision_config": {"layer_norm_eps": 1e-6},
}


def table(shapes: Shapes) -> list[ParamEntry]:
    """List the tensors of the PaliGemma (1 or 2) whose backbone's parameters have these shapes."""
    kind = "gemma2" if "llm/layers/post_ffw_norm/scale" in shapes else "gemma"
    tensors = _TENSORS["common"] | _TENSORS[kind]
    entries = []
    for name, (path, pattern, *index) in tensors.items():
        if "{}" in name:
            for layer in range(shapes[path][0]):
                entries.append(ParamEntry(name.format(layer), path, (layer, *index), pattern))
        else:
            entries.append(ParamEntry(name, path, tuple(index), pattern))
    return entries


def backbone(shapes: Shapes) -> list[str]:
    """List our parameters that a PaliGemma has: the tower and the language model."""
    return sorted({entry.path for entry in table(shapes)})


def open_checkpoint(directory: epath.Path) -> ReleasedCheckpoint:
    """Read config.json and the headers.

    Raises: UserError for a missing shard, another architecture, an incomplete file, or an output
      layer that differs from the embedding table.
    """
    sizes = _read_sizes(directory / CONFIG)
    tensors = {}
    actual_names = {}
    for file in _files(directory):
        for name, tensor in safetensors.read(file).items():
            if re.fullmatch(_BUFFERS, name):
                continue
            released = _released_name(name)
            if released in tensors:
                raise UserError(
                    f"{directory}: {name} and {actual_names[released]} are the same parameter"
                )
            tensors[released] = tensor
            actual_names[released] = name
    _drop_head(tensors, directory)
    return ReleasedCheckpoint(directory, FORMAT, tensors, sizes, table, actual_names, PADDING)


def _files(directory: epath.Path) -> list[epath.Path]:
    """List the safetensors files."""
    index = directory / INDEX
    if not index.exists():
        return [directory / MODEL]
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    missing = [name for name in names if not (directory / name).exists()]
    if missing:
        raise UserError(f"{index} names {', '.join(missing)}, which {directory} does not have")
    return [directory / name for name in names]


def _released_name(name: str) -> str:
    for pattern, replacement in _RELEASED_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _drop_head(tensors: dict[str, FileTensor], directory: epath.Path) -> None:
    """Remove the output layer, which must equal the embedding table.

    A checkpoint may hold either or both.
    """
    head = tensors.pop(_HEAD, None)
    if head is None:
        return
    embedding = tensors.setdefault(_EMBEDDING, head)
    if not embedding.equals(head):
        raise UserError(
            f"{directory}: lm_head differs from the embedding table; this model shares the two"
        )


def _read_sizes(path: epath.Path) -> dict[str, float]:
    """Return the fields of our config that config.json specifies.

    Raises: UserError for another architecture.
    """
    if not path.exists():
        log.warning("%s does not exist: the numbers of heads are not checked", path)
        return {}
    config = json.loads(path.read_text())
    text = config.get("text_config", {})
    model_type = config.get("model_type")
    kind = text.get("model_type", "gemma")
    if model_type != "paligemma" or kind not in _KINDS:
        raise UserError(
            f"{path} describes a {model_type!r} model with text_config.model_type {kind!r}, "
            f"expected 'paligemma' with {' or '.join(map(repr, _KINDS))}"
        )
    for part, fixed in _FIXED.items():
        values = config.get(part, {})
        values = values | (values.get("rope_parameters") or {})  # newer files have rope_theta here
        for name, value in fixed.items():
            if values.get(name, value) != value:
                raise UserError(f"{path}: {part}.{name} is {values[name]}, expected {value}")
    siglip = _read_fields(config.get("vision_config", {}), "vision")
    return flatten_dict({"siglip": siglip, "vlm": _read_fields(text, kind)}, sep=".")


def _read_fields(values: Mapping[str, Any], kind: str) -> dict[str, float]:
    """Return the fields of our config for a part of config.json."""
    fields = {}
    for field, (name, default) in _FIELDS[kind].items():
        value = values.get(name, default)
        fields[field] = 0 if value is None else value  # None: no soft cap
    return fields


def export(
    params: Mapping,
    config: VLAConfig,
    directory: epath.Path,
    tokenizer_dir: epath.Path | None,
    shard_bytes: int,
) -> None:
    """Write the backbone (in its own dtype), config.json and the tokenizer's files."""
    leaves = {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
    tensors = {}
    for entry in table({path: leaf.shape for path, leaf in leaves.items()}):
        leaf = leaves[entry.path]
        tensors[entry.name] = (entry.file_shape(leaf.shape), [entry.view(leaf)])
    tensors[_EMBEDDING] = _pad_embedding(leaves["llm/embedder/input_embedding"])
    _save_shards(directory, tensors, shard_bytes)
    dtype = leaves["llm/final_norm/scale"].dtype.name
    write_json(directory / CONFIG, _config_json(config, dtype))
    if tokenizer_dir is None:
        return
    for file in tokenizer_dir.iterdir():
        if re.fullmatch(_TOKENIZER_FILES, file.name):
            file.copy(directory / file.name)


def _pad_embedding(embedding: np.ndarray) -> tuple[tuple[int, ...], list[np.ndarray]]:
    """Append the rows that transformers has for the placeholder of an image.

    They hold the mean of the table, which is never the most likely token.
    """
    vocab_size, width = embedding.shape
    mean = embedding.mean(0, dtype=np.float32).astype(embedding.dtype)
    padding = np.broadcast_to(mean, (PADDING, width))
    return (vocab_size + PADDING, width), [embedding, padding]


def _save_shards(directory: epath.Path, tensors: Mapping, shard_bytes: int) -> None:
    """Write the tensors into files of at most `shard_bytes`, with an index if there are several."""
    shards = []
    remaining = 0
    total = 0
    for name, (shape, arrays) in tensors.items():
        size = sum(array.nbytes for array in arrays)
        if not shards or size > remaining:
            shards.append({})
            remaining = shard_bytes
        shards[-1][name] = (shape, arrays)
        remaining -= size
        total += size
    if len(shards) == 1:
        safetensors.save(directory / MODEL, shards[0])
        return
    weight_map = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        safetensors.save(directory / file, shard)
        weight_map.update(dict.fromkeys(shard, file))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(directory / INDEX, index)


def _text_config(config: VLAConfig, kind: str) -> dict[str, Any]:
    """Return the fields of text_config. Raises UserError if no model of this kind has ours."""
    vlm = config.vlm
    if not vlm.query_pre_attn_scalar:
        vlm = dataclasses.replace(vlm, query_pre_attn_scalar=vlm.head_dim)
    fields = {}
    unsupported = []
    for field, (name, default) in _FIELDS[kind].items():
        value = getattr(vlm, field)
        if name:
            fields[name] = value or None
        elif value != default:
            unsupported.append(f"vlm.{field} = {value}")
    if unsupported:
        raise UserError(f"no {kind} has {', '.join(unsupported)}")
    return fields


def _config_json(config: VLAConfig, dtype: str) -> dict[str, Any]:
    """Return the contents of config.json."""
    vocab = config.vocab_size
    width = config.vlm.width
    act = "gelu_pytorch_tanh"
    kind = "gemma2" if config.vlm.post_norms else "gemma"
    text = _text_config(config, kind)
    vision = {name: getattr(config.siglip, field) for field, (name, _) in _FIELDS["vision"].items()}
    return {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": "paligemma",
        "torch_dtype": dtype,
        "vocab_size": vocab,
        "image_token_index": vocab,
        "hidden_size": width,
        "projection_dim": width,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "text_config": {
            **text,
            **_FIXED["text_config"],
            "model_type": kind,
            "vocab_size": vocab + PADDING,
            "hidden_act": act,
            "hidden_activation": act,
            "tie_word_embeddings": True,
            "num_image_tokens": config.siglip.tokens,
        },
        "vision_config": {
            **vision,
            **_FIXED["vision_config"],
            "model_type": "siglip_vision_model",
            "projection_dim": width,
            "hidden_act": act,
            "vision_use_head": False,
        },
    }
